"""How much of what a device sent is trained on (`docs/decisions/0023-what-one-device-can-change.md`).

Nothing where the others' samples contradict it; where they make it doubtful, no more than a few times what others have.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mobillm_flower.core.contradiction import judge
from mobillm_flower.server.batches import BatchLoader
from mobillm_flower.server.objective import FitTargets
from mobillm_flower.server.rows import Rows
from mobillm_flower.server.sampler import draw_order, occurrence
from mobillm_flower.wire.target_bytes import TargetBatch

_FEWEST_DEVICES = 5
_DOUBTED = 3  # times the median of the devices' samples
_MOST_ROWS = 2048  # judged together
_LEAST_EACH = 32  # of a device, where there are many: they are then judged in several parts
_MOST_VALUES = 1 << 26  # 256 MiB of them
_READ = 1024
_DRAWS = 7  # a phase of `draw_order`


def heard(
    rows: Rows, loader: BatchLoader, targets: Callable[[TargetBatch], FitTargets], *, key: str, seed: int
) -> Rows:
    """Return the rows that training uses, of each task by itself: the same text has another label in another.

    Rows of fewer than five devices, and of language modelling, are all used. It depends on the rows, on who sent which,
    and on the key; where no device is contradicted or doubted, all rows are returned.

    Parameters
    ----------
    rows : Rows
        All that are held, in the order of their digests.
    loader, targets
        As of `fit`.
    key, seed : str, int
        What decides which of a device's rows are looked at: a secret in hex, or where that is empty the seed.
    """
    seed = int(key[:16], 16) if key else seed
    tasks, kept = rows.column("task"), np.ones(len(rows), bool)
    for task in np.unique(tasks):
        kept[tasks == task] = _heard_of_task(rows.take(tasks == task), loader, targets, seed)
    return rows if kept.all() else rows.take(kept)


def _heard_of_task(
    rows: Rows, loader: BatchLoader, targets: Callable[[TargetBatch], FitTargets], seed: int
) -> np.ndarray:
    """Return which rows of one task are used, [n] bool."""
    devices = rows.column("device")
    counts = np.bincount(devices)
    present = np.flatnonzero(counts)
    if len(present) < _FEWEST_DEVICES or loader.contract.per_token:
        return np.ones(len(rows), bool)
    order = draw_order(len(rows), seed=seed, phase=_DRAWS, number=0)
    rank = np.empty(len(rows), np.int64)  # of each row among its device's, in that order
    rank[order] = occurrence(devices[order])
    median = int(np.median(counts[present]))
    limits = np.full(len(counts), len(rows))
    types = rows.column("backbone")
    for type_ in np.unique(types).tolist():
        of_type = np.unique(devices[types == type_])
        if len(of_type) < _FEWEST_DEVICES:
            continue
        shuffled = of_type[draw_order(len(of_type), seed=seed, phase=_DRAWS, number=1)]
        spec = loader.specs[rows.names("backbone")[type_]]
        most = min(_MOST_ROWS, _MOST_VALUES // (spec.row_shape[0] * spec.alignment.num_features))
        for part in np.array_split(shuffled, -(-len(shuffled) * _LEAST_EACH // most)):
            each = min(median, max(1, most // len(part)))
            chosen = np.flatnonzero((types == type_) & np.isin(devices, part) & (rank < each))
            members = rows.take(chosen)
            vectors, wanted = _vectors(members, loader, targets)
            judgement = judge(vectors, wanted, np.searchsorted(np.sort(part), devices[chosen]), len(part))
            limits[np.sort(part)[judgement.doubted]] = _DOUBTED * median
            limits[np.sort(part)[judgement.contradicted]] = 0
    used: np.ndarray = rank < limits[devices]
    return used


def _vectors(rows: Rows, loader: BatchLoader, targets: Callable[[TargetBatch], FitTargets]) -> tuple[Tensor, Tensor]:
    """Return the joined vectors [n, D] of samples of one type, each layer-normalised, and their targets [n, K]."""
    vectors, wanted = [], []
    for start in range(0, len(rows), _READ):
        (batch,), of_batch = loader.load(rows[start : start + _READ])
        values = batch.rows.cpu()
        width = loader.specs[batch.backbone].width
        normal = functional.layer_norm(values.reshape(*values.shape[:-1], -1, width), (width,)).flatten(1)
        if batch.lengths is not None:
            normal = torch.segment_reduce(normal, "mean", lengths=batch.lengths.cpu(), axis=0)
        vectors.append(normal)
        made = targets(of_batch)
        if made.labels is None:
            wanted.append(made.targets.cpu())
        else:  # of Δy, one that is twice as long would count twice
            wanted.append(functional.one_hot(made.labels.cpu(), loader.contract.num_outputs).float())
    return torch.cat(vectors), torch.cat(wanted)
