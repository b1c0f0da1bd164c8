"""A lower bound of a mechanism's ε from its draws, and a check that no noise was used twice.

The mechanism is run many times on two neighbouring inputs, and an event is counted. An (ε, δ)-private mechanism has
P₁ ≤ e^ε P₂ + δ for every event, so ε ≥ log((P₁ − δ) / P₂). With Clopper-Pearson bounds in the place of P₁ and P₂ that
is a lower bound of ε, whatever the proof says (Jagielski, Ullman and Oprea 2020, arXiv 2006.07709). A bound above the
claimed ε is a bug. A bound below it proves nothing: it only fails to find one.

The draws are those of devices: the same functions, the same keyed generator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import beta

from mobillm_flower.core.perturb import clip_joint, perturb
from mobillm_flower.privacy.accounting import gaussian_epsilon
from mobillm_flower.privacy.labelled_cap import LabelledCap
from mobillm_flower.privacy.noise import derive, standard_normal, uniforms
from mobillm_flower.privacy.randomized_response import RandomizedResponse

DRAWS = 1_000_000
"""Counted draws of each of the two inputs."""

CONFIDENCE = 0.999

KEY = bytes(32)
"""Public on purpose: it makes the check repeatable and protects nothing."""

_DIM, _CHUNK = 16, 100_000  # d, which ε does not depend on; draws at a time

Draw = Callable[[bytes, int], NDArray[Any]]
"""From a key and a number of draws to a statistic of each draw, [N]."""


@dataclass(frozen=True)
class EpsilonCheck:
    """One comparison of a claimed ε with the draws.

    Parameters
    ----------
    mechanism : str
        What was drawn from.
    claimed : float
        The ε that is claimed.
    delta : float
        The δ that is claimed with it.
    lower : float
        Lower bound of the true ε at this δ, at 99.9 % confidence.
    draws : int
        Counted draws of each of the two inputs.
    """

    mechanism: str
    claimed: float
    delta: float
    lower: float
    draws: int

    @property
    def holds(self) -> bool:
        """Whether the draws leave the claim standing."""
        return self.lower <= self.claimed

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, and whether the claim holds."""
        return {**asdict(self), "holds": self.holds}


def check_labelled_cap(mechanism: LabelledCap, *, draws: int = DRAWS, key: bytes = KEY) -> EpsilonCheck:
    """Bound the ε of `LabelledCap` by its worst event: the cap of the first input.

    The neighbour has the opposite vector and, where there are several classes, another label, so that its cap is
    elsewhere.

    Parameters
    ----------
    mechanism : LabelledCap
        What is drawn from; it claims its ε.
    draws : int
        Counted draws of each input.
    key : bytes
        32 bytes.
    """
    direction = np.zeros(_DIM)
    direction[0] = 1.0

    def hits(sign: int, label: int, chunk: bytes, count: int) -> NDArray[np.bool_]:
        labels, vectors = mechanism.release(
            np.tile(sign * direction, (count, 1)),
            np.full(count, label),
            uniforms=uniforms(derive(chunk, "uniforms"), 4 * count).reshape(count, 4),
            normals=standard_normal(derive(chunk, "normals"), (count, _DIM)).double().numpy(),
        )
        inside: NDArray[np.bool_] = (labels == 0) & (vectors @ direction >= mechanism.height)
        return inside

    first, second = partial(hits, 1, 0), partial(hits, -1, min(1, mechanism.classes - 1))
    lower = _by_event(first, second, draws=draws, delta=0.0, key=key)
    return EpsilonCheck("labelled cap", mechanism.epsilon, 0.0, lower, draws)


def check_randomized_response(mechanism: RandomizedResponse, *, draws: int = DRAWS) -> EpsilonCheck:
    """Bound the ε of randomized response by its worst event: the first input's label is said.

    Parameters
    ----------
    mechanism : RandomizedResponse
        What is drawn from; it claims its ε.
    draws : int
        Counted draws of each input.
    """

    def hits(label: int, chunk: bytes, count: int) -> NDArray[np.bool_]:
        said = mechanism.release(np.full(count, label), uniforms=uniforms(chunk, 2 * count).reshape(count, 2))
        kept: NDArray[np.bool_] = said == 0
        return kept

    lower = _by_event(partial(hits, 0), partial(hits, 1), draws=draws, delta=0.0)
    return EpsilonCheck("randomized response", mechanism.epsilon, 0.0, lower, draws)


def check_gaussian(
    sigma: float, clip_norm: float, delta: float, *, claimed: float | None = None, draws: int = DRAWS
) -> EpsilonCheck:
    """Bound the ε of clipping and Gaussian noise by the projection on the two inputs' difference.

    The inputs are opposite and far outside the clip norm. The projection's log likelihood ratio is linear, so the worst
    events are half-lines; the best threshold is chosen on draws that are not counted.

    Parameters
    ----------
    sigma : float
        σ of the noise that is drawn.
    clip_norm : float
        C.
    delta : float
        δ of the claim.
    claimed : float, optional
        The ε to compare with; that of σ, δ and sensitivity 2 C by default.
    draws : int
        Counted draws of each input; as many again choose the threshold.
    """
    direction = torch.zeros(_DIM)
    direction[0] = 1.0

    def projections(sign: int, chunk: bytes, count: int) -> NDArray[np.float64]:
        clipped = clip_joint(10 * sign * clip_norm * direction, clip_norm).expand(count, _DIM)
        released = perturb(clipped, clip_norm=0.0, sigma=sigma, noise=standard_normal(chunk, (count, _DIM)))
        projected: NDArray[np.float64] = (released @ direction).double().numpy()
        return projected

    lower = lower_by_threshold(partial(projections, 1), partial(projections, -1), draws=draws, delta=delta)
    if claimed is None:
        claimed = gaussian_epsilon(sigma, delta, 2 * clip_norm)
    return EpsilonCheck("gaussian", claimed, delta, lower, draws)


def lower_bound(
    first: NDArray[np.int64], second: NDArray[np.int64], *, draws: int, delta: float, confidence: float = CONFIDENCE
) -> NDArray[np.float64]:
    """Return log((P₁ − δ) / P₂), P₁ and P₂ at their Clopper-Pearson bounds, each at half of 1 − confidence.

    Parameters
    ----------
    first, second : ndarray
        How many of the draws of each input fell into the event; any shape, int64.
    draws : int
        Draws of each input.
    delta : float
        δ of the claim, 0 for a pure ε.
    confidence : float
        For one event that was chosen before the draws were seen.

    Returns
    -------
    ndarray
        Lower bounds of ε, float64, at least 0.
    """
    alpha = (1 - confidence) / 2
    least = np.where(first > 0, beta.ppf(alpha, np.maximum(first, 1), draws - first + 1), 0.0)
    most = np.where(second < draws, beta.ppf(1 - alpha, second + 1, np.maximum(draws - second, 1)), 1.0)
    return np.log(np.maximum((least - delta) / most, 1.0))


def _by_event(first: Draw, second: Draw, *, draws: int, delta: float, key: bytes = KEY) -> float:
    """Lower bound for two functions that say whether a draw fell into the event."""
    hits = [
        np.count_nonzero(_drawn(first, draws, derive(key, "first"))),
        np.count_nonzero(_drawn(second, draws, derive(key, "second"))),
    ]
    return float(lower_bound(*map(np.array, hits), draws=draws, delta=delta))


def lower_by_threshold(first: Draw, second: Draw, *, draws: int, delta: float) -> float:
    """Lower bound for the best event {statistic ≥ t}; t is chosen on draws of its own."""
    near = np.sort(_drawn(first, draws, derive(KEY, "choose first")))
    far = np.sort(_drawn(second, draws, derive(KEY, "choose second")))
    # thresholds that 1 … N draws of the second input reach, evenly in the logarithm
    ranks = np.unique(np.geomspace(1, draws, 400).astype(np.int64))
    thresholds = far[draws - ranks]
    reached = draws - np.searchsorted(near, thresholds)
    best = thresholds[np.argmax(lower_bound(reached, ranks, draws=draws, delta=delta))]
    return _by_event(
        lambda chunk, count: first(chunk, count) >= best,
        lambda chunk, count: second(chunk, count) >= best,
        draws=draws,
        delta=delta,
    )


def _drawn(draw: Draw, draws: int, key: bytes) -> NDArray[Any]:
    """Draw in pieces of bounded memory, each under a key of its own, as releases are."""
    starts = range(0, draws, _CHUNK)
    return np.concatenate([draw(derive(key, str(start)), min(_CHUNK, draws - start)) for start in starts])
