"""LabelledCap: density ratio exactly e^ε, unbiased, the label kept as often as said, every draw used once."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from mobillm_flower.errors import ArgumentError
from mobillm_flower.privacy.labelled_cap import LabelledCap
from mobillm_flower.privacy.noise import derive, standard_normal, uniforms

KEY = bytes(range(32))
COUNT = 300_000
DIM = 6
SETTINGS = [(1.0, 1), (1.0, 2), (4.0, 2), (4.0, 4), (8.0, 2), (8.0, 151)]


def draw(mechanism: LabelledCap, vector: list[float], label: int, key: bytes = KEY) -> tuple[np.ndarray, np.ndarray]:
    """COUNT releases of one input, by the generator that devices use."""
    return mechanism.release(
        np.tile(vector, (COUNT, 1)),
        np.full(COUNT, label),
        uniforms=uniforms(derive(key, "uniforms"), 4 * COUNT).reshape(COUNT, 4),
        normals=standard_normal(derive(key, "normals"), (COUNT, len(vector))).double().numpy(),
    )


@pytest.mark.parametrize("height", [0.0, 0.3, 1.0, 2.5, None], ids=lambda h: "best" if h is None else f"h={h}")
@pytest.mark.parametrize("epsilon", [1e-3, 0.5, 1.0, 4.0, 8.0, 16.0, 32.0])
@pytest.mark.parametrize("classes", [1, 2, 3, 151])
def test_density_ratio_is_e_to_epsilon(epsilon: float, classes: int, height: float | None) -> None:
    """The densities of the sampler's three cases against uniform × N(0, I); at any height, not the best alone."""
    mechanism = LabelledCap(epsilon, classes)
    if height is not None:
        mechanism.__dict__["height"] = height  # where functools.cached_property keeps it
    cap, inside = mechanism.cap, mechanism.inside
    outside = (1 - cap / classes) * math.exp(-epsilon) / (cap / classes) * inside  # 1 − inside, without cancellation
    assert math.isclose(inside + outside, 1, rel_tol=1e-12)
    within = inside / (cap / classes)
    rest_true = outside * ((1 - cap) / (classes - cap)) / ((1 - cap) / classes)
    assert math.isclose(within / rest_true, math.exp(epsilon), rel_tol=1e-9)
    if classes > 1:
        other_each = outside * (1 - (1 - cap) / (classes - cap)) / (classes - 1) / (1 / classes)
        assert math.isclose(within / other_each, math.exp(epsilon), rel_tol=1e-9)


@pytest.mark.parametrize(("epsilon", "classes"), SETTINGS)
def test_the_height_is_the_best_and_is_the_signal(epsilon: float, classes: int) -> None:
    mechanism = LabelledCap(epsilon, classes)
    h = mechanism.height
    best = mechanism._signal(h)
    assert math.isclose(best, h, rel_tol=1e-10)
    assert all(mechanism._signal(other) < best for other in (0.0, 0.9 * h, 1.1 * h, 2 * h))


@pytest.mark.parametrize(("epsilon", "classes"), SETTINGS)
def test_released_vectors_are_unbiased(epsilon: float, classes: int) -> None:
    """E[1(ỹ = k) z] = h 1(y = k) v for every k and every coordinate."""
    mechanism = LabelledCap(epsilon, classes)
    vector, label = [0.6, -0.64, 0.48, 0.0, 0.0, 0.0], classes - 1
    labels, released = draw(mechanism, vector, label)
    for k in {0, classes // 2, label}:
        seen = released * (labels == k)[:, None]
        expected = mechanism.height * np.array(vector) * (k == label)
        error = seen.std(0) / COUNT**0.5
        assert (abs(seen.mean(0) - expected) < 5 * error).all()


@pytest.mark.parametrize(("epsilon", "classes"), SETTINGS)
def test_label_is_kept_as_often_as_said(epsilon: float, classes: int) -> None:
    mechanism = LabelledCap(epsilon, classes)
    labels, _ = draw(mechanism, [1.0, *[0.0] * (DIM - 1)], 0)
    expected = np.full(classes, (1 - mechanism.label_kept) / max(classes - 1, 1))
    expected[0] = mechanism.label_kept
    share = np.bincount(labels, minlength=classes) / COUNT
    assert (abs(share - expected) <= 5 * np.sqrt(expected * (1 - expected) / COUNT)).all()


def test_noise_across_is_standard_normal_and_along_is_cut_at_the_height() -> None:
    mechanism = LabelledCap(4.0, 2)
    labels, released = draw(mechanism, [1.0, *[0.0] * (DIM - 1)], 0)
    for column in range(1, DIM):
        assert stats.kstest(released[:, column], "norm").pvalue > 1e-3
    along = released[:, 0]
    h = mechanism.height
    wrong, low = along[labels == 1], along[(labels == 0) & (along < h)]
    high = along[(labels == 0) & (along >= h)]
    assert stats.kstest(wrong, "norm").pvalue > 1e-3
    assert stats.kstest(low, stats.truncnorm(-np.inf, h).cdf).pvalue > 1e-3
    assert stats.kstest(high, stats.truncnorm(h, np.inf).cdf).pvalue > 1e-3
    assert abs(len(high) / COUNT - mechanism.inside) < 5 * (mechanism.inside * (1 - mechanism.inside) / COUNT) ** 0.5


def test_more_epsilon_is_more_signal_and_more_classes_is_less() -> None:
    by_epsilon = [LabelledCap(epsilon, 3) for epsilon in (0.1, 0.5, 1, 2, 4, 8, 16, 32)]
    by_classes = [LabelledCap(4.0, classes) for classes in (1, 2, 3, 10, 151)]
    for name in ("height", "label_kept", "inside"):
        rising = [getattr(mechanism, name) for mechanism in by_epsilon]
        falling = [getattr(mechanism, name) for mechanism in by_classes]
        assert rising == sorted(set(rising)), name
        if name != "inside":
            assert falling == sorted(set(falling), reverse=True), name


def test_one_class_keeps_the_label_always() -> None:
    labels, _ = draw(LabelledCap(2.0, 1), [0.0, 1.0], 0)
    assert LabelledCap(2.0, 1).label_kept == 1
    assert not labels.any()


def test_extreme_draws_are_finite() -> None:
    ends = np.array([2.0**-53, 1 - 2.0**-53])
    grid = np.stack(np.meshgrid(ends, ends, ends, ends), -1).reshape(-1, 4)
    rows = len(grid)
    for epsilon, classes in [(1e-3, 2), (32.0, 2), (32.0, 1), (4.0, 151)]:
        labels, released = LabelledCap(epsilon, classes).release(
            np.tile([0.0, 1.0], (rows, 1)), np.zeros(rows, int), uniforms=grid, normals=np.full((rows, 2), 8.2)
        )
        assert np.isfinite(released).all()
        assert ((labels >= 0) & (labels < classes)).all()


@pytest.mark.parametrize("epsilon", [0.0, -1.0, 33.0, math.inf, math.nan])
def test_epsilon_is_checked(epsilon: float) -> None:
    with pytest.raises(ArgumentError, match=r"epsilon=.* must be above 0 and at most 32"):
        LabelledCap(epsilon, 2)


def test_classes_are_checked() -> None:
    with pytest.raises(ArgumentError, match="classes=0 must be at least 1"):
        LabelledCap(1.0, 0)


@pytest.mark.parametrize("row", [[0.0, 0.0], [0.6, 0.81], [math.nan, 1.0], [math.inf, 0.0]])
def test_rows_must_be_of_unit_norm(row: list[float]) -> None:
    with pytest.raises(ArgumentError, match=r"vectors=2 rows, 1 of which are not of L2 norm 1 within 0\.0001: divide"):
        LabelledCap(1.0, 2).release(
            np.array([row, [1.0, 0.0]]), np.array([0, 1]), uniforms=np.full((2, 4), 0.5), normals=np.zeros((2, 2))
        )


def test_a_norm_within_tolerance_does_not_matter() -> None:
    """Float32 rows are of unit norm to about 1e-7; what is released is that of the exact unit row."""
    one = {"uniforms": np.full((1, 4), 0.3), "normals": np.ones((1, 2))}
    mechanism = LabelledCap(1.0, 2)
    _, exact = mechanism.release(np.array([[0.6, 0.8]]), np.array([0]), **one)
    _, near = mechanism.release(np.array([[0.6, 0.8]]) * 1.00005, np.array([0]), **one)
    assert np.allclose(exact, near, rtol=1e-14)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vectors": np.array([1.0, 0.0])}, r"vectors\.shape=\(2,\) must be \[N, d\]"),
        ({"labels": np.array([0, 1])}, r"labels\.shape=\(2,\) must be \(1,\)"),
        ({"labels": np.array([2])}, "classes=2 needs labels that are integers of 0 to 1"),
        ({"uniforms": np.full((1, 3), 0.5)}, r"uniforms\.shape=\(1, 3\) must be \(1, 4\)"),
        ({"normals": np.zeros((1, 3))}, r"normals\.shape=\(1, 3\) must be \(1, 2\)"),
    ],
)
def test_shapes_are_checked(change: dict[str, np.ndarray], message: str) -> None:
    given = {
        "vectors": np.array([[1.0, 0.0]]),
        "labels": np.array([0]),
        "uniforms": np.full((1, 4), 0.5),
        "normals": np.zeros((1, 2)),
    } | change
    with pytest.raises(ArgumentError, match=message):
        LabelledCap(1.0, 2).release(
            given["vectors"], given["labels"], uniforms=given["uniforms"], normals=given["normals"]
        )
