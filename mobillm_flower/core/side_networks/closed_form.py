"""The side network in closed form: a ridge solution over all sampled layers, and over random features of them.

Nothing is learned by steps, so it is a function of the samples alone: better than the additive network trained from
zero in most tasks, in a fraction of the time (`docs/decisions/0017-solved-not-searched.md`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from mobillm_flower.core.side_networks.closed_form_fit import Fit
from mobillm_flower.core.side_networks.closed_form_head import Head
from mobillm_flower.core.side_networks.config import SIDE_NETWORKS, AlignmentSpec, require_known
from mobillm_flower.core.side_networks.protocol import ActivationBatch, FittedPart, LabelledBatch
from mobillm_flower.core.side_networks.task_sums import TaskSums


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
        K_t of T tasks that come one after another. The columns of each are solved from its own samples, and stay. To
        all columns of a task a score of the task is added, which changes nothing inside it: twice the ridge
        regression of onehot(task) on [z, φ(z)] over the samples of all tasks, from sums (`TaskSums`) or from the
        earlier tasks' samples themselves. Centre and vector scales are those of the first task.
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
                name: Head(
                    num_blocks * spec.num_features,
                    num_outputs,
                    random_features,
                    seed,
                    vectors=num_blocks * spec.num_vectors if vector_scale else 0,
                    tasks=tasks,
                )
                for name, spec in sorted(self.types.items())
            }
        )

    @property
    def whole_base(self) -> bool:
        """Whether p_b of a known task is the task's own, in place of its share of a distribution over all classes."""
        return bool(self.tasks)

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
        fits: dict[str, Fit] = {}
        with torch.no_grad():
            for part in samples:
                name = part.batch.backbone
                if name not in fits:
                    sums = self.sums_of(name, part.batch.rows.device) if self.tasks else None
                    count = self.num_blocks * self.types[name].num_vectors
                    fits[name] = Fit(self._head(part.batch), sums, bool(self._kept.get(name)), count)
                fits[name].add(self._vectors(part.batch), part)
            measured = [fit.solve(name) for name, fit in sorted(fits.items())]
            self._sums = {name: fit.sums for name, fit in fits.items() if fit.sums is not None}
            return [part for part in measured if part is not None]

    def set_solution(self, name: str, weight: Tensor, bias: Tensor, scale: float, sums: TaskSums | None = None) -> None:
        """Set a type's head to a solution that was found elsewhere.

        Parameters
        ----------
        weight, bias : Tensor
            W [D, K] and b [K]; of tasks one after another the last one's alone.
        scale : float
            c of s(A) = c·(Wᵀz + b).
        sums : TaskSums, optional
            Of all tasks.
        """
        head = self.heads[name]
        assert isinstance(head, Head)
        with torch.no_grad():
            head.set_columns(weight.T * scale, bias * scale)
            if sums is not None:
                head.tell_tasks(sums, scale)
                self._sums[name] = sums

    def begin_task(self, kept: Mapping[str, Tensor]) -> None:
        """Go on with sums of earlier tasks, from `end_task`; with none, fit samples alone."""
        self._kept, self._sums = {}, {}
        for name, value in kept.items():
            backbone, of_type = name.split(".", 1)
            self._kept.setdefault(backbone, {})[of_type] = value

    def end_task(self) -> dict[str, Tensor]:
        """Return the sums of all tasks so far, float64."""
        for name in self._kept.keys() - self._sums.keys():
            self._sums[name] = self.sums_of(name, torch.device("cpu"))
        return {
            f"{t}.{name}": value for t, sums in sorted(self._sums.items()) for name, value in sums.tensors().items()
        }

    def sums_of(self, name: str, device: torch.device) -> TaskSums:
        """Return the sums that a type's samples are added to: of earlier tasks, where they were kept, or empty."""
        kept, width = self._kept.get(name), self.num_blocks * self.types[name].num_features + self.random_features
        if kept:
            return TaskSums.carried(width, len(self.tasks), kept, device)
        return TaskSums.empty(width, len(self.tasks), device)

    def _head(self, batch: ActivationBatch) -> Head:
        require_known(batch, self.types, self.num_blocks, part="head")
        head = self.heads[batch.backbone]
        assert isinstance(head, Head)
        return head

    def _vectors(self, batch: ActivationBatch) -> Tensor:
        """Return the joined vectors of samples, [B, D]."""
        require_known(batch, self.types, self.num_blocks, part="head")
        rows = batch.rows
        if self.input_norm:
            vectors = rows.reshape(*rows.shape[:-1], -1, self.types[batch.backbone].width)  # [N, M, P, d_b]
            rows = functional.layer_norm(vectors, vectors.shape[-1:])
        rows = rows.flatten(1)  # [N, D]
        if batch.lengths is not None:
            rows = torch.segment_reduce(rows, "mean", lengths=batch.lengths, axis=0)  # [B, D]
        return rows
