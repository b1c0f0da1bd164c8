"""Two texts that were run by themselves, side by side: how far their vectors differ, and where they agree."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import layer_norm


def compare(first: Tensor, second: Tensor) -> Tensor:
    """Return |û − v̂| and û ⊙ v̂ of two texts' vectors u and v, each normalised to mean 0 and variance 1.

    The features of a bi-encoder (InferSent, 1705.02364; Sentence-BERT, 1908.10084) without u and v themselves.

    Parameters
    ----------
    first, second : Tensor
        [T, M, P, d] float32.

    Returns
    -------
    Tensor
        [T, M, 2·P, d] float32.
    """
    u, v = (layer_norm(side, side.shape[-1:]) for side in (first, second))
    signs = torch.ones(u.shape[-1])
    signs[1::2] = -1
    return torch.cat([signs * (u - v).abs(), -signs * u * v], dim=2)
