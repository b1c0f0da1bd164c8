"""One backbone type's part of the side network in closed form: features of its vectors, and the solution's weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from mobillm_flower.core.side_networks.adapter import own_generator
from mobillm_flower.core.side_networks.task_sums import TaskSums
from mobillm_flower.core.targets import EPSILON

_OF_TASKS = 2.0
"""What the scores that tell tasks apart weigh beside those inside a task; chosen on validation rows, see
`benchmarks/studies/continual.py`.
"""


class Head(nn.Module):
    """W, b of one type, with the constant that is taken off its vectors."""

    centre: Tensor
    scale: Tensor | None

    def __init__(
        self,
        width: int,
        num_outputs: int,
        random_features: int,
        seed: int,
        *,
        vectors: int = 0,
        tasks: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.width, self.random_features, self.seed, self.tasks = width, random_features, seed, tasks
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("scale", torch.ones(vectors) if vectors else None)
        self.weight = nn.Parameter(torch.zeros(num_outputs, width + random_features))
        self.bias = nn.Parameter(torch.zeros(num_outputs))
        if len(tasks) > 1:  # rows are tasks
            self.of_tasks = nn.Parameter(torch.zeros(len(tasks), width + random_features))
            self.bias_of_tasks = nn.Parameter(torch.zeros(len(tasks)))

    @property
    def knows_tasks(self) -> bool:
        """Whether there are columns of earlier tasks: centre and vector scales then stay."""
        return bool(self.tasks and self.weight[: -self.tasks[-1]].any())

    def forward(self, vectors: Tensor) -> Tensor:
        """Return s(A), [B, K], of joined vectors [B, D]."""
        features = self.features(vectors)
        side: Tensor = functional.linear(features, self.weight, self.bias)
        if len(self.tasks) > 1:
            scores = functional.linear(features, self.of_tasks, self.bias_of_tasks)  # [B, T]
            of_columns = [scores[:, t : t + 1].expand(-1, count) for t, count in enumerate(self.tasks)]
            side = side + torch.cat(of_columns, 1)
        return side

    def set_columns(self, weight: Tensor, bias: Tensor) -> None:
        """Set the last columns, those of the last task, from [k, D + F] and [k]."""
        self.weight[-len(bias) :] = weight
        self.bias[-len(bias) :] = bias

    def tell_tasks(self, sums: TaskSums, scale: float) -> None:
        """Solve what tells several tasks apart."""
        if len(self.tasks) > 1:
            solved = sums.solve()
            self.of_tasks.copy_(solved.weight.T * scale * _OF_TASKS)
            self.bias_of_tasks.copy_(solved.bias * scale * _OF_TASKS)

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


def _mixed(z: Tensor, count: int, seed: int) -> Tensor:
    """Return `count` random mixtures of z [B, D], each of z's own mean square: H S₂ H S₁ z, as often as needed."""
    width = z.shape[1]
    size = 1 << (width - 1).bit_length()
    padded = functional.pad(z, (0, size - width))
    parts: list[Tensor] = []
    for number in range(-(-count // size)):
        mixed = padded
        for turn in range(2):
            generator = own_generator(seed, f"random features:{number}:{turn}")
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
