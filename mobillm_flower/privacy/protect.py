"""What is done to a sample's activations and label before they leave the device, and what a server may know of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mobillm_flower.core.perturb import perturb
from mobillm_flower.privacy.labelled_cap import LabelledCap
from mobillm_flower.privacy.noise import derive, standard_normal, uniforms
from mobillm_flower.privacy.randomized_response import RandomizedResponse


@dataclass(frozen=True)
class Protection:
    """The mechanisms of a run; each that is 0 is off.

    Parameters
    ----------
    classes : int
        K; 1 for regression.
    joint_epsilon : float
        ε of `LabelledCap` over vector and label; the others are then off.
    label_epsilon : float
        ε of randomized response.
    clip_norm, sigma : float
        C and σ of the Gaussian mechanism.
    """

    classes: int
    joint_epsilon: float = 0.0
    label_epsilon: float = 0.0
    clip_norm: float = 0.0
    sigma: float = 0.0

    def __call__(
        self, activations: Sequence[Tensor], labels: Tensor, noise_keys: Sequence[bytes]
    ) -> tuple[list[Tensor], Tensor]:
        """Return what may be encoded and sent.

        Parameters
        ----------
        activations : sequence of Tensor
            One sample each, [T, M, P, d]; [1, 1, 1, d] of unit norm, float64, for `LabelledCap`.
        labels : Tensor
            [B] int64, or the targets of a regression, which stay as they are.
        noise_keys : sequence of bytes
            32 secret bytes a sample, of its release alone.

        Returns
        -------
        tuple
            Activations, float32, and labels.
        """
        if self.joint_epsilon:
            return self._jointly(activations, labels, noise_keys)
        protected = []
        for sample, key in zip(activations, noise_keys, strict=True):
            noise = standard_normal(key, tuple(sample.shape)) if self.sigma else None
            protected.append(perturb(sample.float(), clip_norm=self.clip_norm, sigma=self.sigma, noise=noise))
        if self.label_epsilon:
            drawn = np.stack([uniforms(derive(key, "label"), 2) for key in noise_keys])
            labels = torch.from_numpy(self._response.release(labels.numpy(), uniforms=drawn))
        return protected, labels

    def _jointly(
        self, activations: Sequence[Tensor], labels: Tensor, noise_keys: Sequence[bytes]
    ) -> tuple[list[Tensor], Tensor]:
        vectors = np.stack([sample.reshape(-1).double().numpy() for sample in activations])
        dimensions = vectors.shape[1]
        released, noisy = self._cap.release(
            vectors,
            labels.numpy(),
            uniforms=np.stack([uniforms(derive(key, "cap"), 4) for key in noise_keys]),
            normals=np.stack(
                [standard_normal(derive(key, "across"), (dimensions,)).double().numpy() for key in noise_keys]
            ),
        )
        shape = activations[0].shape
        return [torch.from_numpy(row).float().reshape(shape) for row in noisy], torch.from_numpy(released)

    @property
    def label_rates(self) -> tuple[float, float]:
        """P[ỹ = y], and P[ỹ = k] of each other label k."""
        if self.joint_epsilon and self.classes > 1:
            kept = self._cap.label_kept
            return kept, (1 - kept) / (self.classes - 1)
        return (self._response.kept, self._response.flipped) if self.label_epsilon else (1.0, 0.0)

    @property
    def mixture(self) -> tuple[float, float]:
        """A and b of E[1(ỹ = k) z] = a·π_k·μ_k + b·Σ_j π_j·μ_j: how class means lie in what is sent.

        π_k is the share of class k, μ_k the mean of its vectors. `LabelledCap` sends vectors without signal beside a
        wrong label; elsewhere vector and label are independent of each other's noise.
        """
        if self.joint_epsilon:
            return self._cap.height, 0.0
        kept, flipped = self.label_rates
        return kept - flipped, flipped

    def longest(self, num_values: Tensor) -> Tensor | None:
        """Return above which L2 norm so many values of a sample were not protected by this, or None where any may be.

        A codec's error adds up to a quarter; of noise, six standard deviations beyond its mean length are allowed.
        """
        clipped, sigma = (self._cap.height, 1.0) if self.joint_epsilon else (self.clip_norm, self.sigma)
        if not clipped:
            return None
        return clipped * 1.25 + sigma * (num_values.sqrt() * 1.25 + 6)

    @property
    def variance(self) -> float:
        """Variance of the noise on each value."""
        return 1.0 if self.joint_epsilon else self.sigma**2

    @cached_property
    def _cap(self) -> LabelledCap:
        return LabelledCap(self.joint_epsilon, self.classes)

    @cached_property
    def _response(self) -> RandomizedResponse:
        return RandomizedResponse(self.label_epsilon, self.classes)
