"""Metrics by name; larger is better, but for `SMALLER_IS_BETTER`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mobillm_flower.core.registry import Registry

Metric = Callable[[np.ndarray, np.ndarray], float]

METRICS: Registry[Metric] = Registry("metric")
"""(true [B], predicted [B]) -> float. Predictions are class numbers, or numbers for regression."""

RANGES: dict[str, tuple[float, float]] = {
    "accuracy": (0.0, 1.0),
    "macro-f1": (0.0, 1.0),
    "f1": (0.0, 1.0),
    "matthews": (-1.0, 1.0),
    "spearman": (-1.0, 1.0),
    "pearson": (-1.0, 1.0),
    "cross-entropy": (0.0, math.log(1e9)),
    "perplexity": (1.0, 1e9),
    "next-word-top-1": (0.0, 1.0),
    "next-word-top-3": (0.0, 1.0),
}
"""Least and largest value of a metric, rounding apart; a registered one may enter its own here."""

SMALLER_IS_BETTER = frozenset({"cross-entropy", "perplexity"})


@dataclass(frozen=True)
class TokenScores:
    """How well a model predicts texts.

    Parameters
    ----------
    log_probabilities : ndarray
        log p of each token in the loss, [N] float32 in nats.
    word_ranks : ndarray
        Place of each word in the list of suggestions for it, [W] int64 from 1: see `mobillm_flower.tasks.words`.
    """

    log_probabilities: np.ndarray
    word_ranks: np.ndarray


TokenMetric = Callable[[TokenScores], float]

TOKEN_METRICS: Registry[TokenMetric] = Registry("metric of language modelling")
"""`TokenScores` of all texts -> float."""


@TOKEN_METRICS.register("cross-entropy")
def cross_entropy(scores: TokenScores) -> float:
    """Mean of −log p over tokens, in nats."""
    return float(-scores.log_probabilities.mean())


@TOKEN_METRICS.register("perplexity")
def perplexity(scores: TokenScores) -> float:
    """Exponential of the cross-entropy: of how many equally likely tokens one is chosen."""
    return float(np.exp(-scores.log_probabilities.mean()))


@TOKEN_METRICS.register("next-word-top-1")
def next_word_top_1(scores: TokenScores) -> float:
    """Share of words that are the first suggestion for them; 0 where there are no words."""
    return _suggested(scores, 1)


@TOKEN_METRICS.register("next-word-top-3")
def next_word_top_3(scores: TokenScores) -> float:
    """Share of words that are among the first three suggestions for them; 0 where there are no words."""
    return _suggested(scores, 3)


def _suggested(scores: TokenScores, most: int) -> float:
    return float((scores.word_ranks <= most).mean()) if len(scores.word_ranks) else 0.0


@METRICS.register("accuracy")
def accuracy(true: np.ndarray, predicted: np.ndarray) -> float:
    """Share of correct predictions."""
    return float(_sklearn().accuracy_score(true, predicted))


@METRICS.register("macro-f1")
def macro_f1(true: np.ndarray, predicted: np.ndarray) -> float:
    """F1 averaged over classes with equal weight."""
    return float(_sklearn().f1_score(true, predicted, average="macro", zero_division=0))


@METRICS.register("f1")
def f1(true: np.ndarray, predicted: np.ndarray) -> float:
    """F1 of class 1, as GLUE reports for MRPC and QQP."""
    return float(_sklearn().f1_score(true, predicted, labels=[1], average="macro", zero_division=0))


@METRICS.register("matthews")
def matthews(true: np.ndarray, predicted: np.ndarray) -> float:
    """Matthews correlation, as GLUE reports for CoLA."""
    return float(_sklearn().matthews_corrcoef(true, predicted))


@METRICS.register("spearman")
def spearman(true: np.ndarray, predicted: np.ndarray) -> float:
    """Spearman rank correlation; 0 where a side is constant."""
    return _correlation("spearmanr", true, predicted)


@METRICS.register("pearson")
def pearson(true: np.ndarray, predicted: np.ndarray) -> float:
    """Pearson correlation; 0 where a side is constant."""
    return _correlation("pearsonr", true, predicted)


def _correlation(name: str, true: np.ndarray, predicted: np.ndarray) -> float:
    from scipy import stats  # here, and below: 50 MB that a device need not hold while it runs the backbone

    if len(true) < 2 or np.ptp(true) == 0 or np.ptp(predicted) == 0:
        return 0.0
    return float(getattr(stats, name)(true, predicted)[0])


def _sklearn() -> Any:
    from sklearn import metrics

    return metrics
