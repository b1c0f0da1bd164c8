"""Adapters between a backbone's own upper layers, which run on the server from cached states of a lower one.

A side network that only reads a frozen backbone cannot make it look for something else. This one can, above the cut: it
is the backbone's layers ℓ+1 … L with adapters between them (Houlsby et al., 1902.00751), and a device still runs
forward only, up to layer ℓ.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mobillm_flower.core.side_networks.adapter import Adapter, activation_named, own_generator, zero_linear
from mobillm_flower.core.side_networks.config import SIDE_NETWORKS, AlignmentSpec
from mobillm_flower.core.side_networks.protocol import ActivationBatch, Needs, Upper
from mobillm_flower.errors import ArgumentError, MismatchError

NAME = "upper-layers"


@SIDE_NETWORKS.register(NAME)
class UpperLayersSideNetwork(nn.Module):
    """The backbone's layers above a cut with an adapter before the first and after each, for one backbone type.

    h_0 = A_0(a), h_i = A_i(layer_{ℓ+i}(h_{i−1})) with adapters A(h) = h + W_up φ(W_down LN(h)), and s(A) = W_o mean_t
    LN(h_{L−ℓ}); of a causal backbone the last token in place of the mean. W_up and W_o start at zero. Only adapters,
    norm and W_o are its parameters: the layers are the backbone's, which server and devices have, and must be given
    by `attach` before it is called. In language modelling s(A) = h_{L−ℓ} of each token, and there are no norm and W_o:
    the backbone's own final norm and head follow.

    Parameters
    ----------
    types : mapping of str to AlignmentSpec
        One backbone fingerprint; `layers_above` says how many layers there are.
    num_blocks : int
        1: the states of one layer.
    width, bottleneck, num_outputs, activation, seed
        As in `AdditiveSideNetwork`; the width is the backbone's.
    predicts_tokens : bool
        Whether the task is language modelling.

    Raises
    ------
    MismatchError
        There are several types.
    ArgumentError
        The activation function is unknown, or the width is another than the backbone's.
    """

    needs = Needs(one_type=True, every_token=True, upper_layers=True)

    def __init__(
        self,
        *,
        types: Mapping[str, AlignmentSpec],
        num_blocks: int,
        width: int,
        bottleneck: int,
        num_outputs: int,
        activation: str = "gelu",
        predicts_tokens: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if len(types) != 1 or num_blocks != 1:
            raise MismatchError(
                f"{NAME} takes one layer of one backbone type, not {num_blocks} of {len(types)}; give all devices one "
                "backbone, or choose the side network additive"
            )
        make_activation = activation_named(activation)
        ((self.backbone, spec),) = types.items()
        if width != spec.width:
            raise ArgumentError("width", width, f"cannot be used: the upper layers are {spec.width} wide; leave it out")
        self.width, self.num_outputs, self.predicts_tokens = width, num_outputs, predicts_tokens
        generator = own_generator(seed, "shared")
        self.adapters = nn.ModuleList(
            Adapter(width, bottleneck, make_activation(), generator) for _ in range(spec.layers_above + 1)
        )
        if not predicts_tokens:
            self.output_norm = nn.LayerNorm(width)
            self.output = zero_linear(width, num_outputs)
        self._upper: _Shared | None = None

    def attach(self, upper: Upper) -> None:
        """Give it the layers; copies of the network share them."""
        self._upper = _Shared(upper)

    def forward(self, batches: Sequence[ActivationBatch]) -> Tensor:
        """Return s(A), [B, K], samples (in language modelling the tokens that are asked for) in the batches' order.

        Raises
        ------
        MismatchError
            Activations are of another type or another shape, or no layers were attached.
        """
        return torch.cat([self._read(batch) for batch in batches])

    def _read(self, batch: ActivationBatch) -> Tensor:
        if self._upper is None:
            raise MismatchError(f"{NAME} runs on the backbone's layers, and none were attached to it")
        lengths = batch.sequences if self.predicts_tokens else batch.lengths
        if batch.backbone != self.backbone or lengths is None or batch.rows.shape[1:] != (1, self.width):
            raise MismatchError(
                f"activations of backbone {batch.backbone[:12]}, {tuple(batch.rows.shape[1:])} a row, do not fit a "
                f"side network on the layers of {self.backbone[:12]}, which takes {(1, self.width)} of each token"
            )
        upper, lengths = self._upper.upper, lengths.to(batch.rows.device)
        hidden, mask = through(upper, batch.rows, lengths, self.between)
        if self.predicts_tokens:
            tokens = hidden[mask]  # [N, d_b]
            return tokens if batch.asked is None else tokens[batch.asked]
        states = self.output_norm(hidden)
        if upper.causal:
            pooled = states[torch.arange(len(states), device=states.device), lengths - 1]
        else:
            pooled = (states * mask.unsqueeze(2)).sum(1) / lengths.unsqueeze(1)
        side: Tensor = self.output(pooled)
        return side

    def between(self, place: int, states: Tensor) -> Tensor:
        """Return A_place of states [..., d_b] that layer ℓ + place left."""
        adapted: Tensor = self.adapters[place](states)
        return adapted


def through(
    upper: Upper, rows: Tensor, lengths: Tensor, between: Callable[[int, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Run a backbone's layers ℓ + 1 … L from states of texts that layer ℓ left.

    Parameters
    ----------
    upper : Upper
        The layers.
    rows : Tensor
        [N, 1, d_b] float32, texts one after another.
    lengths : Tensor
        [B] int64, tokens of each text, N in all.
    between : callable
        (place, states) -> states: what layer ℓ + place left, as the next one reads it.

    Returns
    -------
    tuple
        What `between` made of the last layer's states, [B, T, d_b] float32, and which of these are tokens, [B, T] bool.
    """
    mask = torch.arange(int(lengths.max()), device=lengths.device) < lengths.unsqueeze(1)  # [B, T]
    states = rows.new_zeros(*mask.shape, rows.shape[2]).masked_scatter(mask.unsqueeze(2), rows)  # [B, T, d_b]
    hidden = upper(between(0, states), mask.long(), lambda i, after: between(i + 1, after))
    return hidden, mask


class _Shared:
    """Layers that are not part of the network: not copied with it, not in its state."""

    def __init__(self, upper: Upper) -> None:
        self.upper = upper

    def __deepcopy__(self, _memo: dict[int, Any]) -> _Shared:
        return copy.copy(self)
