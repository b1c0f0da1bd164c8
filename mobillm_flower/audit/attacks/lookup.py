"""Text recovery: which of many suspected texts an upload is of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mobillm_flower.audit.finding import Measured, of_scores


@dataclass(frozen=True)
class Lookup:
    """The result of a nearest-neighbour search.

    Parameters
    ----------
    nearest : ndarray
        [B] int64, candidate of each victim.
    measured : Measured
        Share of exact matches; its baseline is one of the candidates by chance.
    """

    nearest: NDArray[np.int64]
    measured: Measured


def nearest_text(victims: Tensor, candidates: Tensor, truth: NDArray[np.int64], *, scale: float = 1.0) -> Lookup:
    """Look uploads up among candidates' clean activations.

    Parameters
    ----------
    victims : Tensor
        [B, D], uploads.
    candidates : Tensor
        [C, D], activations of texts that the attacker suspects, under the same settings without noise.
    truth : ndarray
        [B], the candidate that is each victim's text.
    scale : float
        What the mechanism multiplies activations with before noise; see `linear.signal`. Under Gaussian noise the
        nearest is the likeliest.
    """
    nearest = np.asarray(torch.cdist(victims, scale * candidates).argmin(1).numpy(), np.int64)
    return Lookup(nearest, of_scores(nearest == truth, 1 / len(candidates)))
