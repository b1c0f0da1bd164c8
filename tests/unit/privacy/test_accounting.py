"""Accounting: known values of the Gaussian mechanism, sums, and the reasons why no ε is named."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import integrate, stats

from mobillm_flower.errors import ArgumentError
from mobillm_flower.privacy.accounting import Guarantee, compose, gaussian_epsilon, gaussian_sigma, guarantee

SETTINGS: dict[str, Any] = {
    "joint_epsilon": 0.0,
    "activation_sigma": 2.0,
    "clip_norm": 1.0,
    "delta": 1e-5,
    "label_epsilon": 1.0,
    "base_is_constant": True,
    "classes": 2,
}


@pytest.mark.parametrize(
    ("epsilon", "delta", "sensitivity", "sigma"),
    [  # dp-accounting 0.6.0, GaussianPrivacyLoss.from_privacy_guarantee, which searches to about 1e-7
        (0.5, 1e-5, 1.0, 7.0318267420168326),
        (1.0, 1e-5, 1.0, 3.730631664679545),
        (1.0, 1e-5, 2.0, 7.46126332935909),
        (4.0, 1e-5, 2.0, 2.162323756397554),
        (8.0, 1e-5, 2.0, 1.2004581451698573),
        (8.0, 1e-6, 2.0, 1.3058708387810591),
        (16.0, 1e-5, 2.0, 0.6883548910861059),
        (1.0, 1e-10, 1.0, 5.867777776593884),
    ],
)
def test_sigma_is_that_of_dp_accounting(epsilon: float, delta: float, sensitivity: float, sigma: float) -> None:
    assert math.isclose(gaussian_sigma(epsilon, delta, sensitivity), sigma, rel_tol=2e-7)


@pytest.mark.parametrize(
    ("sigma", "delta", "sensitivity", "epsilon"),
    [  # dp-accounting 0.6.0, from_gaussian_mechanism(value_discretization_interval=1e-4).get_epsilon_for_delta
        (1.0, 1e-5, 1.0, 4.37717810002877),
        (0.5, 1e-5, 2.0, 24.381610883629175),
        (5.0, 1e-6, 2.0, 1.7656481704978058),
        (0.1, 1e-5, 2.0, 284.39184952674),
    ],
)
def test_epsilon_is_that_of_dp_accounting(sigma: float, delta: float, sensitivity: float, epsilon: float) -> None:
    assert math.isclose(gaussian_epsilon(sigma, delta, sensitivity), epsilon, rel_tol=2e-7)


@pytest.mark.parametrize("epsilon", [0.3, 1.0, 4.0, 8.0])
def test_sigma_meets_the_definition_by_integration(epsilon: float) -> None:
    """δ = ∫ max(0, p − e^ε q), the hockey-stick divergence of the two neighbours' densities."""
    sigma, delta = gaussian_sigma(epsilon, 1e-3, 2.0), 1e-3
    first, second = stats.norm(2.0, sigma), stats.norm(0.0, sigma)
    start = 1.0 + epsilon * sigma**2 / 2.0  # where p = e^ε q
    value, _ = integrate.quad(
        lambda x: first.pdf(x) - math.exp(epsilon) * second.pdf(x), start, start + 40 * sigma, epsabs=1e-12, limit=200
    )
    assert math.isclose(value, delta, rel_tol=1e-6)


@pytest.mark.parametrize("epsilon", [1e-3, 1.0, 8.0, 100.0])
@pytest.mark.parametrize("delta", [1e-12, 1e-5, 0.3])
@pytest.mark.parametrize("sensitivity", [0.01, 2.0, 50.0])
def test_there_and_back_never_promises_too_much(epsilon: float, delta: float, sensitivity: float) -> None:
    back = gaussian_epsilon(gaussian_sigma(epsilon, delta, sensitivity), delta, sensitivity)
    assert math.isclose(back, epsilon, rel_tol=1e-6)
    assert back <= epsilon * (1 + 2e-10)


def test_sigma_falls_with_epsilon_and_delta_and_scales_with_sensitivity() -> None:
    falling = [gaussian_sigma(epsilon, 1e-5, 2.0) for epsilon in (0.1, 1, 2, 4, 8, 16)]
    assert falling == sorted(set(falling), reverse=True)
    assert gaussian_sigma(1.0, 1e-6, 2.0) > gaussian_sigma(1.0, 1e-5, 2.0)
    assert math.isclose(gaussian_sigma(3.0, 1e-5, 6.0), 3 * gaussian_sigma(3.0, 1e-5, 2.0), rel_tol=1e-12)


def test_sigma_is_below_the_classical_bound() -> None:
    assert gaussian_sigma(0.9, 1e-5, 1.0) < math.sqrt(2 * math.log(1.25e5)) / 0.9


def test_much_noise_needs_no_epsilon() -> None:
    assert gaussian_epsilon(1e6, 1e-5, 2.0) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 1e-5, 2.0), "epsilon=0.0 must be above 0"),
        ((math.nan, 1e-5, 2.0), "epsilon=nan must be above 0"),
        ((1.0, 0.0, 2.0), "delta=0.0 must be above 0 and below 1"),
        ((1.0, 1.0, 2.0), "delta=1.0 must be above 0 and below 1"),
        ((1.0, 1e-5, 0.0), "sensitivity=0.0 must be above 0"),
        ((1.0, 1e-5, math.inf), "sensitivity=inf must be above 0"),
    ],
)
def test_arguments_of_sigma_are_checked(arguments: tuple[float, float, float], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        gaussian_sigma(*arguments)


def test_arguments_of_epsilon_are_checked() -> None:
    with pytest.raises(ArgumentError, match=r"sigma=0\.0 must be above 0"):
        gaussian_epsilon(0.0, 1e-5, 2.0)
    with pytest.raises(ArgumentError, match=r"delta=2\.0 must be above 0 and below 1"):
        gaussian_epsilon(1.0, 2.0, 2.0)


def test_activations_and_labels_add_up() -> None:
    found = guarantee(**SETTINGS)
    expected = gaussian_epsilon(2.0, 1e-5, 2.0)
    assert found.parts == {"activations": (expected, 1e-5), "labels": (1.0, 0.0)}
    assert found.epsilon == pytest.approx(expected + 1.0, rel=1e-12)
    assert (found.delta, found.reason) == (1e-5, "")


def test_sensitivity_is_twice_the_clip_norm() -> None:
    """Replace-one: two clipped vectors may be opposite."""
    found = guarantee(**SETTINGS | {"clip_norm": 3.0, "activation_sigma": gaussian_sigma(4.0, 1e-5, 6.0)})
    assert found.parts["activations"][0] == pytest.approx(4.0, rel=1e-9)


def test_the_joint_mechanism_pays_once_and_without_delta() -> None:
    found = guarantee(**SETTINGS | {"joint_epsilon": 4.0, "activation_sigma": 0.0, "label_epsilon": 0.0})
    assert found == Guarantee(4.0, 0.0, "", {"activations and labels": (4.0, 0.0)})


@pytest.mark.parametrize(
    ("change", "reasons", "parts"),
    [
        ({"activation_sigma": 0.0}, ["activations are not noised"], {"labels"}),
        ({"clip_norm": 0.0}, ["noised but not clipped"], {"labels"}),
        ({"label_epsilon": 0.0}, ["labels are sent unprotected"], {"activations"}),
        ({"base_is_constant": False}, ["a function of the text"], {"activations", "labels"}),
        ({"classes": 0}, ["the target is sent unprotected"], {"activations"}),
        (
            {"activation_sigma": 0.0, "label_epsilon": 0.0, "base_is_constant": False},
            ["activations are not noised", "labels are sent unprotected", "a function of the text"],
            set(),
        ),
        (
            {"joint_epsilon": 4.0, "activation_sigma": 0.0, "label_epsilon": 0.0, "base_is_constant": False},
            ["a function of the text"],
            {"activations and labels"},
        ),
        (
            {"joint_epsilon": 4.0, "activation_sigma": 0.0, "label_epsilon": 0.0, "classes": 0},
            ["the target is not a class"],
            {"activations"},
        ),
    ],
)
def test_no_epsilon_where_something_is_unprotected(change: dict[str, Any], reasons: list[str], parts: set[str]) -> None:
    found = guarantee(**SETTINGS | change)
    assert found.epsilon is None
    assert len(found.reason.split("; ")) == len(reasons)
    assert all(reason in found.reason for reason in reasons)
    assert found.parts.keys() == parts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"joint_epsilon": 4.0}, r"joint_epsilon=4\.0 covers activations and labels: leave activation_sigma=2\.0"),
        ({"joint_epsilon": -1.0}, r"joint_epsilon=-1\.0 must be 0 or above"),
        ({"clip_norm": math.nan}, "clip_norm=nan must be 0 or above"),
        ({"delta": 0.0}, r"delta=0\.0 must be above 0 and below 1"),
        ({"classes": 1}, "classes=1 must be at least 2"),
    ],
)
def test_settings_are_checked(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        guarantee(**SETTINGS | change)


def test_releases_compose_by_sums() -> None:
    joint = Guarantee(2.0, 0.0, "", {"activations and labels": (2.0, 0.0)})
    apart = guarantee(**SETTINGS)
    found = compose([apart, joint, apart])
    assert apart.epsilon is not None
    assert found.epsilon == pytest.approx(2 * apart.epsilon + 2.0, rel=1e-12)
    assert found.delta == pytest.approx(2e-5, rel=1e-12)
    assert found.parts["labels"] == (2.0, 0.0)
    assert found.parts["activations and labels"] == (2.0, 0.0)
    assert found.epsilon == pytest.approx(sum(epsilon for epsilon, _ in found.parts.values()), rel=1e-12)


def test_one_unprotected_release_spoils_the_sum() -> None:
    bare = guarantee(**SETTINGS | {"activation_sigma": 0.0})
    found = compose([guarantee(**SETTINGS), bare, bare])
    assert found.epsilon is None
    assert found.reason == "activations are not noised"
    assert found.parts == {"labels": (3.0, 0.0)}  # the activations' ε of one release says nothing about three


def test_no_release_gives_nothing_away() -> None:
    assert compose([]) == Guarantee(0.0, 0.0)


def test_a_person_with_many_samples() -> None:
    one = guarantee(**SETTINGS | {"joint_epsilon": 0.5, "activation_sigma": 0.0, "label_epsilon": 0.0})
    found = compose([one] * 10)
    assert np.isclose(found.epsilon or 0, 5.0)
