"""The discrete Gaussian over the whole numbers: noise for sums that are whole numbers themselves.

P[x] is proportional to exp(−x²/2σ²) (Canonne, Kamath and Steinke 2020, arXiv 2004.00010). It is drawn by their
rejection from a discrete Laplace distribution. Where they compare rational numbers, 53 bits of a ChaCha20 stream are
compared with a float64 probability, which moves each draw by at most 2^-50 in total variation.
"""

from __future__ import annotations

import math
import secrets

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

_MOST = 2.0**40
"""Largest σ: products of draws stay exact in float64."""


def discrete_gaussian(variances: NDArray[np.float64], *, key: bytes = b"") -> NDArray[np.int64]:
    """Draw one number for each variance σ²; 0 where σ² is 0.

    Parameters
    ----------
    variances : ndarray
        [W] float64, at least 0.
    key : bytes
        32 secret bytes, of which the same draws follow; empty: the system's randomness.
    """
    stream = _Stream(key or secrets.token_bytes(32))
    drawn = np.zeros(len(variances), np.int64)
    open_ = np.flatnonzero(variances > 0)
    if len(open_) and float(variances.max()) > _MOST**2:
        raise ValueError("sigma is above 2^40")
    while len(open_):
        spread = variances[open_]
        values, kept = _laplace(np.floor(np.sqrt(spread)) + 1, stream)
        distance = np.abs(values) - spread / (np.floor(np.sqrt(spread)) + 1)
        kept &= stream.uniforms(len(open_)) < np.exp(-np.square(distance) / (2 * spread))
        drawn[open_[kept]] = values[kept]
        open_ = open_[~kept]
    return drawn


def _laplace(scales: NDArray[np.float64], stream: _Stream) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return values, and which of them are draws of P[x] proportional to exp(−|x|/t); the others are to be left."""
    count = len(scales)
    below = np.floor(stream.uniforms(count) * scales)
    kept = stream.uniforms(count) < np.exp(-below / scales)
    # how many in a row of probability 1/e
    whole = np.floor(-np.log(stream.uniforms(count)))
    negative = stream.uniforms(count) < 0.5
    values = below + scales * whole
    kept &= ~(negative & (values == 0))
    return np.where(negative, -values, values).astype(np.int64), kept


class _Stream:
    """Uniform numbers in (0, 1) of one ChaCha20 stream, one after another."""

    def __init__(self, key: bytes) -> None:
        self._cipher = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()

    def uniforms(self, count: int) -> NDArray[np.float64]:
        words = np.frombuffer(self._cipher.update(bytes(8 * count)), "<u8") >> np.uint64(11)
        uniform: NDArray[np.float64] = (words.astype(np.float64) + 0.5) * 2.0**-53
        return uniform


def central_rho(epsilon: float, delta: float) -> float:
    """Return the largest ρ of zero-concentrated differential privacy that implies (ε, δ).

    δ = min over α > 1 of exp((α−1)(αρ−ε))/(α−1)·(1−1/α)^α (Canonne, Kamath and Steinke 2020, corollary 13).
    """
    low, high = 0.0, epsilon + 1.0
    for _ in range(200):
        rho = (low + high) / 2
        low, high = (rho, high) if _log_delta(rho, epsilon) <= math.log(delta) else (low, rho)
    return low


def _log_delta(rho: float, epsilon: float) -> float:
    """Return log δ of ρ at ε, an upper bound: the least over a fine grid of α."""
    alpha = 1 + np.exp(np.linspace(-6, 12, 4000))
    values = (alpha - 1) * (alpha * rho - epsilon) - np.log(alpha - 1) + alpha * np.log1p(-1 / alpha)
    return float(values.min())
