"""The additive side network: alignment, gates, adapters, zero-initialised output (PAE MobiLLM, 2507.01216).

It runs beside the backbone on M sampled activations and never inside it, so the backbone needs no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mobillm_flower.core.side_networks.adapter import Adapter, activation_named, own_generator, zero_linear
from mobillm_flower.core.side_networks.config import SIDE_NETWORKS, AlignmentSpec, require_known
from mobillm_flower.core.side_networks.protocol import ActivationBatch

ALIGNMENT_RATE = 0.1
"""The alignment's learning rate as a share of the others'; chosen on validation data."""
FLEET_ALIGNMENT_RATE = 0.01
"""The same where several types start from the identity: each stays near it, and so near the others' meaning, instead of
learning what its own devices' labels have in common. Chosen on held-out training texts, see
`docs/explanation/one-network-for-all.md`.
"""


def _of_low_rank(width: int, rank: int, num_outputs: int, generator: torch.Generator) -> nn.Sequential:
    down = nn.Linear(width, rank, bias=False)
    with torch.no_grad():
        down.weight.copy_(torch.randn(rank, width, generator=generator) / width**0.5)
    return nn.Sequential(down, zero_linear(rank, num_outputs))


def _alone(_block: int, narrow: Tensor) -> Tensor:
    """Leave each row's narrow vector [N, r] to itself."""
    return narrow


@SIDE_NETWORKS.register("additive")
class AdditiveSideNetwork(nn.Module):
    """Additive side network over M blocks.

    For block i: x_i = W_b,i·LN(flatten(a_i)); s_in,i = (1 − μ_i)·x_i + μ_i·h_{i−1} with μ_i = sigmoid(α_i) and
    s_in,1 = x_1 (PAE eq. 1); h_i = s_in,i + W_up φ(W_down LN(s_in,i)). Output s(A) = W_o LN(h_M). W_o starts at
    zero, so that an untrained side network leaves the base model as it is.

    The alignment W_b,i is one set per backbone type b, learned, starting from the identity where d = d_b (for
    several pivots, from their sum over √P) and at random otherwise; a run of a single type with P = 1 and d = d_b needs
    none (see `SideNetworkConfig.of`).

    Parameters
    ----------
    types : mapping of str to AlignmentSpec
        Backbone fingerprint to input shape.
    num_blocks, width, bottleneck, num_outputs : int
        M, d, r, K.
    activation : str
        φ, one of `ACTIVATIONS`.
    input_norm : bool
        Whether rows are layer-normalised first; False where they are standardised with public constants.
    identity_alignment : bool
        The type that the run began with has no alignment parameters: W is the identity. Only where d = d_b and P = 1.
    joined : sequence of str
        Types that came later; each has an alignment of its own in any case.
    predicts_tokens : bool
        Whether the output is a correction as wide as the backbone. W_o then has rank r: a full one, zero at the start
        as well, learns the few tokens that devices have by heart
        (`docs/decisions/0031-an-output-of-low-rank.md`).
    seed : int
        Initial weights depend on it and on the type's fingerprint, not on the global generator.

    Raises
    ------
    ArgumentError
        An unknown activation function.
    """

    def __init__(
        self,
        *,
        types: Mapping[str, AlignmentSpec],
        num_blocks: int,
        width: int,
        bottleneck: int,
        num_outputs: int,
        activation: str = "gelu",
        input_norm: bool = True,
        identity_alignment: bool = False,
        joined: Sequence[str] = (),
        predicts_tokens: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        make_activation = activation_named(activation)
        self.num_blocks, self.width, self.num_outputs = num_blocks, width, num_outputs
        self.input_norm = input_norm
        self.types = dict(types)
        self.identity_alignment = identity_alignment
        self._joined = frozenset(joined)
        self.alignment = nn.ModuleDict(
            {
                name: self.make_alignment(spec, own_generator(seed, name))
                for name, spec in sorted(self.types.items())
                if name in joined or not identity_alignment
            }
        )
        generator = own_generator(seed, "shared")
        self.gates = nn.Parameter(torch.zeros(max(0, num_blocks - 1)))
        self.adapters = nn.ModuleList(
            Adapter(width, bottleneck, make_activation(), generator) for _ in range(num_blocks)
        )
        self.output_norm = nn.LayerNorm(width)
        self.output = self.make_output(num_outputs)
        if predicts_tokens and bottleneck < min(width, num_outputs):
            self.output = _of_low_rank(width, bottleneck, num_outputs, own_generator(seed, "output"))

    def make_output(self, num_outputs: int) -> nn.Module:
        """Return W_o: a module from [N, d] to [N, K] that starts at zero."""
        return zero_linear(self.width, num_outputs)

    def make_alignment(self, spec: AlignmentSpec, generator: torch.Generator) -> nn.Module:
        """Return W_b of one type: a module from rows [N, M, P·d_b] to [N, M, d]."""
        return _Alignment(spec, self.width, self.num_blocks, generator)

    @property
    def gate_values(self) -> list[float]:
        """μ_i of blocks 2..M: the share of the previous block's state."""
        return [float(value) for value in torch.sigmoid(self.gates.detach())]

    def learning_rate_factor(self, parameter: str) -> float:
        """Return what the learning rate is multiplied with: the alignment is large and starts well."""
        if not parameter.startswith("alignment."):
            return 1.0
        name = parameter.split(".")[1]
        several = len(self.types) - len(self._joined) > 1 or name in self._joined
        return FLEET_ALIGNMENT_RATE if several and self.types[name].width == self.width else ALIGNMENT_RATE

    def align(self, batch: ActivationBatch) -> Tensor:
        """Return x, [N, M, d], of one type's rows [N, M, P·d_b].

        Raises
        ------
        MismatchError
            The type has no alignment here, or rows have another shape.
        """
        require_known(batch, self.types, self.num_blocks, part="alignment")
        rows = batch.rows
        if self.input_norm:
            rows = nn.functional.layer_norm(rows, rows.shape[-1:])
        if batch.backbone not in self.alignment:
            return rows
        aligned: Tensor = self.alignment[batch.backbone](rows)
        return aligned

    def forward(self, batches: Sequence[ActivationBatch]) -> Tensor:
        """Return s(A), [B, K], samples in the order of the batches."""
        return self._read(self._through(batches), batches)

    def _read(self, hidden: Tensor, batches: Sequence[ActivationBatch]) -> Tensor:
        """Return s(A), [B, K], of LN(h_M), [N, d]."""
        if any(batch.lengths is not None for batch in batches):
            hidden = torch.segment_reduce(hidden, "mean", lengths=_lengths(batches), axis=0)  # [B, d]
        side: Tensor = self.output(hidden)
        return side

    def _through(self, batches: Sequence[ActivationBatch], mix: Callable[[int, Tensor], Tensor] = _alone) -> Tensor:
        """Return LN(h_M), [N, d], of all rows."""
        aligned = [self.align(batch) for batch in batches]
        x = aligned[0] if len(aligned) == 1 else torch.cat(aligned)  # [N, M, d]
        blocks = x.unbind(1)  # M times [N, d]
        hidden = blocks[0]
        for i, adapter in enumerate(self.adapters):
            if i:
                mu = torch.sigmoid(self.gates[i - 1])
                hidden = (1 - mu) * blocks[i] + mu * hidden
            hidden = adapter(hidden, partial(mix, i))
        last: Tensor = self.output_norm(hidden)
        return last


@SIDE_NETWORKS.register("fixed-gates")
class FixedGatesSideNetwork(AdditiveSideNetwork):
    """The additive side network with every gate μ_i held at 1/2: what learned gates are compared with."""

    def __init__(self, **shape: Any) -> None:
        super().__init__(**shape)
        self.gates.requires_grad_(False)


def per_block(weight: Tensor, rows: Tensor) -> Tensor:
    """Return W_i a_i of each block: [M, d, f] and [N, M, f] -> [N, M, d].

    The weight comes first, so that its gradient comes out in its own layout; the other way round, copying it took
    longer than the products.
    """
    return torch.bmm(weight, rows.permute(1, 2, 0)).permute(2, 0, 1)


class _Alignment(nn.Module):
    """W_b,i of one backbone type for all blocks: weight [M, d, P·d_b].

    It starts as the scaled sum of the pivots where each is as wide as the side network, otherwise at random.
    """

    def __init__(self, spec: AlignmentSpec, width: int, num_blocks: int, generator: torch.Generator) -> None:
        super().__init__()
        if spec.width == width:
            start = torch.eye(width).repeat(1, spec.num_vectors) / spec.num_vectors**0.5  # [d, P·d_b]
            weight = start.repeat(num_blocks, 1, 1)
        else:
            weight = torch.randn(num_blocks, width, spec.num_features, generator=generator) / spec.num_features**0.5
        self.weight = nn.Parameter(weight)

    def forward(self, rows: Tensor) -> Tensor:
        return per_block(self.weight, rows)


def _lengths(batches: Sequence[ActivationBatch]) -> Tensor:
    """Return the rows of each sample over all batches, [B]."""
    return torch.cat(
        [
            batch.lengths if batch.lengths is not None else batch.rows.new_ones(len(batch.rows), dtype=torch.long)
            for batch in batches
        ]
    )
