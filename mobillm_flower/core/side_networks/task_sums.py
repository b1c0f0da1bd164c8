"""The sums of tasks that came one after another, from which one solution for all of them is made (cf. 2307.02251)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mobillm_flower.core.side_networks.ridge import HELD_OUT, Solution, Sums
from mobillm_flower.errors import MismatchError

_COUNTED = ("count", "weight", "agreement", "base_square")


@dataclass
class TaskSums:
    """Σ w zzᵀ of all tasks once, Σ w z·onehot(y)ᵀ and Σ w z·p_bᵀ apart, a column a class.

    They are apart since p_b over all K classes, (K_t/K)·p_b inside a task and 1/K outside, changes as classes come;
    Σ w z of a task is the sum of its columns of either, so that no more is needed to write it anew.

    Parameters
    ----------
    sizes : tuple of int
        K_t of each of T tasks; samples are added to the last.
    gram : Tensor
        [D, D] float64, of which the lower triangle counts.
    hot, base : Tensor
        [D, K] float64.
    hot_sums, base_sums : Tensor
        Σ w·onehot(y) and Σ w·p_b, [K].
    count, weight, agreement, base_square : Tensor
        Of each task, [T]: samples, Σ w, Σ w·p_b[y] and Σ w·‖p_b‖².
    """

    sizes: tuple[int, ...]
    gram: Tensor
    hot: Tensor
    base: Tensor
    hot_sums: Tensor
    base_sums: Tensor
    count: Tensor
    weight: Tensor
    agreement: Tensor
    base_square: Tensor

    @classmethod
    def empty(cls, width: int, sizes: Sequence[int], device: torch.device) -> TaskSums:
        """Return the sums of no samples, of z of D values."""
        zeros = partial(torch.zeros, dtype=torch.double, device=device)
        outputs, tasks = sum(sizes), len(sizes)
        moments, of_classes, of_tasks = zeros(2, width, outputs), zeros(2, outputs), zeros(4, tasks)
        return cls(tuple(sizes), zeros(width, width), *moments, *of_classes, *of_tasks)

    @classmethod
    def carried(cls, width: int, sizes: Sequence[int], tensors: Mapping[str, Tensor], device: torch.device) -> TaskSums:
        """Return sums of earlier tasks, from `tensors`, to which samples of the last of `sizes` can be added.

        Raises
        ------
        MismatchError
            They are of vectors of another width, or of other tasks.
        """
        made = cls.empty(width, sizes, device)
        expected = {name: value[..., : sum(sizes[:-1])] for name, value in made._of_classes().items()}
        expected |= {name: getattr(made, name)[: len(sizes) - 1] for name in _COUNTED}
        triangle = torch.tril_indices(width, width, device=device)
        shapes = {name: tuple(value.shape) for name, value in expected.items()} | {"gram": (triangle.shape[1],)}
        given = {name: tuple(value.shape) for name, value in tensors.items()}
        if given != shapes:
            different = [name for name in sorted(shapes | given) if shapes.get(name) != given.get(name)]
            raise MismatchError(
                f"the sums of earlier tasks do not fit ({', '.join(different)}): go on with the same backbone, layers, "
                "random features and tasks"
            )
        for name, value in expected.items():
            value.copy_(tensors[name])
        made.gram[triangle[0], triangle[1]] = tensors["gram"].to(device)
        return made

    def tensors(self) -> dict[str, Tensor]:
        """Return what `carried` reads, of Gram matrix the triangle row by row, on the CPU."""
        triangle = torch.tril_indices(*self.gram.shape, device=self.gram.device)
        values = {**self._of_classes(), **{name: getattr(self, name) for name in _COUNTED}}
        values["gram"] = self.gram[triangle[0], triangle[1]]
        return {name: value.cpu().contiguous() for name, value in values.items()}

    def add(self, rows: Tensor, hot: Tensor, base: Tensor, weights: Tensor) -> None:
        """Add samples of the last task: z [B, D], onehot(y) and p_b over its K_t classes [B, K_t], weights [B]."""
        rows, hot, base, weights = rows.double(), hot.double(), base.double(), weights.double()
        weighted, own = weights[:, None] * rows, slice(-self.sizes[-1], None)
        self.gram.addmm_(weighted.T, rows)
        self.hot[:, own] += weighted.T @ hot
        self.base[:, own] += weighted.T @ base
        self.hot_sums[own] += weights @ hot
        self.base_sums[own] += weights @ base
        self.count[-1] += len(rows)
        self.weight[-1] += weights.sum()
        self.agreement[-1] += weights @ (hot * base).sum(1)
        self.base_square[-1] += weights @ base.square().sum(1)

    def for_all_classes(self) -> Sums:
        """Return the sums of a regression of onehot(y) − p_b on z, both over all K classes."""
        outputs = sum(self.sizes)
        sums = Sums(len(self.gram), outputs, self.gram.device)
        sums.count, sums.weight = int(self.count.sum()), self.weight.sum()
        sums.gram = self.gram.clone()
        of_tasks = [
            part.sum(1, keepdim=True) for part in torch.split(self.hot, list(self.sizes), 1)
        ]  # Σ w z of each, [D, 1]
        sums.rows = torch.cat(of_tasks, 1).sum(1)
        start = 0
        for number, (classes, own) in enumerate(zip(self.sizes, of_tasks, strict=True)):
            columns, share = slice(start, start + classes), classes / outputs
            others = (sums.rows[:, None] - own) / outputs
            sums.moment[:, columns] = self.hot[:, columns] - share * self.base[:, columns] - others
            rest = (sums.weight - self.weight[number]) / outputs
            sums.targets[columns] = self.hot_sums[columns] - share * self.base_sums[columns] - rest
            outside = (outputs - classes) / outputs**2
            sums.square += self.weight[number] * (1 + outside)
            sums.square += share**2 * self.base_square[number] - 2 * share * self.agreement[number]
            start = columns.stop
        return sums

    def _of_classes(self) -> dict[str, Tensor]:
        """Return what has a column a class."""
        return {name: getattr(self, name) for name in ("hot", "base", "hot_sums", "base_sums")}


class TaskRidge:
    """The ridge solution of onehot(y) − p_b over all classes, from sums: beside `Ridge`, which keeps rows.

    Parameters
    ----------
    sums : TaskSums
        Of earlier tasks; samples of the last are added.
    noise : Tensor
        As of `Ridge`.
    """

    def __init__(self, sums: TaskSums, noise: Tensor) -> None:
        self.sums, self._noise = sums, noise
        self._last: list[tuple[Tensor, Tensor, Tensor]] = []

    @property
    def num_parts(self) -> int:
        """How many of the last parts are kept; `solve` predicts their last rows."""
        return len(self._last)

    def add(self, rows: Tensor, labels: Tensor, base: Tensor, weights: Tensor) -> None:
        """Add samples of the last task: z [B, D], y [B] and p_b [B, K] over all classes, weights [B]."""
        outputs, own = sum(self.sums.sizes), self.sums.sizes[-1]
        hot, base = torch.nn.functional.one_hot(labels, outputs).double(), base.double()
        self.sums.add(rows, hot[:, -own:], base[:, -own:] * (outputs / own), weights)
        self._last.append((rows, hot - base, weights.double()))
        while sum(len(kept) for kept, _, _ in self._last[1:]) >= HELD_OUT:
            del self._last[0]

    def solve(self) -> Solution:
        """Choose λ by generalized cross-validation and solve; there must be a row."""
        rows, targets, weights = (torch.cat(parts)[-HELD_OUT:] for parts in zip(*self._last, strict=True))
        return self.sums.for_all_classes().solve(rows, targets, weights, self._noise.double().to(rows.device))
