"""Side networks for tasks one after another: each task has linear adapters of its own, apart from earlier ones.

OA-Adapter (2505.22358) and O-LoRA (2310.14152) beside a frozen backbone, in place of inside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mobillm_flower.core.side_networks.adapter import own_generator
from mobillm_flower.core.side_networks.additive import AdditiveSideNetwork
from mobillm_flower.core.side_networks.config import SIDE_NETWORKS
from mobillm_flower.core.side_networks.protocol import ActivationBatch, Needs
from mobillm_flower.errors import ArgumentError

_LARGEST_BUDGET = 2.0
_SHORTEST = 1e-6  # of a column, below which it has no direction
_OFF = -30.0  # s of columns of tasks that a sample is known not to be of
_EVIDENCE = 0.03
"""What the log-likelihood of a task counts beside its outputs: values of a sample's vectors are far from independent.
Chosen on validation rows, see `benchmarks/studies/continual.py`.
"""


class LinearAdapter(nn.Module):
    """W₂ Γ W₁ u of one block and task, without biases and non-linearity; Γ is the identity.

    Parameters
    ----------
    width, rank : int
        d and r: W₁ is [r, d], W₂ [d, r].
    generator : Generator
        What W₁ is drawn from; W₂ starts at zero.
    """

    def __init__(self, width: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, width, generator=generator) / width**0.5)
        self.up = nn.Parameter(torch.zeros(width, rank))

    @property
    def scales(self) -> Tensor:
        """γ, the diagonal of Γ, [r]."""
        return torch.ones(len(self.down))

    def forward(self, normed: Tensor) -> Tensor:
        """Return W₂ Γ W₁ u, [N, d], of u [N, d]."""
        out: Tensor = functional.linear(functional.linear(normed, self.down), self.up)
        return out

    def overlap(self, earlier: LinearAdapter) -> Tensor:
        """Return Σ_ij |⟨a_i, b_j⟩| over the rows a of W₁ and b of an earlier task's (O-LoRA's public code)."""
        return (self.down @ earlier.down.detach().T).abs().sum()


class BudgetAdapter(LinearAdapter):
    """W₂ Γ W₁ u of one block and task with Γ = diag(soft(g, τ)), τ = softplus(ρ) ≥ 0: OA-Adapter (2505.22358).

    soft(g, τ) = sign(g)·max(|g| − τ, 0) is 0 where |g| ≤ τ: the dimension is dead. Such a one comes back where τ falls
    below |g|, and also by itself: its g has the gradient of γ (straight through), which the paper's has not, so that a
    block of which all dimensions died is not lost. g starts evenly spread over (0, 2), so that τ takes one dimension at
    a time. W₁ starts at zero and W₂'s columns at random unit vectors, whose angles are defined.
    """

    def __init__(self, width: int, rank: int, generator: torch.Generator, threshold: float) -> None:
        super().__init__(width, rank, generator)
        start = self.down.detach()
        self.down = nn.Parameter(torch.zeros_like(start))
        self.up = nn.Parameter(functional.normalize(start.T, dim=0).contiguous())
        self.budget = nn.Parameter((torch.arange(rank) + 0.5) * (_LARGEST_BUDGET / rank))
        # the inverse of softplus
        self.threshold = nn.Parameter(torch.tensor(math.log(math.expm1(max(threshold, 1e-4)))))

    @property
    def scales(self) -> Tensor:
        """γ, [r]."""
        tau = functional.softplus(self.threshold)
        soft = self.budget.sign() * functional.relu(self.budget.abs() - tau)
        return soft + torch.where(soft == 0, self.budget - self.budget.detach(), 0)

    def forward(self, normed: Tensor) -> Tensor:
        """Return W₂ Γ W₁ u, [N, d], of u [N, d]."""
        out: Tensor = functional.linear(functional.linear(normed, self.down) * self.scales, self.up)
        return out

    def overlap(self, earlier: LinearAdapter) -> Tensor:
        """Return Σ_ij cos² over the columns of W₂ and those of an earlier task's that are not dead."""
        return self.squared_cosines(earlier.up.detach()[:, earlier.scales.detach() != 0])

    def squared_cosines(self, columns: Tensor) -> Tensor:
        """Return Σ_ij cos² over the columns of W₂ and others, [d, n]."""
        ours, theirs = (functional.normalize(each, dim=0, eps=_SHORTEST) for each in (self.up, columns))
        return (ours.T @ theirs).square().sum()


class _OfTasks(nn.ModuleList):
    """The adapters of all tasks in one block: h = s + Σ_t W₂ Γ W₁ LN(s)."""

    def forward(self, state: Tensor, _mix: object = None) -> Tensor:
        normed = functional.layer_norm(state, state.shape[-1:])
        for adapter in self:
            state = state + adapter(normed)
        return state


class _Appended(nn.ModuleList):
    """One output a task, their columns one after another."""

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.cat([output(hidden) for output in self], -1)


@SIDE_NETWORKS.register("o-lora")
class OrthogonalSideNetwork(AdditiveSideNetwork):
    """The additive side network with linear adapters and outputs for each task, of which the last task's are learned.

    In block i, h_i = s_in,i + Σ_t W₂⁽ᵗ⁾ W₁⁽ᵗ⁾ LN(s_in,i); s(A) joins the tasks' outputs. Alignments, gates and the last
    norm are learned in the first task and frozen with its adapters and output; the outputs of all adapters are added
    whatever the task. In training the task is known: the columns of other tasks are left out of the loss. Afterwards
    the log-probability of each task is added to its columns, which changes nothing inside it: samples are taken as
    normal around the mean of their task's aligned vectors x, with one variance, and what follows weighs 0.03. The loss
    has λ·(1/M) Σ_i Σ_{s<t} `overlap` beside it, for O-LoRA the absolute inner products of the rows of W₁ (2310.14152);
    its ‖·‖₂ of new weights is left to weight decay.

    Parameters
    ----------
    tasks : tuple of int
        K_t of each task so far; the last is the one that is learned.
    orthogonality : float
        λ.
    shape
        As of `AdditiveSideNetwork`; `bottleneck` is the rank r of each task's adapter, `activation` is not used.

    Raises
    ------
    ArgumentError
        The tasks' classes are not all outputs.
    """

    needs = Needs(classes=True)
    means: Tensor
    variances: Tensor

    def __init__(self, *, tasks: tuple[int, ...] = (), orthogonality: float = 0.0, **shape: Any) -> None:
        outputs = shape["num_outputs"]
        tasks = tasks or (outputs,)
        if sum(tasks) != outputs:
            raise ArgumentError("tasks", tasks, f"are classes of each task, and there are {outputs} outputs")
        self.tasks, self.orthogonality = tasks, orthogonality
        super().__init__(**shape)
        rank, seed = shape["bottleneck"], shape.get("seed", 0)
        drawn = [own_generator(seed, f"adapters of task {number}") for number in range(len(tasks))]
        self.adapters = nn.ModuleList(
            _OfTasks(self.make_adapter(rank, generator) for generator in drawn) for _ in range(self.num_blocks)
        )
        self.register_buffer("means", torch.zeros(len(tasks), self.num_blocks * self.width))
        self.register_buffer("variances", torch.zeros(len(tasks)))  # 0: the task is not learned yet
        if len(tasks) > 1:
            self._freeze()

    def forward(self, batches: Sequence[ActivationBatch]) -> Tensor:
        """Return s(A), [B, K], samples in the order of the batches."""
        side = super().forward(batches)
        if self.training and len(self.tasks) > 1:
            own = side[:, -self.tasks[-1] :]
            return torch.cat([torch.full_like(side[:, : -self.tasks[-1]], _OFF), own], 1)
        if len(self.tasks) == 1 or not self.variances.all():
            return side
        scores = self._log_likelihoods(batches).log_softmax(1)  # [B, T]
        of_columns = [scores[:, t : t + 1].expand(-1, count) for t, count in enumerate(self.tasks)]
        return side + torch.cat(of_columns, 1)

    def remember(self, samples: Iterable[Sequence[ActivationBatch]]) -> None:
        """Take the mean and the variance of the last task's vectors from its samples."""
        count, total, square = 0, self.means.new_zeros(self.means.shape[1]).double(), 0.0
        for batches in samples:
            vectors = self._vectors(batches).double()
            count, total = count + len(vectors), total + vectors.sum(0)
            square += float(vectors.square().sum())
        if count:
            mean = total / count
            self.means[-1] = mean
            self.variances[-1] = max(square / count - float(mean.square().sum()), _SHORTEST) / len(mean)

    def _vectors(self, batches: Sequence[ActivationBatch]) -> Tensor:
        """Return x of samples, joined, [B, M·d]; of several rows a sample their mean."""
        aligned = [self.align(batch).flatten(1) for batch in batches]
        for place, batch in enumerate(batches):
            if batch.lengths is not None:
                aligned[place] = torch.segment_reduce(aligned[place], "mean", lengths=batch.lengths, axis=0)
        return torch.cat(aligned)

    def _log_likelihoods(self, batches: Sequence[ActivationBatch]) -> Tensor:
        """Return −‖x − μ_t‖²/2σ² of each task, weighed, without the ‖x‖² that all have in common, [B, T]."""
        products = functional.linear(self._vectors(batches), self.means, -self.means.square().sum(1) / 2)
        return products * (_EVIDENCE / self.variances.mean())

    def make_output(self, num_outputs: int) -> nn.Module:  # noqa: ARG002 - it is the sum of those of the tasks
        """Return W_o, the outputs of the tasks one after another."""
        return _Appended(super(OrthogonalSideNetwork, self).make_output(classes) for classes in self.tasks)

    def make_adapter(self, rank: int, generator: torch.Generator) -> LinearAdapter:
        """Return a fresh adapter of one block."""
        return LinearAdapter(self.width, rank, generator)

    def of_block(self, number: int) -> list[LinearAdapter]:
        """Return one block's adapters, one a task."""
        return [adapter for adapter in self.adapters[number].children() if isinstance(adapter, LinearAdapter)]

    def penalty(self) -> Tensor:
        """Return what is added to the loss."""
        total = self.gates.new_zeros(())
        if self.orthogonality:
            for number in range(self.num_blocks):
                *before, current = self.of_block(number)
                for earlier in before:
                    total = total + current.overlap(earlier)
        return total * (self.orthogonality / self.num_blocks)

    @property
    def effective_ranks(self) -> list[list[int]]:
        """How many dimensions of each task's adapters act, by task and block."""
        ranks = [[int((a.scales != 0).sum()) for a in self.of_block(number)] for number in range(self.num_blocks)]
        return [list(of_task) for of_task in zip(*ranks, strict=True)]

    def _freeze(self) -> None:
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        for number in range(self.num_blocks):
            self.of_block(number)[-1].requires_grad_(True)
        list(self.output.children())[-1].requires_grad_(True)
        for name in self._joined:  # a type that came later has an alignment to learn
            self.alignment[name].requires_grad_(True)


@SIDE_NETWORKS.register("oa-adapter")
class BudgetedSideNetwork(OrthogonalSideNetwork):
    """The same with learned budgets: adapters are `BudgetAdapter`, and λ weighs their columns' squared cosines.

    Where we leave the paper: λ·(1/M) Σ_i Σ cos² of the current W₂'s columns with the rows of earlier tasks' outputs is
    added. An adapter writes into the state that all outputs read, and where it writes along their rows it changes what
    they say of samples of their tasks.

    Parameters
    ----------
    threshold : float
        τ₀, below 2: with more every dimension would start dead.
    shape
        As of `OrthogonalSideNetwork`.

    Raises
    ------
    ArgumentError
        τ₀ is out of range.
    """

    def __init__(
        self, *, tasks: tuple[int, ...] = (), orthogonality: float = 0.0, threshold: float = 0.0, **shape: Any
    ) -> None:
        if not 0 <= threshold < _LARGEST_BUDGET:
            raise ArgumentError("threshold", threshold, f"must be from 0 to below {_LARGEST_BUDGET:g}")
        self.start_threshold = threshold
        super().__init__(tasks=tasks, orthogonality=orthogonality, **shape)

    def make_adapter(self, rank: int, generator: torch.Generator) -> LinearAdapter:
        """Return a fresh adapter of one block."""
        return BudgetAdapter(self.width, rank, generator, self.start_threshold)

    def penalty(self) -> Tensor:
        """Return what is added to the loss."""
        total = super().penalty()
        *before, _ = self.output.children()
        if not self.orthogonality or not before:
            return total
        read = torch.cat([output.weight.detach() for output in before if isinstance(output, nn.Linear)]).T  # [d, K]
        for number in range(self.num_blocks):
            current = self.of_block(number)[-1]
            assert isinstance(current, BudgetAdapter)
            total = total + current.squared_cosines(read) * (self.orthogonality / self.num_blocks)
        return total
