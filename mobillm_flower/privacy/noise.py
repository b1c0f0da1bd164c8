"""Noise from ChaCha20, keyed by the release: the same release always has the same noise.

One release may need several kinds of draws. Each has a key of its own, `derive(noise_key, purpose)`: draws under one
key are cut from one stream of bytes, and two releases that share a stream give the sample away.
"""

from __future__ import annotations

import hashlib
import hmac

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor


def derive(key: bytes, purpose: str) -> bytes:
    """Return the key of one purpose of a release: HMAC-SHA256(key, purpose), 32 bytes.

    Parameters
    ----------
    key : bytes
        32 secret bytes, derived from the device's secret and the release id.
    purpose : str
        What is drawn, such as `cap` or `label`; different names have nothing in common.
    """
    return hmac.new(key, purpose.encode(), hashlib.sha256).digest()


def key_stream(key: bytes, num_bytes: int) -> bytes:
    """Return bytes of the ChaCha20 stream of a 32-byte key, nonce 0; a key must serve one purpose only."""
    cipher = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None)
    return cipher.encryptor().update(bytes(num_bytes))


def uniforms(key: bytes, count: int) -> NDArray[np.float64]:
    """Draw from the uniform distribution on the open interval (0, 1).

    Parameters
    ----------
    key : bytes
        32 secret bytes of this purpose; see `derive`.
    count : int
        How many.

    Returns
    -------
    ndarray [count]
        Float64, of 52 bits, centred in their cell so that neither 0 nor 1 occurs.
    """
    words = np.frombuffer(key_stream(key, 8 * count), "<u8") >> np.uint64(12)
    return (words.astype(np.float64) + 0.5) * 2.0**-52


def standard_normal(key: bytes, shape: tuple[int, ...]) -> Tensor:
    """Draw standard normal noise.

    The inverse of the normal distribution function in float64, of `uniforms`. Values reach about ±8.2.

    Parameters
    ----------
    key : bytes
        32 secret bytes of this purpose; see `derive`.
    shape : tuple of int
        Shape of the result.

    Returns
    -------
    Tensor
        float32.
    """
    drawn = ndtri(uniforms(key, int(np.prod(shape))))
    return torch.from_numpy(drawn.astype(np.float32)).reshape(shape)
