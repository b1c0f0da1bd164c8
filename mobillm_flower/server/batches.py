"""From rows of the cache to tensors: decode, and keep decoded what fits a byte budget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from mobillm_flower.core.codecs import CODECS
from mobillm_flower.core.language import read_asked
from mobillm_flower.core.pivots import PIVOTS
from mobillm_flower.core.placement import CPU
from mobillm_flower.core.side_networks import ActivationBatch
from mobillm_flower.core.sparse import decode_samples
from mobillm_flower.server.cache import ActivationCache
from mobillm_flower.server.rows import RowRef, Rows
from mobillm_flower.wire.contract import ExtractionSpec, TaskContract
from mobillm_flower.wire.learned_tasks import LearnedTasks
from mobillm_flower.wire.target_bytes import TargetBatch, decode_targets

_PART = 256  # rows at a time that no step is taken on


class BatchLoader:
    """Reads and decodes batches.

    Samples decoded once stay in memory until `memory_bytes` are used; later ones are decoded again each time.
    Epochs visit every sample equally often, so it does not matter which ones stay.

    Parameters
    ----------
    cache : ActivationCache
        Where the rows are.
    specs : mapping of str to ExtractionSpec
        What each backbone type uploads.
    contract : TaskContract
        The task.
    tasks : LearnedTasks, optional
        The tasks whose rows the cache holds, where they are several: `contract` is then that of all together.
    memory_bytes : int
        Budget of the decoded tier.
    device : torch.device
        Where batches go; decoded samples are kept in the CPU's memory.
    """

    def __init__(
        self,
        cache: ActivationCache,
        specs: Mapping[str, ExtractionSpec],
        contract: TaskContract,
        *,
        memory_bytes: int,
        device: torch.device = CPU,
        tasks: LearnedTasks | None = None,
    ) -> None:
        self.cache, self.specs, self.device = cache, dict(specs), device
        self.contract, self.tasks = tasks.together if tasks else contract, tasks
        self.memory_bytes = memory_bytes
        self._decoded: dict[int, tuple[Tensor, bytes]] = {}
        self._used = 0

    @property
    def used_bytes(self) -> int:
        """Bytes of activations that are held decoded."""
        return self._used

    @property
    def labels_protected(self) -> bool:
        """Whether a label that can be read from a target may not be the sample's own."""
        return any(spec.labels_protected for spec in self.specs.values())

    def add_type(self, spec: ExtractionSpec) -> None:
        """Read rows of one more backbone type too."""
        self.specs[spec.backbone] = spec

    def load(self, rows: Sequence[RowRef]) -> tuple[list[ActivationBatch], TargetBatch]:
        """Return activations grouped by backbone type, and targets in the same order, on the device."""
        groups: dict[str, list[RowRef]] = {}
        for row in rows:
            groups.setdefault(row.backbone, []).append(row)
        batches, targets = [], []
        for backbone, members in groups.items():
            spec = self.specs[backbone]
            samples = self._samples(members, spec)
            tokens, activations = [row.tokens for row in members], torch.cat([rows for rows, _ in samples])
            blobs, numbers = [target for _, target in samples], [row.task for row in members]
            of_type = self._targets(blobs, spec, tokens, numbers).to(self.device)
            if spec.whole_texts:
                batch, of_type = _of_asked(ActivationBatch(backbone, activations).to(self.device), of_type)
                batches.append(batch)
                targets.append(of_type)
                continue
            lengths = sequences = None
            if self.contract.per_token:  # the side network's output of a token is of that token: nothing is averaged
                sequences = torch.tensor(tokens)
            elif PIVOTS[spec.pivot].per_token:
                lengths = torch.tensor(tokens)
            batch = ActivationBatch(backbone, activations, lengths, sequences).to(self.device)
            batches.append(batch)
            targets.append(replace(of_type, base=batch.rows[:, -1]) if self.contract.per_token else of_type)
        return batches, TargetBatch.join(targets)

    def in_parts(self, rows: Sequence[RowRef]) -> Iterator[tuple[list[ActivationBatch], TargetBatch]]:
        """Load rows a few at a time, in their order."""
        for start in range(0, len(rows), _PART):
            yield self.load(rows[start : start + _PART])

    def targets(self, rows: Rows) -> dict[str, TargetBatch]:
        """Return the targets of rows by backbone type, without their activations, on the CPU."""
        by_type = rows.column("backbone")
        targets = {}
        for number in np.unique(by_type).tolist():
            backbone, members = rows.names("backbone")[number], rows.take(by_type == number)
            blobs = self.cache.targets(row.id for row in members)
            tokens, numbers = members.column("tokens").tolist(), members.column("task").tolist()
            targets[backbone] = self._targets(blobs, self.specs[backbone], tokens, numbers)
        return targets

    def _targets(
        self, blobs: Sequence[bytes], spec: ExtractionSpec, tokens: Sequence[int], tasks: Sequence[int]
    ) -> TargetBatch:
        """Decode targets; those of several tasks are spread over the classes of all."""
        if self.tasks is None:
            return decode_targets(blobs, spec, self.contract, tokens)
        parts: list[TargetBatch] = []
        order: list[int] = []
        for task in sorted(set(tasks)):
            places = [i for i, number in enumerate(tasks) if number == task]
            decoded = decode_targets([blobs[i] for i in places], spec, self.tasks.in_order[task])
            parts.append(self.tasks.spread(decoded, task))
            order += places
        return TargetBatch.join(parts).take(torch.tensor(order).argsort())

    def _samples(self, rows: Sequence[RowRef], spec: ExtractionSpec) -> list[tuple[Tensor, bytes]]:
        """Return (activations [T, M, P·d], target) of rows of one type."""
        missing = [row for row in rows if row.id not in self._decoded]
        fresh: dict[int, tuple[Tensor, bytes]] = {}
        if missing:
            raw = self.cache.read(row.id for row in missing)
            counts = [row.tokens * spec.vectors_per_row for row in missing]
            blocks, _, width = spec.row_shape
            vectors = decode_samples([a for a, _ in raw], counts, width, CODECS[spec.codec], spec.keep)
            for row, part, (_, target) in zip(missing, torch.split(vectors, counts), raw, strict=True):
                sample = part.reshape(row.tokens, blocks, -1)  # [T·M·P, d] -> [T, M, P·d]
                fresh[row.id] = (sample, target)
                size = sample.numel() * sample.element_size()
                if self._used + size <= self.memory_bytes:
                    self._decoded[row.id] = (sample.clone(), target)  # not a view of the whole batch
                    self._used += size
        return [self._decoded.get(row.id) or fresh[row.id] for row in rows]


def _of_asked(batch: ActivationBatch, targets: TargetBatch) -> tuple[ActivationBatch, TargetBatch]:
    """Return states with their chunks and the targets of tokens in the loss; what s(A) is added to is zero."""
    assert targets.labels is not None
    read = read_asked(targets.labels)
    base = batch.rows.new_zeros(len(read.labels), batch.rows.shape[2])
    return replace(batch, sequences=read.chunks, asked=read.asked), TargetBatch(None, read.labels, base)
