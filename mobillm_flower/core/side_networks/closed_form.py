"""The side network in closed form: a ridge solution over all sampled layers, and over random features of them.

Nothing is learned by steps, so it is a function of the samples alone: better than the additive network trained from
zero in most tasks, in a fraction of the time (`docs/decisions/0017-solved-not-searched.md`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from mobillm_flower.core.side_networks.calibration import likeliest_scores
from mobillm_flower.core.side_networks.config import SIDE_NETWORKS, AlignmentSpec
from mobillm_flower.core.side_networks.protocol import ActivationBatch, FittedPart, LabelledBatch
from mobillm_flower.core.side_networks.ridge import Ridge
from mobillm_flower.core.side_networks.task_sums import TaskRidge, TaskSums
from mobillm_flower.core.targets import EPSILON
from mobillm_flower.errors import MismatchError

_CENTRED_BY = 2048  # the first rows, in the order of their digests, that give the centre


@SIDE_NETWORKS.register("closed-form")
class ClosedFormSideNetwork(nn.Module):
    """s(A) = W·[z, φ(z)] + b, for each backbone type its own.

    z [D]: the sampled vectors, joined and centred; D = M·P·d_b. Each vector is layer-normalised first, or, of an
    encoder, divided by what it varies after the centring: one constant a block and vector, so that a comparison of two
    texts keeps how alike they are. Vectors that came standardised stay as they are. No value is scaled by its own
    deviation: of one that hardly varies, most is the codec's rounding.
    φ(z) = |H S₂ H S₁ z|·√(D/2F) [F]: random features, H the Walsh-Hadamard transform and S random signs drawn from the
    seed, so that nothing but W grows with them (cf. RanPAC, 2307.02251). A relu is u/2 + |u|/2, and beside z the first
    part says nothing new. W, b: ridge regression, see `Ridge`, and b with what `likeliest_scores` adds for each class.
    With pivot `all` the vectors are the tokens' mean.

    Parameters
    ----------
    types : mapping of str to AlignmentSpec
        Backbone fingerprint to input shape.
    num_blocks, num_outputs : int
        M, K.
    input_norm : bool
        Whether vectors are layer-normalised.
    random_features : int
        F; 0: the solution is linear.
    seed : int
        What the signs are drawn from.
    vector_scale : bool
        Whether each vector is divided by the root mean square of its centred values, over all samples.
    tasks : tuple of int
        K_t of tasks that come one after another: sums of all of them are solved, to which samples of the last are
        added (`TaskSums`); samples of earlier ones are passed by. Where no sums were kept of earlier tasks, their
        samples must be there, and all are fitted. Centre and vector scales are those of the first task.
    """

    def __init__(
        self,
        *,
        types: Mapping[str, AlignmentSpec],
        num_blocks: int,
        num_outputs: int,
        input_norm: bool = True,
        random_features: int = 0,
        seed: int = 0,
        vector_scale: bool = False,
        tasks: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.tasks = tasks
        self._kept: dict[str, dict[str, Tensor]] = {}  # sums of earlier tasks by type
        self._sums: dict[str, TaskSums] = {}  # of these and the last task
        self.num_blocks, self.num_outputs, self.input_norm = num_blocks, num_outputs, input_norm
        self.types, self.random_features = dict(types), random_features
        self.heads = nn.ModuleDict(
            {
                name: _Head(
                    num_blocks * spec.num_features,
                    num_outputs,
                    random_features,
                    seed,
                    vectors=num_blocks * spec.num_vectors if vector_scale else 0,
                )
                for name, spec in sorted(self.types.items())
            }
        )

    def learning_rate_factor(self, _parameter: str) -> float:
        """Return 0: nothing is learned by steps."""
        return 0.0

    def forward(self, batches: Sequence[ActivationBatch]) -> Tensor:
        """Return s(A), [B, K] float32, samples in the order of the batches.

        Raises
        ------
        MismatchError
            A type has no head here, or rows have another shape.
        """
        return torch.cat([self._head(batch)(self._vectors(batch)) for batch in batches])

    def fit(self, samples: Iterable[LabelledBatch]) -> list[FittedPart]:
        """Solve each type's head from its samples; a type without any keeps the head that it has."""
        fits: dict[str, _Fit] = {}
        with torch.no_grad():
            for part in samples:
                name = part.batch.backbone
                if name not in fits:
                    fits[name] = _Fit(self._head(part.batch), self._empty_sums(name, part.batch.rows.device))
                fits[name].add(self._vectors(part.batch), part)
            measured = [fit.solve(name) for name, fit in sorted(fits.items()) if fit.has_samples]
            self._sums = {name: fit.sums for name, fit in fits.items() if fit.sums is not None}
            return measured

    def begin_task(self, kept: Mapping[str, Tensor]) -> None:
        """Go on with sums of earlier tasks, from `end_task`; with none, fit samples alone."""
        self._kept, self._sums = {}, {}
        for name, value in kept.items():
            backbone, of_type = name.split(".", 1)
            self._kept.setdefault(backbone, {})[of_type] = value

    def end_task(self) -> dict[str, Tensor]:
        """Return the sums of all tasks so far, float64; none where samples were fitted instead."""
        for name in self._kept.keys() - self._sums.keys():
            sums = self._empty_sums(name, torch.device("cpu"))
            assert sums is not None
            self._sums[name] = sums
        return {
            f"{t}.{name}": value for t, sums in sorted(self._sums.items()) for name, value in sums.tensors().items()
        }

    def _empty_sums(self, name: str, device: torch.device) -> TaskSums | None:
        """Return the sums that a type's samples of the last task are added to; None: samples are fitted."""
        kept, width = self._kept.get(name, {}), self.num_blocks * self.types[name].num_features + self.random_features
        if len(self.tasks) == 1 or (self._kept and not kept):
            return TaskSums.empty(width, self.tasks, device)
        return TaskSums.carried(width, self.tasks, kept, device) if kept else None

    def _head(self, batch: ActivationBatch) -> _Head:
        if batch.backbone not in self.types:
            raise MismatchError(
                f"backbone {batch.backbone[:12]} has no head in this side network; it knows "
                f"{', '.join(name[:12] for name in self.types)}"
            )
        head = self.heads[batch.backbone]
        assert isinstance(head, _Head)
        return head

    def _vectors(self, batch: ActivationBatch) -> Tensor:
        """Return the joined vectors of samples, [B, D]."""
        expected = (self.num_blocks, self.types[batch.backbone].num_features)
        if batch.rows.shape[1:] != expected:
            raise MismatchError(
                f"activations have shape {tuple(batch.rows.shape[1:])} a row, the side network takes {expected}"
            )
        rows = batch.rows
        if self.input_norm:
            vectors = rows.reshape(*rows.shape[:-1], -1, self.types[batch.backbone].width)  # [N, M, P, d_b]
            rows = functional.layer_norm(vectors, vectors.shape[-1:])
        rows = rows.flatten(1)  # [N, D]
        if batch.lengths is not None:
            rows = torch.segment_reduce(rows, "mean", lengths=batch.lengths, axis=0)  # [B, D]
        return rows


class _Head(nn.Module):
    """W, b of one type, with the constant that is taken off its vectors."""

    centre: Tensor
    scale: Tensor | None

    def __init__(self, width: int, num_outputs: int, random_features: int, seed: int, *, vectors: int = 0) -> None:
        super().__init__()
        self.width, self.random_features, self.seed = width, random_features, seed
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("scale", torch.ones(vectors) if vectors else None)
        self.weight = nn.Parameter(torch.zeros(num_outputs, width + random_features))
        self.bias = nn.Parameter(torch.zeros(num_outputs))

    def forward(self, vectors: Tensor) -> Tensor:
        side: Tensor = functional.linear(self.features(vectors), self.weight, self.bias)
        return side

    def centre_on(self, vectors: Tensor, weights: Tensor) -> None:
        """Set what is taken off vectors [B, D], of weights [B], and by what each is divided."""
        centre = weights @ vectors / weights.sum()
        self.centre.copy_(centre)
        if self.scale is not None:
            squares = weights @ (vectors - centre).square() / weights.sum()
            varied = squares.view(len(self.scale), -1).mean(1).sqrt()
            self.scale.copy_(torch.where(varied > EPSILON, varied, 1.0))

    @property
    def _of_random(self) -> float:
        return float((self.width / (2 * self.random_features)) ** 0.5)

    def features(self, vectors: Tensor) -> Tensor:
        """Return [z, φ(z)], [B, D + F], of vectors [B, D]."""
        z = vectors - self.centre
        if self.scale is not None:
            z = (z.view(len(z), len(self.scale), -1) / self.scale[:, None]).flatten(1)
        if not self.random_features:
            return z
        mixed = _mixed(z, self.random_features, self.seed).abs()
        return torch.cat([z, mixed * self._of_random], 1)

    def noise(self, variance: float) -> Tensor:
        """Return what variance noise of `variance` in each value of z leaves in a value of [z, φ(z)], [D + F].

        Of φ to first order: |u|' = ±1.
        """
        of_z = torch.full((self.width,), variance)
        if not self.random_features:
            return of_z
        return torch.cat([of_z, torch.full((self.random_features,), variance * self._of_random**2)])


@dataclass
class _Fit:
    """One type's head while it is fitted: the first vectors wait until they give the centre."""

    head: _Head
    sums: TaskSums | None = None
    waiting: list[tuple[Tensor, LabelledBatch]] = field(default_factory=list)
    ridge: Ridge | TaskRidge | None = None
    truths: list[tuple[Tensor | None, ...]] = field(default_factory=list)  # of the rows that the ridge keeps
    calibrate: bool = False
    protected: bool = False
    scale: float = 1.0

    @property
    def has_samples(self) -> bool:
        """Whether there is anything to solve."""
        return self.ridge is not None or bool(self.waiting)

    def add(self, vectors: Tensor, part: LabelledBatch) -> None:
        if self.sums is not None:
            vectors, part = _of_last_task(vectors, part, first=sum(self.sums.sizes[:-1]))
            if not len(vectors):
                return
        if self.ridge is not None:
            self._take(vectors, part)
            return
        self.waiting.append((vectors, part))
        if sum(len(earlier) for earlier, _ in self.waiting) >= _CENTRED_BY:
            self._begin()

    def solve(self, name: str) -> FittedPart:
        """Set the head and return the predictions of the last samples, each left out."""
        if self.ridge is None:
            self._begin()
        assert self.ridge is not None
        solution = self.ridge.solve()
        weight, bias, left_out = solution.weight, solution.bias, solution.left_out
        labels, base, counts = (_last(values, len(left_out)) for values in zip(*self.truths, strict=True))
        factor, offsets = 1.0, torch.zeros_like(bias)
        if self.sums is not None and not self.calibrate:  # Ridge is given scaled targets
            factor = self.scale
        elif labels is not None and base is not None and (self.calibrate or not self.protected):
            assert counts is not None
            likeliest = likeliest_scores(
                left_out if self.calibrate else left_out / self.scale,
                labels,
                base,
                counts,
                in_logits=self.calibrate,
                with_offsets=self.sums is None and not self.protected,
            )
            factor, offsets = likeliest.factor, likeliest.offsets if self.calibrate else self.scale * likeliest.offsets
        left_out = factor * left_out + offsets
        self.head.weight.copy_(factor * weight)
        self.head.bias.copy_(factor * bias + offsets)
        return FittedPart(name, left_out.float(), labels, base, solution.penalty)

    def _begin(self) -> None:
        if self.sums is None or len(self.sums.sizes) == 1:
            weights = torch.cat([_weights(part) for _, part in self.waiting])
            vectors = torch.cat([vectors for vectors, _ in self.waiting]).double()
            self.head.centre_on(vectors, weights)
        noise = self.head.noise(self.waiting[0][1].variance)
        if self.sums is None:
            self.ridge = Ridge(self.head.weight.shape[1], len(self.head.bias), noise=noise)
        else:
            self.ridge = TaskRidge(self.sums, noise)
        for vectors, part in self.waiting:
            self._take(vectors, part)
        self.waiting = []

    def _take(self, vectors: Tensor, part: LabelledBatch) -> None:
        assert self.ridge is not None
        features = self.head.features(vectors)
        if isinstance(self.ridge, TaskRidge):
            assert part.labels is not None
            assert part.base is not None
            self.ridge.add(features, part.labels, part.base, _weights(part))
        else:
            assert part.targets is not None
            self.ridge.add(features, part.targets, _weights(part))
        self.truths = [*self.truths, (part.labels, part.base, _weights(part))][-self.ridge.num_parts :]
        self.calibrate, self.protected, self.scale = part.calibrate, part.protected, part.scale


def _of_last_task(vectors: Tensor, part: LabelledBatch, *, first: int) -> tuple[Tensor, LabelledBatch]:
    """Return those samples alone that have a label from `first` on; rows of the batch stay, and are not used."""
    if part.labels is None or part.base is None:
        raise MismatchError("tasks one after another need labels that the server can read; leave out their protection")
    own = part.labels >= first
    return vectors[own], replace(part, labels=part.labels[own], base=part.base[own], weights=_weights(part)[own])


def _weights(part: LabelledBatch) -> Tensor:
    """Return what each sample counts, [B] float64."""
    if part.weights is None:
        return torch.ones(part.batch.num_samples, dtype=torch.double, device=part.batch.rows.device)
    return part.weights.double()


def _last(values: Sequence[Tensor | None], count: int) -> Tensor | None:
    """Return the last `count` of the samples' values, or None where they are not known."""
    known = [value for value in values if value is not None]
    return torch.cat(known)[-count:] if len(known) == len(values) else None


def _mixed(z: Tensor, count: int, seed: int) -> Tensor:
    """Return `count` random mixtures of z [B, D], each of z's own mean square: H S₂ H S₁ z, as often as needed."""
    width = z.shape[1]
    size = 1 << (width - 1).bit_length()
    padded = functional.pad(z, (0, size - width))
    parts: list[Tensor] = []
    for number in range(-(-count // size)):
        mixed = padded
        for turn in range(2):
            key = hashlib.sha256(f"{seed}:random features:{number}:{turn}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(key[:7], "big"))
            signs = torch.randint(0, 2, (size,), generator=generator).to(z.device, z.dtype) * 2 - 1
            mixed = _walsh_hadamard(mixed * signs)
        parts.append(mixed)
    joined: Tensor = torch.cat(parts, 1)[:, :count] * math.sqrt(size / width)
    return joined


def _walsh_hadamard(values: Tensor) -> Tensor:
    """Return the orthonormal Walsh-Hadamard transform of [B, N], N a power of two."""
    count, size = values.shape
    half = 1
    while half < size:
        pairs = values.view(count, size // (2 * half), 2, half)
        first, second = pairs[:, :, 0], pairs[:, :, 1]
        values = torch.stack([first + second, first - second], 2).view(count, size)
        half *= 2
    return values / math.sqrt(size)
