"""Shamir's secret sharing (1979) of 32 bytes over the prime field of 2²⁵⁶ + 297 elements."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from mobillm_flower.errors import ArgumentError

SECRET_BYTES, SHARE_BYTES = 32, 33
PRIME = 2**256 + 297
"""The smallest prime above 2²⁵⁶: every 32 bytes are one of its elements."""


def split(secret: bytes, *, threshold: int, num_shares: int) -> list[bytes]:
    """Return shares of a secret: values at 1, 2, … of a random polynomial of degree `threshold` - 1 that is it at 0.

    Any `threshold` shares give the secret; fewer are independent of it.

    Parameters
    ----------
    secret : bytes
        32 bytes.
    threshold, num_shares : int
        At least 1, and at least `threshold`.

    Returns
    -------
    list of bytes
        33 bytes each; the share at point x is number x - 1.
    """
    if len(secret) != SECRET_BYTES:
        raise ArgumentError("secret", len(secret), f"bytes are shared, it must be {SECRET_BYTES}")
    if not 1 <= threshold <= num_shares:
        raise ArgumentError("threshold", threshold, f"must be from 1 to the number of shares, {num_shares}")
    coefficients = [int.from_bytes(secret, "big"), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    return [_at(coefficients, point).to_bytes(SHARE_BYTES, "big") for point in range(1, num_shares + 1)]


def combine(shares: Sequence[tuple[int, bytes]]) -> bytes | None:
    """Return the secret that shares give by Lagrange interpolation at 0, None where it is no 32 bytes.

    Shares of which one is wrong give another secret: the caller compares it with what its owner committed to.

    Parameters
    ----------
    shares : sequence of (int, bytes)
        Points, all different, and values; exactly as many as the threshold.
    """
    points = [point for point, _ in shares]
    total = 0
    for point, value in shares:
        above, below = 1, 1
        for other in points:
            if other != point:
                above, below = above * other % PRIME, below * (other - point) % PRIME
        total = (total + int.from_bytes(value, "big") * above * pow(below, -1, PRIME)) % PRIME
    return total.to_bytes(SECRET_BYTES, "big") if total < 2**256 else None


def _at(coefficients: Sequence[int], point: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * point + coefficient) % PRIME
    return value
