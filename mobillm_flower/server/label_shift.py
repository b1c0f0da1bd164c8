"""How labels lie differently over backbone types, so that a type is not learned as a hint at the label.

A type's devices hold some labels more often than the fleet does, and each type has an alignment of its own: without a
correction the network learns which labels go with a type, which holds on samples like the uploads and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mobillm_flower.core.side_networks import ActivationBatch
from mobillm_flower.server.batches import BatchLoader
from mobillm_flower.server.objective import recovered_truth
from mobillm_flower.server.rows import Rows

_CHUNK = 4096  # targets decoded at a time


class LabelShift:
    """log P(y | type) / P(y) of the samples counted: the logit adjustment (Menon et al., 2007.07314) by type.

    Where the server cannot read labels (regression), or one type alone has samples, there is none.

    Parameters
    ----------
    loader : BatchLoader
        Reads targets.
    """

    def __init__(self, loader: BatchLoader) -> None:
        self._loader = loader
        self._counts: dict[str, Tensor] = {}
        self._from_round = 0

    def count(self, rows: Rows, *, before_round: int) -> None:
        """Count the labels of rows, of which earlier rounds' are counted already.

        Parameters
        ----------
        rows : Rows
            All that training may see; they belong to rounds before `before_round`.
        before_round : int
            Rows of later calls from these rounds are passed by.
        """
        fresh = rows.take(rows.column("round") >= self._from_round)
        self._from_round = before_round
        contract = self._loader.contract
        for start in range(0, len(fresh), _CHUNK):
            for backbone, targets in self._loader.targets(fresh[start : start + _CHUNK]).items():
                truth = recovered_truth(contract, targets)
                if truth is not None:
                    counts = torch.bincount(truth[0], minlength=contract.num_outputs)
                    self._counts[backbone] = self._counts.get(backbone, 0) + counts

    def recount(self, rows: Rows) -> None:
        """Count the labels of rows anew, in place of what was counted."""
        self._counts, self._from_round = {}, 0
        self.count(rows, before_round=0)

    def __call__(self, batches: Sequence[ActivationBatch]) -> Tensor | None:
        """Return the shift of each sample of a batch, [B, K] float32; None where there is none.

        P(y) is smoothed by one sample a class, P(y | type) by one sample of P(y), so that a label that a type never
        had is finitely unlikely there.
        """
        if len(self._counts) < 2:
            return None
        total = torch.stack(list(self._counts.values())).sum(0).double() + 1
        fleet = total / total.sum()
        parts = []
        for batch in batches:
            own = self._counts.get(batch.backbone)
            shift = torch.zeros_like(fleet) if own is None else ((own + fleet) / (own.sum() + 1) / fleet).log()
            parts.append(shift.float().expand(batch.num_samples, -1))
        return torch.cat(parts).to(batches[0].rows.device)
