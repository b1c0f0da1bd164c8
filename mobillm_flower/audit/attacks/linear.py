"""The linear algebra that the attacks share: principal components, ridge regression, the scale of a noisy signal."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MAX_FEATURES = 512
"""Uploads that are wider are reduced to so many principal components first."""


@dataclass(frozen=True)
class Components:
    """Principal components of uploads.

    Parameters
    ----------
    centre : Tensor
        [D].
    basis : Tensor
        [D, q], orthonormal columns.
    spread : Tensor
        [q], the standard deviation along each.
    """

    centre: Tensor
    basis: Tensor
    spread: Tensor

    def __call__(self, rows: Tensor, *, whiten: bool = False) -> Tensor:
        """Return [N, q] of rows [N, D], with `whiten` each divided by its spread."""
        projected = (rows - self.centre) @ self.basis
        return projected / self.spread if whiten else projected


def components(rows: Tensor, most: int = MAX_FEATURES, *, seed: int = 0) -> Components:
    """Return the first `most` principal components of rows [N, D] (all there are, where fewer)."""
    centre = rows.mean(0)
    centred = rows - centre
    size = min(most, *rows.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _, values, basis = torch.svd_lowrank(centred, q=size, niter=1)
    spread = values / max(1, len(rows) - 1) ** 0.5
    return Components(centre, basis, spread.clamp_min(1e-6 * float(spread.max().clamp_min(1e-30))))


@dataclass(frozen=True)
class Ridge:
    """Ridge regression solved for any strength at once: W(λ) = V (S + λ)⁻¹ Vᵀ XᵀY.

    Parameters
    ----------
    mean_in, mean_out : Tensor
        [D] and [K].
    values, vectors : Tensor
        Eigenvalues [D] and eigenvectors [D, D] of XᵀX / N.
    cross : Tensor
        VᵀXᵀY / N, [D, K].
    """

    mean_in: Tensor
    mean_out: Tensor
    values: Tensor
    vectors: Tensor
    cross: Tensor

    @classmethod
    def fit(cls, rows: Tensor, wanted: Tensor) -> Ridge:
        """Fit rows [N, D] to wanted [N, K], both float32."""
        mean_in, mean_out = rows.mean(0), wanted.mean(0)
        x, y = rows - mean_in, wanted - mean_out
        values, vectors = eigen(x.T @ x / len(x))
        return cls(mean_in, mean_out, values.clamp_min(0), vectors, vectors.T @ (x.T @ y) / len(x))

    @property
    def strengths(self) -> list[float]:
        """Strengths worth trying, in parts of the mean eigenvalue."""
        mean = float(self.values.mean().clamp_min(1e-12))
        return [share * mean for share in (0.01, 0.1, 1.0, 10.0)]

    def weight(self, strength: float) -> Tensor:
        """Return W(λ), [D, K]."""
        return self.vectors @ (self.cross / (self.values + strength)[:, None])

    def predict(self, rows: Tensor, strength: float) -> Tensor:
        """Return [N, K]."""
        return (rows - self.mean_in) @ self.weight(strength) + self.mean_out


def eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues [D] and eigenvectors [D, D]; computed in float64 where float32 does not converge."""
    try:
        values, vectors = torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        values, vectors = (part.to(matrix.dtype) for part in torch.linalg.eigh(matrix.double()))
    return values, vectors


def signal(noisy: Tensor, clean: Tensor) -> tuple[float, float]:
    """Return (a, σ²) of noisy ≈ a · clean + noise, by least squares over public texts that the attacker put through.

    Parameters
    ----------
    noisy, clean : Tensor
        [N, D], the same texts with the whole mechanism and without its noise.
    """
    scale = float((noisy * clean).sum() / clean.square().sum().clamp_min(1e-30))
    return scale, float((noisy - scale * clean).square().mean())
