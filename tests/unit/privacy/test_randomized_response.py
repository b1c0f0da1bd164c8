"""Randomized response: the probabilities of its definition, ratio e^ε, the other labels alike likely."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mobillm_flower.errors import ArgumentError
from mobillm_flower.privacy.noise import uniforms
from mobillm_flower.privacy.randomized_response import RandomizedResponse

KEY = bytes(range(32))
COUNT = 200_000


@pytest.mark.parametrize("epsilon", [0.01, 1.0, 4.0, 12.0])
@pytest.mark.parametrize("classes", [2, 3, 151])
def test_two_probabilities_of_one_answer_have_ratio_e_to_epsilon(epsilon: float, classes: int) -> None:
    response = RandomizedResponse(epsilon, classes)
    assert math.isclose(response.kept / response.flipped, math.exp(epsilon), rel_tol=1e-12)
    assert math.isclose(response.kept + (classes - 1) * response.flipped, 1, rel_tol=1e-12)


@pytest.mark.parametrize(("epsilon", "classes"), [(1.0, 2), (2.0, 2), (3.0, 4), (0.5, 7)])
def test_labels_come_out_as_said(epsilon: float, classes: int) -> None:
    response = RandomizedResponse(epsilon, classes)
    for label in (0, classes - 1):
        drawn = response.release(np.full(COUNT, label), uniforms=uniforms(KEY, 2 * COUNT).reshape(COUNT, 2))
        expected = np.full(classes, response.flipped)
        expected[label] = response.kept
        share = np.bincount(drawn, minlength=classes) / COUNT
        assert (abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / COUNT)).all()


def test_the_draws_decide_and_nothing_else() -> None:
    response = RandomizedResponse(1.0, 4)
    low, high = 1e-9, 1 - 1e-9
    drawn = response.release(np.array([3, 3, 3]), uniforms=np.array([[low, high], [high, low], [high, high]]))
    assert drawn.tolist() == [3, 0, 2]  # kept; the first and the last of the others


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.inf, math.nan])
def test_epsilon_is_checked(epsilon: float) -> None:
    with pytest.raises(ArgumentError, match=r"epsilon=.* must be above 0 and finite"):
        RandomizedResponse(epsilon, 2)


def test_one_class_cannot_be_protected() -> None:
    with pytest.raises(ArgumentError, match="classes=1 must be at least 2"):
        RandomizedResponse(1.0, 1)


@pytest.mark.parametrize("labels", [[0, 4], [-1, 0], [0.0, 1.0]])
def test_labels_are_checked_and_not_told(labels: list[float]) -> None:
    with pytest.raises(ArgumentError, match=r"classes=3 needs labels that are integers of 0 to 2: check the data$"):
        RandomizedResponse(1.0, 3).release(np.array(labels), uniforms=np.full((2, 2), 0.5))


def test_shapes_are_checked() -> None:
    with pytest.raises(ArgumentError, match=r"uniforms\.shape=\(2,\) must be \(1, 2\)"):
        RandomizedResponse(1.0, 3).release(np.array([0]), uniforms=np.full(2, 0.5))
