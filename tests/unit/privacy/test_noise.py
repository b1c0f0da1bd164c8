"""Noise: the right distribution, the same for the same key, nothing in common between keys."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from mobillm_flower.privacy import noise
from mobillm_flower.privacy.device_folder import DeviceFolder
from mobillm_flower.privacy.noise import derive, key_stream, standard_normal, uniforms

KEY = bytes(range(32))
COUNT = 10**6


@pytest.fixture(scope="module")
def draws() -> np.ndarray:
    return standard_normal(KEY, (COUNT,)).numpy()


def test_chacha20_zero_key_vector() -> None:
    """RFC 8439, appendix A.1, test vectors 1 and 2: key and nonce zero, blocks 0 and 1."""
    first = "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
    first += "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
    second = "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
    second += "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f"
    assert key_stream(bytes(32), 128).hex() == first + second


def test_stream_is_cut_not_changed_by_length() -> None:
    assert key_stream(KEY, 200)[:77] == key_stream(KEY, 77)


def test_key_must_have_32_bytes() -> None:
    with pytest.raises(ValueError, match="key size"):
        key_stream(bytes(16), 8)


def test_mean_and_variance(draws: np.ndarray) -> None:
    assert abs(draws.mean(dtype=np.float64)) < 4 / COUNT**0.5
    assert abs(draws.var(dtype=np.float64) - 1) < 4 * (2 / COUNT) ** 0.5


def test_skewness_and_tails(draws: np.ndarray) -> None:
    assert abs(stats.skew(draws)) < 4 * (6 / COUNT) ** 0.5
    assert abs(stats.kurtosis(draws)) < 4 * (24 / COUNT) ** 0.5
    for threshold in (2, 3, 4):
        expected = 2 * stats.norm.sf(threshold) * COUNT
        assert abs((np.abs(draws) > threshold).sum() - expected) < 4 * expected**0.5 + 1


def test_kolmogorov_smirnov(draws: np.ndarray) -> None:
    assert stats.kstest(draws, "norm").pvalue > 1e-3


def test_draws_of_one_key_do_not_depend_on_each_other(draws: np.ndarray) -> None:
    for lag in (1, 2, 8):
        assert abs(np.corrcoef(draws[:-lag], draws[lag:])[0, 1]) < 4 / COUNT**0.5


def test_same_key_same_noise(draws: np.ndarray) -> None:
    again = standard_normal(KEY, (COUNT,))
    assert np.array_equal(again.numpy(), draws)
    assert again.dtype == torch.float32


def test_global_generators_play_no_part() -> None:
    torch.manual_seed(1)
    first = standard_normal(KEY, (8,))
    torch.manual_seed(2)
    assert torch.equal(first, standard_normal(KEY, (8,)))


def test_other_key_is_independent(draws: np.ndarray) -> None:
    other_key = bytes([*KEY[:-1], KEY[-1] ^ 1])  # one bit of difference
    other = standard_normal(other_key, (COUNT,)).numpy()
    assert abs(np.corrcoef(draws, other)[0, 1]) < 4 / COUNT**0.5
    assert (draws == other).mean() < 1e-4


def test_shape_only_arranges_the_stream() -> None:
    flat = standard_normal(KEY, (24,))
    assert torch.equal(standard_normal(KEY, (2, 3, 4)), flat.reshape(2, 3, 4))
    assert standard_normal(KEY, (0, 4)).shape == (0, 4)


@pytest.mark.parametrize("byte", [0x00, 0xFF])
def test_the_stream_s_ends_give_finite_noise(monkeypatch: pytest.MonkeyPatch, byte: int) -> None:
    monkeypatch.setattr(noise, "key_stream", lambda _key, size: bytes([byte]) * size)
    drawn = standard_normal(KEY, (4,))
    assert bool(torch.isfinite(drawn).all())
    assert bool((drawn.abs() > 8).all())
    assert bool((drawn.sign() == (1 if byte else -1)).all())


def test_uniforms_are_uniform_on_the_open_interval() -> None:
    drawn = uniforms(KEY, COUNT)
    assert drawn.shape == (COUNT,)
    assert drawn.dtype == np.float64
    assert drawn.min() > 0
    assert drawn.max() < 1
    assert stats.kstest(drawn, "uniform").pvalue > 1e-3


@pytest.mark.parametrize(("byte", "expected"), [(0x00, 2.0**-53), (0xFF, 1 - 2.0**-53)])
def test_the_stream_s_ends_are_not_the_interval_s(monkeypatch: pytest.MonkeyPatch, byte: int, expected: float) -> None:
    monkeypatch.setattr(noise, "key_stream", lambda _key, size: bytes([byte]) * size)
    assert uniforms(KEY, 2).tolist() == [expected, expected]


def test_normal_noise_is_the_inverse_of_the_uniforms() -> None:
    expected = stats.norm.ppf(uniforms(KEY, 100))
    assert np.allclose(standard_normal(KEY, (100,)).numpy(), expected, rtol=1e-6, atol=1e-7)


def test_derived_key_vector() -> None:
    """RFC 4231, test case 1: HMAC-SHA256 of "Hi There" under twenty bytes 0x0b."""
    expected = "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"
    assert derive(b"\x0b" * 20, "Hi There").hex() == expected


def test_release_ids_and_purposes_have_nothing_in_common(tmp_path: Path) -> None:
    """Two releases of one sample that differ in σ alone, three purposes each, and the undivided keys."""
    folder = DeviceFolder(tmp_path / "device")
    sample = folder.sample_id({"text": "one"})
    keys = [folder.noise_key(folder.release_id(sample, f"sigma={sigma}")) for sigma in (1, 2)]
    keys += [derive(key, purpose) for key in keys for purpose in ("cap", "label", "across")]
    folder.close()
    streams = [uniforms(key, 10**5) for key in keys]
    for first, second in itertools.combinations(streams, 2):
        assert not np.intersect1d(first, second).size  # no draw occurs twice, wherever it stands
        assert abs(np.corrcoef(first, second)[0, 1]) < 5 / 10**2.5
