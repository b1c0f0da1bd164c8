"""The additive side network with alignments of low rank."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mobillm_flower.core.side_networks.additive import AdditiveSideNetwork, per_block
from mobillm_flower.core.side_networks.config import SIDE_NETWORKS, AlignmentSpec


@SIDE_NETWORKS.register("low-rank")
class LowRankSideNetwork(AdditiveSideNetwork):
    """The additive side network with alignments of low rank: x_i = Σ_p a_i,p / √P + B_b,i A_b,i flatten(a_i).

    The sum of the pivots stays as it is, and what is learned has rank `rank` (as LoRA has beside a frozen matrix,
    2106.09685): ρ·(P·d_b + d) parameters a block in place of d·P·d_b. B starts at zero. A type that is not as wide as
    the side network has a full alignment.

    Attributes
    ----------
    rank : int
        ρ.
    """

    rank = 8

    def make_alignment(self, spec: AlignmentSpec, generator: torch.Generator) -> nn.Module:
        """Return W_b of one type."""
        if spec.width != self.width:
            return super().make_alignment(spec, generator)
        return _LowRankAlignment(spec, self.num_blocks, self.rank, generator)


class _LowRankAlignment(nn.Module):
    """The scaled sum of the pivots, and a product of low rank: A [M, ρ, P·d_b] and B [M, d, ρ]."""

    def __init__(self, spec: AlignmentSpec, num_blocks: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.num_vectors = spec.num_vectors
        down = torch.randn(num_blocks, rank, spec.num_features, generator=generator)
        self.down = nn.Parameter(down / spec.num_features**0.5)
        self.up = nn.Parameter(torch.zeros(num_blocks, spec.width, rank))

    def forward(self, rows: Tensor) -> Tensor:
        count, blocks, _ = rows.shape
        kept = rows.view(count, blocks, self.num_vectors, -1).sum(2) / self.num_vectors**0.5
        narrow = per_block(self.down, rows)
        aligned: Tensor = kept + per_block(self.up, narrow)
        return aligned
