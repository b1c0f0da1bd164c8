"""The empirical ε: claims hold, planted bugs do not, and noise that is used twice is seen."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from mobillm_flower.audit.attacks.empirical_epsilon import (
    DRAWS,
    EpsilonCheck,
    check_gaussian,
    check_labelled_cap,
    check_randomized_response,
    lower_bound,
)
from mobillm_flower.privacy.accounting import gaussian_sigma
from mobillm_flower.privacy.device_folder import DeviceFolder
from mobillm_flower.privacy.labelled_cap import LabelledCap
from mobillm_flower.privacy.noise import derive, standard_normal, uniforms
from mobillm_flower.privacy.randomized_response import RandomizedResponse
from tests.support.noise_reuse import reused_noise

DELTA = 1e-5
CLIP_NORM = 1.0
WIDTH = 64


def check(mechanism: str, epsilon: float, *, runs_at: float | None = None, draws: int = DRAWS) -> EpsilonCheck:
    """Compare a claimed ε with the draws of a mechanism that runs at it, or at another."""
    actual = runs_at or epsilon
    if mechanism == "labelled cap":
        return replace(check_labelled_cap(LabelledCap(actual, 2), draws=draws), claimed=epsilon)
    if mechanism == "randomized response":
        return replace(check_randomized_response(RandomizedResponse(actual, 2), draws=draws), claimed=epsilon)
    sigma = gaussian_sigma(actual, DELTA, 2 * CLIP_NORM)
    return check_gaussian(sigma, CLIP_NORM, DELTA, claimed=epsilon, draws=draws)


@pytest.mark.parametrize("epsilon", [1.0, 4.0])
@pytest.mark.parametrize(
    ("mechanism", "tight"), [("labelled cap", 0.97), ("randomized response", 0.97), ("gaussian", 0.6)]
)
def test_claims_hold_and_the_bound_is_not_idle(mechanism: str, tight: float, epsilon: float) -> None:
    found = check(mechanism, epsilon)
    assert found.draws >= 10**6
    assert found.holds
    assert tight * epsilon < found.lower <= epsilon


def test_halved_gaussian_noise_is_caught() -> None:
    sigma = gaussian_sigma(4.0, DELTA, 2 * CLIP_NORM)
    found = check_gaussian(sigma / 2, CLIP_NORM, DELTA, claimed=4.0)
    assert not found.holds
    assert found.lower > 5
    assert check_gaussian(sigma / 2, CLIP_NORM, DELTA).holds  # the claim that this noise can carry


def test_a_tenth_less_noise_is_caught_at_a_larger_delta() -> None:
    """The same σ claims an ε at every δ; where δ is larger, its worst events are frequent and the bound is tight."""
    sigma = gaussian_sigma(4.0, 0.01, 2 * CLIP_NORM)
    assert 0.95 * 4 < check_gaussian(sigma, CLIP_NORM, 0.01).lower <= 4
    assert not check_gaussian(0.9 * sigma, CLIP_NORM, 0.01, claimed=4.0).holds


def test_a_forgotten_factor_of_the_sensitivity_is_caught() -> None:
    """σ calibrated for add-or-remove, sensitivity C, where neighbours are replaced: 2 C."""
    sigma = gaussian_sigma(4.0, DELTA, CLIP_NORM)
    assert not check_gaussian(sigma, CLIP_NORM, DELTA, claimed=4.0).holds


@pytest.mark.parametrize("mechanism", ["labelled cap", "randomized response"])
def test_twice_the_epsilon_is_caught(mechanism: str) -> None:
    found = check(mechanism, 4.0, runs_at=8.0, draws=10**5)
    assert not found.holds
    assert found.lower > 6


def test_one_key_gives_one_result() -> None:
    assert check("labelled cap", 2.0, draws=1000) == check("labelled cap", 2.0, draws=1000)
    mechanism = LabelledCap(2.0, 2)
    other = check_labelled_cap(mechanism, draws=1000, key=bytes(31) + b"\x01")
    assert other.lower != check_labelled_cap(mechanism, draws=1000).lower


def test_bound_is_that_of_clopper_and_pearson() -> None:
    for first, second in [(900, 100), (1000, 0), (500, 499)]:
        least = stats.binomtest(first, 1000).proportion_ci(0.999, method="exact").low
        most = stats.binomtest(second, 1000).proportion_ci(0.999, method="exact").high
        found = lower_bound(np.array(first), np.array(second), draws=1000, delta=0.01)
        assert math.isclose(found, max(0.0, math.log((least - 0.01) / most)), rel_tol=1e-9, abs_tol=1e-12)


def test_nothing_is_claimed_from_nothing() -> None:
    counts = np.array([0, 0, 1000]), np.array([0, 1000, 1000])
    assert lower_bound(*counts, draws=1000, delta=0.0).tolist() == [0, 0, 0]


def test_the_bound_covers() -> None:
    """Of 20,000 repetitions at a true ε of 1, at most one of 1,000 is expected above 1."""
    generator = np.random.default_rng(3)
    kept = RandomizedResponse(1.0, 2).kept
    first, second = generator.binomial(500, kept, 20_000), generator.binomial(500, 1 - kept, 20_000)
    assert (lower_bound(first, second, draws=500, delta=0.0) > 1).sum() <= 20


# --- noise that is used twice ---

SIGMAS = (0.7, 1.9)


def sample() -> np.ndarray:
    clean = np.linspace(-1, 1, WIDTH)
    return clean / np.linalg.norm(clean)


def gaussian_releases(keys: tuple[bytes, bytes]) -> tuple[np.ndarray, np.ndarray]:
    first, second = (
        sample() + sigma * standard_normal(key, (WIDTH,)).double().numpy()
        for sigma, key in zip(SIGMAS, keys, strict=True)
    )
    return first, second


def cap_releases(keys: tuple[bytes, bytes]) -> tuple[np.ndarray, np.ndarray]:
    first, second = (
        LabelledCap(epsilon, 2).release(
            sample()[None],
            np.array([1]),
            uniforms=uniforms(derive(key, "uniforms"), 4).reshape(1, 4),
            normals=standard_normal(derive(key, "normals"), (1, WIDTH)).double().numpy(),
        )[1][0]
        for epsilon, key in zip((1.0, 4.0), keys, strict=True)
    )
    return first, second


def device_keys(folder: Path) -> tuple[bytes, bytes]:
    """The keys of two releases of one sample whose settings differ in σ, as a device derives them."""
    device = DeviceFolder(folder)
    name = device.sample_id({"text": "one"})
    first, second = (device.noise_key(device.release_id(name, f'{{"sigma":{sigma}}}')) for sigma in SIGMAS)
    device.close()
    return first, second


def recovered_gaussian(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The adaptive attack: both releases and both σ are known, the noise cancels."""
    return (SIGMAS[1] * first - SIGMAS[0] * second) / (SIGMAS[1] - SIGMAS[0])


def similarity(guess: np.ndarray) -> float:
    return abs(float(guess @ sample()) / float(np.linalg.norm(guess)))


def test_reused_gaussian_noise_gives_the_sample_away_and_is_seen() -> None:
    first, second = gaussian_releases((bytes(32), bytes(32)))
    assert np.allclose(recovered_gaussian(first, second), sample(), atol=1e-12)
    reuse = reused_noise(first[None], second[None], sample()[None])
    assert reuse.is_reused
    assert reuse.cosine == pytest.approx(1, abs=1e-9)


def test_reused_cap_noise_gives_the_direction_away_and_is_seen() -> None:
    first, second = cap_releases((bytes(32), bytes(32)))
    assert similarity(first - second) == pytest.approx(1, abs=1e-9)
    assert reused_noise(first[None], second[None], sample()[None]).is_reused


def test_a_device_s_releases_share_no_noise(tmp_path: Path) -> None:
    """Fails if two settings' keys were the same: then the noise is the same, and the attacks above work."""
    keys = device_keys(tmp_path / "device")
    first, second = gaussian_releases(keys)
    assert not reused_noise(first[None], second[None], sample()[None]).is_reused
    assert np.linalg.norm(recovered_gaussian(first, second) - sample()) > np.linalg.norm(first - sample())
    first, second = cap_releases(keys)
    assert not reused_noise(first[None], second[None], sample()[None]).is_reused
    assert similarity(first - second) < 0.5


def test_negated_and_rounded_reuse_is_seen() -> None:
    first, second = gaussian_releases((bytes(32), bytes(32)))
    turned = 2 * sample() - second  # the noise with the other sign
    assert reused_noise(first[None], np.round(turned, 1)[None], sample()[None]).is_reused


def test_independent_noises_are_accused_as_rarely_as_said() -> None:
    """The p-values of independent releases are uniform."""
    generator = np.random.default_rng(5)
    clean = np.ones((2, 4))
    p_values = [
        reused_noise(clean + generator.normal(size=(2, 4)), clean + 3 * generator.normal(size=(2, 4)), clean).p_value
        for _ in range(2000)
    ]
    assert stats.kstest(p_values, "uniform").pvalue > 1e-3
