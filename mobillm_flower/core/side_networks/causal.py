"""The additive side network with a light causal mixer in each block: it sees a text's earlier tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mobillm_flower.core.side_networks.additive import AdditiveSideNetwork
from mobillm_flower.core.side_networks.config import SIDE_NETWORKS
from mobillm_flower.core.side_networks.protocol import ActivationBatch, Needs


@SIDE_NETWORKS.register("causal")
class CausalSideNetwork(AdditiveSideNetwork):
    """Additive side network whose adapters read the tokens before.

    A depthwise convolution inside the adapter, where a token has r values: with z_t = W_down LN(s_in,t) the adapter is
    h_t = s_in,t + W_up φ(z_t + Σ_j c_j ⊙ z_{t−j}), j = 1 … T, over the tokens of the same text. The taps c_j ∈ R^r
    start at zero, so that the network starts as the additive one.

    Attributes
    ----------
    num_taps : int
        T, the tokens before a token that a block reads; M blocks reach M·T tokens back.

    Parameters
    ----------
    num_blocks, bottleneck : int
        M, r.
    others
        As in `AdditiveSideNetwork`.
    """

    needs = Needs(every_token=True)
    num_taps = 4

    def __init__(self, *, num_blocks: int, bottleneck: int, predicts_tokens: bool = False, **others: Any) -> None:
        super().__init__(num_blocks=num_blocks, bottleneck=bottleneck, predicts_tokens=predicts_tokens, **others)
        self.taps = nn.Parameter(torch.zeros(num_blocks, self.num_taps, bottleneck))

    def forward(self, batches: Sequence[ActivationBatch]) -> Tensor:
        """Return s(A), [B, K], samples (in language modelling tokens) in the order of the batches."""
        place = torch.cat([_places(batch) for batch in batches])  # [N]: how many tokens of the text are before

        def mix(block: int, narrow: Tensor) -> Tensor:
            mixed = narrow
            for j, tap in enumerate(self.taps[block], start=1):
                mixed = mixed + tap * narrow.roll(j, 0) * (place >= j).unsqueeze(1)
            return mixed

        return self._read(self._through(batches, mix), batches)

    def step(self, batch: ActivationBatch, before: Tensor | None, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Return s(A) of the next tokens, and what these leave for those after them.

        Parameters
        ----------
        batch : ActivationBatch
            T rows each of B texts, [B·T, M, P·d_b].
        before : Tensor or None
            What the texts' tokens before left, [B, M, H, r] float32, of which the last T are read; None: there are
            none.
        seen : Tensor
            [B, T] bool; later tokens do not read those where it is false: padding, and what precedes the first token
            that the network was trained on.

        Returns
        -------
        tuple
            s(A) [B·T, K], and [B, M, T, r] float32.
        """
        texts, count = seen.shape
        taps = self.num_taps
        left: list[Tensor] = []

        def mix(block: int, narrow: Tensor) -> Tensor:
            own = narrow.view(texts, count, -1)  # [B, T, r]
            left.append(own * seen.unsqueeze(2))
            past = left[-1] if before is None else torch.cat([before[:, block, -taps:], left[-1]], 1)
            past = nn.functional.pad(past, (0, 0, taps + count - past.shape[1], 0))  # [B, taps + T, r]
            windows = past[:, :-1].unfold(1, taps, 1)  # [B, T, r, taps]: the tokens before each, the nearest last
            own = own + (windows * self.taps[block].flip(0).T).sum(3)
            return own.reshape(texts * count, -1)

        side = self._read(self._through([batch], mix), [batch])
        return side, torch.stack(left, 1)


def _places(batch: ActivationBatch) -> Tensor:
    """Return each row's place in its text, [N], from 0."""
    lengths = batch.lengths if batch.sequences is None else batch.sequences
    if lengths is None:
        return batch.rows.new_zeros(len(batch.rows), dtype=torch.long)
    starts = torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths, output_size=len(batch.rows))
    return torch.arange(len(batch.rows), device=starts.device) - starts
