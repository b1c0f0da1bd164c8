"""One backbone type's samples on the way to its solution in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional

from mobillm_flower.core.side_networks.calibration import likeliest_scores
from mobillm_flower.core.side_networks.class_scores import ClassScores, discriminant_of_ridge
from mobillm_flower.core.side_networks.closed_form_head import Head
from mobillm_flower.core.side_networks.protocol import FittedPart, LabelledBatch
from mobillm_flower.core.side_networks.ridge import Ridge, Solution
from mobillm_flower.core.side_networks.task_sums import TaskSums
from mobillm_flower.core.targets import SAME
from mobillm_flower.errors import MismatchError

_FEWEST_CLASSES = 3  # of two, a discriminant has the ridge regression's W
_CENTRED_BY = 2048  # the first rows that give the centre
_LONGEST = 4.0
"""Times the median length that a vector counts as at most: what a backbone makes of texts does not come near."""


@dataclass
class Classes:
    """What samples weigh by class, and whether a linear discriminant of them can be had.

    It can where p_b is the same for all samples, which has the classes' sums among those of a ridge regression; the
    labels are the samples' own; there is no noise; and there are three classes or more.

    Parameters
    ----------
    counts, squared_counts : Tensor
        Σw and Σw² of each class, [K] float64.
    base : Tensor or None
        p_b of the first sample, [K].
    told_apart : bool
        Whether it can, as far as is seen.
    """

    counts: Tensor
    squared_counts: Tensor
    base: Tensor | None = None
    told_apart: bool = True

    def add(self, part: LabelledBatch) -> None:
        """Count samples."""
        if part.labels is None or part.base is None or part.protected or part.variance:
            self.told_apart = False
            return
        self.base = part.base[0] if self.base is None else self.base
        same = bool(((part.base - self.base).abs() <= SAME).all())
        self.told_apart = self.told_apart and same and len(self.counts) >= _FEWEST_CLASSES
        self.counts.index_add_(0, part.labels, _weights(part))
        self.squared_counts.index_add_(0, part.labels, _weights(part).square())


@dataclass
class Fit:
    """One type's head while it is fitted: the first vectors wait until they give the centre.

    Parameters
    ----------
    sums : TaskSums or None
        Of tasks one after another: what their samples are added to.
    carried : bool
        Whether earlier tasks' samples are in the sums, so that those that are there are passed by.
    num_vectors : int
        Vectors of a sample, V, each of which counts as at most `_LONGEST` times as long as the median one at its place
        among the samples that give the centre: a sample as long as the wire allows would decide alone.
    """

    head: Head
    sums: TaskSums | None = None
    carried: bool = False
    num_vectors: int = 1
    waiting: list[tuple[Tensor, LabelledBatch]] = field(default_factory=list)
    ridge: Ridge | None = None
    longest: Tensor | None = None  # [V]
    truths: list[tuple[Tensor | None, ...]] = field(default_factory=list)  # of the rows that the ridge keeps
    classes: Classes | None = None
    calibrate: bool = False
    protected: bool = False
    scale: float = 1.0

    def add(self, vectors: Tensor, part: LabelledBatch) -> None:
        """Take in joined vectors [B, D]; raises MismatchError where a task's labels cannot be read."""
        if self.sums is not None and (part.labels is None or part.base is None):
            raise MismatchError(
                "tasks one after another need labels that the server can read; leave out their protection"
            )
        if self.ridge is not None:
            self._take(vectors, part)
            return
        self.waiting.append((vectors, part))
        if self.head.knows_tasks or sum(len(earlier) for earlier, _ in self.waiting) >= _CENTRED_BY:
            self._begin()

    def solve(self, name: str) -> FittedPart | None:
        """Set the head and return the predictions of the last samples, each left out; None where there are none."""
        if self.ridge is None:
            self._begin()
        assert self.ridge is not None
        if not self.truths:
            return None
        solution = self.ridge.solve()
        weight, bias, left_out = solution.weight, solution.bias, solution.left_out
        labels, base, counts = (_last(values, len(left_out)) for values in zip(*self.truths, strict=True))
        factor, offsets = 1.0, torch.zeros_like(bias)
        if self.sums is None and self.classes is not None and self.classes.told_apart:
            assert labels is not None
            assert base is not None
            assert counts is not None
            scores = self._discriminant(solution, self.classes)
            weight, bias, left_out = self._turned(solution, scores)
            factor, offsets = likeliest_scores(left_out, labels, base, counts, in_logits=True, with_offsets=True)
            if not self.calibrate:
                least = self.scale * scores.factor
                factor, offsets = least, least / factor * offsets
        elif self.sums is not None and not self.calibrate:  # Ridge is given scaled targets otherwise
            factor = self.scale
        elif labels is not None and base is not None and (self.calibrate or not self.protected):
            assert counts is not None
            factor, offsets = likeliest_scores(
                left_out if self.calibrate else left_out / self.scale,
                labels,
                base,
                counts,
                in_logits=self.calibrate,
                with_offsets=self.sums is None and not self.protected,
            )
            offsets = offsets if self.calibrate else self.scale * offsets
        left_out = factor * left_out + offsets
        self.head.set_columns(factor * weight, factor * bias + offsets)
        if self.sums is not None:
            self.head.tell_tasks(self.sums, factor)
        return FittedPart(name, left_out.float(), labels, base, solution.penalty)

    def _discriminant(self, solution: Solution, classes: Classes) -> ClassScores:
        scale = 1.0 if self.calibrate else self.scale
        return discriminant_of_ridge(
            solution.explained / scale**2,
            solution.weight @ solution.weight.T / scale**2,
            classes.counts,
            classes.squared_counts,
            penalty=solution.penalty,
            freedom=solution.freedom,
        )

    def _turned(self, solution: Solution, scores: ClassScores) -> tuple[Tensor, Tensor, Tensor]:
        """Return W, b and scores of left-out samples, which count in what their ridge scores are turned by."""
        turn = scores.turn / (1.0 if self.calibrate else self.scale)
        return (
            turn.T @ solution.weight,
            (solution.bias - solution.level) @ turn + scores.bias,
            (solution.left_out - solution.level) @ turn + scores.bias,
        )

    def _begin(self) -> None:
        waiting = torch.cat([vectors for vectors, _ in self.waiting])
        self.longest = _LONGEST * self._lengths(waiting).median(0).values
        if not self.head.knows_tasks:
            weights = torch.cat([_weights(part) for _, part in self.waiting])
            self.head.centre_on(self._shortened(waiting).double(), weights)
        noise = self.head.noise(self.waiting[0][1].variance)
        outputs = self.head.tasks[-1] if self.head.tasks else len(self.head.bias)
        self.ridge = Ridge(self.head.weight.shape[1], outputs, noise=noise)
        for vectors, part in self.waiting:
            self._take(vectors, part)
        self.waiting = []

    def _take(self, vectors: Tensor, part: LabelledBatch) -> None:
        assert self.ridge is not None
        features = self.head.features(self._shortened(vectors))
        if self.sums is not None:
            features, part = self._of_last_task(self.sums, features, part)
        if not len(features):
            return
        assert part.targets is not None
        self.ridge.add(features, part.targets, _weights(part))
        if self.classes is None:
            none = part.targets.new_zeros(part.targets.shape[1], dtype=torch.double)
            self.classes = Classes(none, none.clone())
        self.classes.add(part)
        self.truths = [*self.truths, (part.labels, part.base, _weights(part))][-self.ridge.num_parts :]
        self.calibrate, self.protected, self.scale = part.calibrate, part.protected, part.scale

    def _lengths(self, vectors: Tensor) -> Tensor:
        """Return L2 norms [B, V] of joined vectors [B, D]."""
        lengths: Tensor = torch.linalg.vector_norm(vectors.view(len(vectors), self.num_vectors, -1), dim=2)
        return lengths

    def _shortened(self, vectors: Tensor) -> Tensor:
        """Return joined vectors [B, D], those that are too long cut to the longest; others stay bit by bit."""
        assert self.longest is not None
        lengths = self._lengths(vectors)
        if not bool((too_long := lengths > self.longest).any()):
            return vectors
        factors = torch.where(too_long, self.longest / lengths, 1.0)
        return (vectors.view(len(vectors), self.num_vectors, -1) * factors[:, :, None]).flatten(1)

    def _of_last_task(self, sums: TaskSums, features: Tensor, part: LabelledBatch) -> tuple[Tensor, LabelledBatch]:
        """Add samples to the sums, and return those of the last task, with onehot(y) − p_b inside it as targets."""
        assert part.labels is not None
        assert part.base is not None
        sizes, weights = self.head.tasks, _weights(part)
        ends = torch.tensor(sizes, device=features.device).cumsum(0)
        tasks = torch.bucketize(part.labels, ends, right=True)
        own, classes = tasks == len(sizes) - 1, sizes[-1]
        added = own if self.carried else torch.ones_like(own)
        sums.add(features[added], tasks[added], weights[added])
        labels = part.labels[own] - (sum(sizes) - classes)
        base = part.base[own, -classes:] * (sum(sizes) / classes)
        targets = functional.one_hot(labels, classes) - base
        return features[own], replace(part, labels=labels, base=base, targets=targets, weights=weights[own])


def _weights(part: LabelledBatch) -> Tensor:
    """Return what each sample counts, [B] float64."""
    if part.weights is None:
        return torch.ones(part.batch.num_samples, dtype=torch.double, device=part.batch.rows.device)
    return part.weights.double()


def _last(values: Sequence[Tensor | None], count: int) -> Tensor | None:
    """Return the last `count` of the samples' values, or None where they are not known."""
    known = [value for value in values if value is not None]
    return torch.cat(known)[-count:] if len(known) == len(values) else None
