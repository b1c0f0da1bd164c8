"""How the side network's output and the backbone's own prediction become one prediction."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mobillm_flower.core.targets import predict_logit, predict_square


@dataclass(frozen=True)
class PredictionRule:
    """How s(A) and p_b become scores.

    Parameters
    ----------
    loss : {"square", "logit"}
        p_b + s/c, or log p_b + s. Objective `label` uses "logit" for classes and "square" for numbers. For tokens
        "square", with the last hidden state in the place of p_b.
    scale : float
        c.
    use_base : bool
        Whether p_b takes part; False where the server trained without it.
    """

    loss: str
    scale: float
    use_base: bool = True

    def scores(self, side: Tensor, base: Tensor) -> Tensor:
        """Return scores [B, K] from s(A) [B, K] and p_b [B, K]."""
        if not self.use_base:
            base = torch.zeros_like(base) if self.loss == "square" else torch.ones_like(base)
        return predict_square(side, base, self.scale) if self.loss == "square" else predict_logit(side, base)
