"""The sums of tasks that came one after another, from which the task of a text is told (cf. 2307.02251)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mobillm_flower.core.side_networks.ridge import SolvedSums, Sums
from mobillm_flower.errors import MismatchError

_OF_TASKS = ("rows", "weight", "count")


@dataclass
class TaskSums:
    """Σ w zzᵀ of all tasks together, and Σ w z of each of T tasks.

    Parameters
    ----------
    gram : Tensor
        [D, D] float64, of which the lower triangle counts.
    rows : Tensor
        Σ w z of each task, [T, D] float64.
    weight, count : Tensor
        Σ w and samples of each task, [T].
    """

    gram: Tensor
    rows: Tensor
    weight: Tensor
    count: Tensor

    @classmethod
    def empty(cls, width: int, tasks: int, device: torch.device) -> TaskSums:
        """Return the sums of no samples, of z of D values."""
        zeros = partial(torch.zeros, dtype=torch.double, device=device)
        return cls(zeros(width, width), zeros(tasks, width), zeros(tasks), zeros(tasks))

    @classmethod
    def carried(cls, width: int, tasks: int, tensors: Mapping[str, Tensor], device: torch.device) -> TaskSums:
        """Return sums of all tasks but the last, from `tensors`, to which the last one's samples can be added.

        Raises
        ------
        MismatchError
            They are of vectors of another width, or of another number of tasks.
        """
        made = cls.empty(width, tasks, device)
        triangle = torch.tril_indices(width, width, device=device)
        earlier = {name: getattr(made, name)[: tasks - 1] for name in _OF_TASKS}
        shapes = {name: tuple(value.shape) for name, value in earlier.items()} | {"gram": (triangle.shape[1],)}
        given = {name: tuple(value.shape) for name, value in tensors.items()}
        if given != shapes:
            different = [name for name in sorted(shapes | given) if shapes.get(name) != given.get(name)]
            raise MismatchError(
                f"the sums of earlier tasks do not fit ({', '.join(different)}): go on with the same backbone, layers, "
                "random features and tasks"
            )
        for name, value in earlier.items():
            value.copy_(tensors[name])
        made.gram[triangle[0], triangle[1]] = tensors["gram"].to(device)
        return made

    def tensors(self) -> dict[str, Tensor]:
        """Return what `carried` reads, of Gram matrix the triangle row by row, on the CPU."""
        triangle = torch.tril_indices(*self.gram.shape, device=self.gram.device)
        values = {name: getattr(self, name) for name in _OF_TASKS}
        values["gram"] = self.gram[triangle[0], triangle[1]]
        return {name: value.cpu().contiguous() for name, value in values.items()}

    def add(self, rows: Tensor, tasks: Tensor, weights: Tensor) -> None:
        """Add samples: z [B, D], the number of each one's task [B], weights [B]."""
        rows, weights = rows.double(), weights.double()
        weighted = weights[:, None] * rows
        self.gram.addmm_(weighted.T, rows)
        self.rows.index_add_(0, tasks, weighted)
        self.weight.index_add_(0, tasks, weights)
        self.count.index_add_(0, tasks, torch.ones_like(weights))

    def add_sums(self, sums: Sums) -> None:
        """Add the sums of the last task's samples."""
        self.gram += sums.gram
        self.rows[-1] += sums.rows
        self.weight[-1] += sums.weight
        self.count[-1] += sums.count

    def solve(self, noise: Tensor | None = None) -> SolvedSums:
        """Return the ridge regression of onehot(task) on z, λ by generalized cross-validation, see `Sums.choose`."""
        sums = Sums(len(self.gram), len(self.rows), self.gram.device)
        sums.count, sums.weight, sums.square = int(self.count.sum()), self.weight.sum(), self.weight.sum()
        sums.rows, sums.targets = self.rows.sum(0), self.weight
        sums.gram, sums.moment = self.gram, self.rows.T
        return sums.choose(noise)
