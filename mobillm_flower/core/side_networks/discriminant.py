"""A linear discriminant in closed form: the side network for activations that carry much noise.

Gradient steps fit noise as they fit signal. Class means need no steps: noise of known variance averages out of them,
and what it leaves in their squared norm is subtracted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mobillm_flower.core.side_networks.config import SIDE_NETWORKS, AlignmentSpec, require_known
from mobillm_flower.core.side_networks.protocol import ActivationBatch, FittedPart, LabelledBatch, Needs
from mobillm_flower.errors import ArgumentError

_RIDGE = 1.1  # the vectors' covariance is taken for I/d, raised by a tenth


@dataclass
class ClassSums:
    """What a discriminant needs of one backbone type's samples.

    Parameters
    ----------
    counts : Tensor
        [K] int64, samples that came with each label.
    sums : Tensor
        [K, d] float64, sum of their vectors.
    label_rates, mixture, variance
        As in `LabelledBatch`.
    """

    counts: Tensor
    sums: Tensor
    label_rates: tuple[float, float] = (1.0, 0.0)
    mixture: tuple[float, float] = (1.0, 0.0)
    variance: float = 0.0

    def add(self, labels: Tensor, vectors: Tensor) -> None:
        """Count samples: labels [B], vectors [B, d]."""
        self.counts += torch.bincount(labels, minlength=len(self.counts))
        self.sums.index_add_(0, labels, vectors.double())


@SIDE_NETWORKS.register("discriminant")
class DiscriminantSideNetwork(nn.Module):
    """Scores of a linear discriminant over one projected unit vector a sample, for each backbone type its own.

    With class shares π_k and means μ_k, μ = Σ π_k μ_k, Δ_k = μ_k − μ and L = d/1.1:
    s_k = L·(v − μ)ᵀΔ_k − ½·L·(‖Δ_k‖² − d·τ_k) + ln π_k, where τ_k is the variance that noise leaves in each value of
    the estimate of μ_k. Whitened unit vectors have a covariance of about I/d, so that none is estimated.

    Parameters
    ----------
    types : mapping of str to AlignmentSpec
        Backbone fingerprint to input shape; one vector each.
    num_blocks, num_outputs : int
        1, and K.

    Raises
    ------
    ArgumentError
        There is more than one vector a sample, or no classes.
    """

    needs = Needs(classes=True, one_vector=True)

    def __init__(self, *, types: Mapping[str, AlignmentSpec], num_blocks: int, num_outputs: int) -> None:
        super().__init__()
        if (vectors := num_blocks * max(spec.num_vectors for spec in types.values())) != 1:
            raise ArgumentError("num_vectors", vectors, "must be 1, the projected vector of a sample")
        if num_outputs < 2:
            raise ArgumentError("num_outputs", num_outputs, "is too few: discriminant predicts classes")
        self.num_outputs = num_outputs
        self.types = dict(types)
        self.heads = nn.ModuleDict({name: nn.Linear(types[name].width, num_outputs) for name in sorted(types)})
        for parameter in self.heads.parameters():
            nn.init.zeros_(parameter)

    def forward(self, batches: Sequence[ActivationBatch]) -> Tensor:
        """Return s(A), [B, K] float32, samples in the order of the batches.

        Raises
        ------
        MismatchError
            A type has no head here, or rows of another shape.
        """
        parts = []
        for batch in batches:
            require_known(batch, self.types, 1, part="head")
            head = self.heads[batch.backbone]
            parts.append(head(batch.rows.flatten(1)))
        return torch.cat(parts)

    def empty_sums(self, backbone: str) -> ClassSums:
        """Return sums of no samples of a type."""
        width = self.types[backbone].width
        classes = self.num_outputs
        return ClassSums(torch.zeros(classes, dtype=torch.long), torch.zeros(classes, width, dtype=torch.double))

    def fit(self, samples: Iterable[LabelledBatch]) -> list[FittedPart]:
        """Set each type's head from its samples; a type without any keeps the head that it has."""
        sums: dict[str, ClassSums] = {}
        for part in samples:
            name = part.batch.backbone
            of_type = sums.setdefault(name, self.empty_sums(name))
            assert part.labels is not None  # classes are checked when the network is made
            of_type.add(part.labels.cpu(), part.batch.rows.flatten(1).cpu())
            of_type.label_rates, of_type.mixture, of_type.variance = part.label_rates, part.mixture, part.variance
        for name, of_type in sums.items():
            weight, bias = _discriminant(of_type)
            self.heads[name].load_state_dict({"weight": weight, "bias": bias})
        return []


def _discriminant(sums: ClassSums) -> tuple[Tensor, Tensor]:
    """Return W [K, d] and b [K]."""
    count = int(sums.counts.sum())
    classes, width = sums.sums.shape
    if not count:
        return torch.zeros(classes, width), torch.zeros(classes)
    (kept, flipped), (own, other) = sums.label_rates, sums.mixture
    seen = sums.counts.double() / count
    shares = ((seen - flipped) / (kept - flipped)).clamp_min(0.25 / classes)
    shares = shares / shares.sum()
    mixed = sums.sums / count  # E[1(ỹ = k) z], [K, d]
    mean = mixed.sum(0) / (own + classes * other)
    means = (mixed - other * mean) / own / shares[:, None]
    # of a value of each mean: noise, and a unit vector's own spread
    variance = seen * (sums.variance + 1 / width) / (count * own**2 * shares**2)
    apart, precision = means - mean, width / _RIDGE
    weight = precision * apart
    bias = -weight @ mean - 0.5 * precision * (apart.square().sum(1) - width * variance) + shares.log()
    return weight.float(), bias.float()
