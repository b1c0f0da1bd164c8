"""A fit in closed form: samples of the cache, in parts of fixed size in an order that their digests give."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mobillm_flower.core.placement import moved
from mobillm_flower.core.side_networks import FitsInClosedForm, FittedPart, LabelledBatch
from mobillm_flower.server.batches import BatchLoader
from mobillm_flower.server.label_shift import LabelShift
from mobillm_flower.server.objective import MAX_WEIGHT, FitTargets
from mobillm_flower.server.rows import Rows
from mobillm_flower.wire.target_bytes import TargetBatch

_PART = 1024


class StoppedError(Exception):
    """Reading samples for a fit was ended by `stop`."""


@dataclass(frozen=True)
class Measured:
    """What a fit says of itself.

    Parameters
    ----------
    parts : int
        Parts that were read.
    loss, accuracy : float or None
        Cross-entropy and share of labels predicted, of samples each left out of the fit; None where labels cannot be
        read, or the side network does not say.
    """

    parts: int
    loss: float | None
    accuracy: float | None


def fit(
    network: FitsInClosedForm,
    rows: Rows,
    loader: BatchLoader,
    *,
    targets: Callable[[TargetBatch], FitTargets],
    shift: LabelShift,
    scores: Callable[[Tensor, Tensor], Tensor],
    device_cap: int,
    stop: Callable[[], bool],
) -> Measured:
    """Fit a side network to rows, in an order that follows from all of them and that no device chooses.

    Parameters
    ----------
    targets, scores
        As of `Trainer`.
    shift : LabelShift
        A sample weighs P(y) / P(y | type) of its label, at most `MAX_WEIGHT`.
    device_cap : int
        Samples of a device that has more weigh as much as so many together; 0: each weighs the same.
    stop : callable
        Asked before each part.

    Raises
    ------
    StoppedError
        `stop` said so; the side network predicts what it did before.
    """
    parts, rows = -(-len(rows) // _PART), _shuffled(rows)
    weights = _device_weights(rows, device_cap)

    def samples() -> Iterator[LabelledBatch]:
        for start in range(0, len(rows), _PART):
            if stop():
                raise StoppedError
            yield from _read(rows[start : start + _PART], weights[start : start + _PART], loader, targets, shift)

    return _measured(parts, network.fit(samples()), loader, scores)


def _shuffled(rows: Rows) -> Rows:
    """Return rows in the order of their digests' hashes under all digests.

    The first rows of a fit give the centre and the last are predicted left out. A device can try texts until their
    digests are low, but does not know the other devices' digests.
    """
    digests = rows.column("digest")
    under_all = hashlib.sha256(digests.tobytes())

    def hashed(digest: bytes) -> bytes:
        mixed = under_all.copy()
        mixed.update(digest)
        return mixed.digest()

    hashes = np.array([hashed(digest.tobytes()) for digest in digests], "V32")
    return rows.take(np.argsort(hashes, kind="stable"))


def _read(
    rows: Rows,
    weights: np.ndarray,
    loader: BatchLoader,
    make_targets: Callable[[TargetBatch], FitTargets],
    shift: LabelShift,
) -> Iterator[LabelledBatch]:
    """Yield the samples of some rows, one batch a backbone type."""
    batches, of_all = loader.load(rows)
    wanted = make_targets(of_all)
    types = rows.column("backbone")
    of_rows = torch.cat(
        [torch.from_numpy(weights[types == rows.names("backbone").index(batch.backbone)]) for batch in batches]
    )
    of_rows = moved(of_rows, loader.device)
    shifted = shift(batches)
    if shifted is not None and wanted.labels is not None:
        rare = (-shifted.gather(1, wanted.labels[:, None])).exp().clamp_max(MAX_WEIGHT)
        of_rows = of_rows * rare[:, 0]
    start = 0
    for batch in batches:
        part = slice(start, start + batch.num_samples)
        start = part.stop
        protection = loader.specs[batch.backbone].protection(loader.contract)
        yield LabelledBatch(
            batch,
            None if wanted.labels is None else wanted.labels[part],
            protection.label_rates,
            protection.mixture,
            protection.variance,
            targets=wanted.targets[part],
            base=None if wanted.base is None else wanted.base[part],
            weights=of_rows[part],
            calibrate=wanted.calibrate,
            scale=wanted.scale,
            protected=loader.labels_protected,
        )


def _device_weights(rows: Rows, device_cap: int) -> np.ndarray:
    """Return what each row counts for the number of rows that its device sent, [n] float64."""
    if not device_cap:
        return np.ones(len(rows))
    devices = rows.column("device")
    counts = np.bincount(devices) if len(devices) else np.zeros(1, np.int64)
    weights: np.ndarray = np.minimum(1.0, device_cap / counts[devices])
    return weights


def _measured(
    parts: int, fitted: list[FittedPart], loader: BatchLoader, scores: Callable[[Tensor, Tensor], Tensor]
) -> Measured:
    correct, loss, count = 0, 0.0, 0
    for part in fitted:
        if part.labels is None or part.base is None or loader.labels_protected:
            continue
        predicted = scores(part.scores, part.base)
        correct += int((predicted.argmax(1) == part.labels).sum())
        hot = functional.one_hot(part.labels, predicted.shape[1])
        loss += float((hot - predicted).square().sum())
        count += len(part.labels)
    return Measured(parts, loss / count if count else None, correct / count if count else None)
