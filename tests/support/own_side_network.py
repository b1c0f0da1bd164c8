"""A side network that the package does not know: one linear layer over all sampled vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mobillm_flower import SIDE_NETWORKS
from mobillm_flower.core.side_networks import ActivationBatch, AlignmentSpec

NAME = "one-linear-layer"


@SIDE_NETWORKS.register(NAME)
class OneLinearLayer(nn.Module):
    """s(A) = W vec(A) + b for one backbone type, starting from zero."""

    def __init__(self, *, types: Mapping[str, AlignmentSpec], num_blocks: int, num_outputs: int) -> None:
        super().__init__()
        (spec,) = types.values()
        self.num_outputs = num_outputs
        self.output = nn.Linear(num_blocks * spec.num_features, num_outputs)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, batches: Sequence[ActivationBatch]) -> Tensor:
        """Return s(A), [B, K]."""
        side: Tensor = self.output(torch.cat([batch.rows.flatten(1) for batch in batches]))
        return side
