"""One short unit vector from all sampled vectors of a sample, along the directions in which public text varies most.

Noise at full width is hopeless: it grows with the number of values, and most of them say little.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mobillm_flower.errors import ArgumentError

_COLUMNS = 256  # of the activations, read at a time


@dataclass(frozen=True)
class Projection:
    """Centre, project, scale to unit norm.

    Parameters
    ----------
    centre : Tensor
        [D], float64; D = M·P·d_b.
    basis : Tensor
        [D, d], float64.
    """

    centre: Tensor
    basis: Tensor

    def __call__(self, activations: Tensor) -> Tensor:
        """Return unit vectors [T, 1, 1, d], float64, of activations [T, M, P, d_b]."""
        projected = (activations.flatten(1).double() - self.centre) @ self.basis
        norms = torch.linalg.vector_norm(projected, dim=1, keepdim=True)
        first = torch.zeros_like(projected)
        first[:, 0] = 1  # a sample at the very centre has no direction: any will do
        unit = torch.where(norms > 1e-9, projected / norms.clamp_min(1e-9), first)
        return unit[:, None, None, :]


def fit_principal(activations: Tensor, dimensions: int) -> Projection:
    """Fit principal directions of standardised public activations, turned so that no value stands out.

    Not whitened: at some hundred dimensions that only raises what public text hardly varies in. With V [D, d] the
    directions and R [D, d] fixed random numbers the basis is V·U, U the orthogonal matrix nearest to Vᵀ·R. It depends
    on the space that the directions span, and not on which of two near ones comes first: devices that fit it by
    themselves agree. A vector's length is spread evenly over its values, so that all can be rounded on one scale.

    Memory is that of the matrix of the texts' products [N, N] and its eigenvectors: D values are read some at a time.

    Parameters
    ----------
    activations, dimensions
        As of `fit_projection`.

    Raises
    ------
    ArgumentError
        As `fit_projection`.
    """
    rows = activations.flatten(1)
    _require_room(rows, dimensions)
    centre, scale = torch.zeros(rows.shape[1]).double(), torch.zeros(rows.shape[1]).double()
    columns = [slice(start, start + _COLUMNS) for start in range(0, rows.shape[1], _COLUMNS)]

    def standardised(part: slice) -> Tensor:
        return (rows[:, part].double() - centre[part]) / scale[part]  # [N, columns]

    products = torch.zeros(len(rows), len(rows), dtype=torch.double)
    for part in columns:
        values = rows[:, part].double()
        centre[part], scale[part] = values.mean(0), values.std(0, correction=0).clamp_min(1e-6)
        values = standardised(part)
        products.addmm_(values, values.T)
    eigenvalues, vectors = torch.linalg.eigh(products)
    del products
    kept = (vectors[:, -dimensions:] / eigenvalues[-dimensions:].clamp_min(1e-12).sqrt()).contiguous()  # [N, d]
    del vectors
    generator = torch.Generator().manual_seed(dimensions)
    mixed = torch.zeros(dimensions, dimensions, dtype=torch.double)
    for part in columns:
        values = standardised(part)
        random = torch.randn(values.shape[1], dimensions, generator=generator, dtype=torch.double)
        mixed.addmm_(kept.T, values @ random)
    left, _, right = torch.linalg.svd(mixed)
    turned = kept @ (left @ right)
    basis = torch.cat([standardised(part).T @ turned / scale[part, None] for part in columns])
    return Projection(centre, basis)


def fit_projection(activations: Tensor, dimensions: int) -> Projection:
    """Fit whitened principal directions on public activations.

    Parameters
    ----------
    activations : Tensor
        [N, M, P, d_b]: N public texts.
    dimensions : int
        d; below N and at most M·P·d_b.

    Returns
    -------
    Projection
        The mean, and the d directions of the largest variance, each divided by its standard deviation. The sign of
        each is fixed, so that devices that fit it by themselves agree up to rounding.

    Raises
    ------
    ArgumentError
        There are too few texts, or they vary in fewer directions.
    """
    rows = activations.flatten(1).double()
    _require_room(rows, dimensions)
    centre = rows.mean(0)
    _, singular, directions = torch.linalg.svd(rows - centre, full_matrices=False)
    singular, directions = singular[:dimensions], directions[:dimensions]
    if float(singular[-1]) <= 1e-6 * float(singular[0]):
        raise ArgumentError(
            "dimensions",
            dimensions,
            "is too many: the public texts vary in fewer directions; choose fewer, or give more varied public texts",
        )
    directions = _signed(directions)
    deviations = singular / len(rows) ** 0.5
    return Projection(centre, (directions / deviations[:, None]).T.contiguous())


def principal_bytes(num_texts: int, num_values: int, dimensions: int) -> int:
    """Return about what `fit_principal` takes at its peak: float32 activations, float64 products and eigenvectors."""
    return 4 * num_texts * num_values + 8 * (4 * num_texts**2 + num_values * dimensions)


def most_dimensions(num_texts: int, num_values: int) -> int:
    """Return the most dimensions of a projection that is fitted on so many texts of so many values."""
    return min(num_texts - 1, num_values)


def _require_room(rows: Tensor, dimensions: int) -> None:
    most = most_dimensions(*rows.shape)
    if dimensions > most:
        raise ArgumentError(
            "dimensions",
            dimensions,
            f"needs more than {len(rows)} public texts, and at most {rows.shape[1]} values a sample; choose at most "
            f"{most}, or give more public texts",
        )


def _signed(directions: Tensor) -> Tensor:
    """Return directions [d, D] whose largest value is positive: devices that fit them by themselves agree."""
    largest = directions.abs().argmax(1, keepdim=True)
    return directions * directions.gather(1, largest).sign()
