"""Keys two devices agree on, and masks: ChaCha20 streams of words that are uniform mod 2ᵏ."""

from __future__ import annotations

import hashlib

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from mobillm_flower.errors import MismatchError
from mobillm_flower.privacy.noise import key_stream
from mobillm_flower.wire.secure_sums.shamir import SHARE_BYTES

Words = NDArray[np.unsignedinteger]
_NONCE_BYTES, _TAG_BYTES = 12, 16
SEALED_BYTES = _NONCE_BYTES + 2 * SHARE_BYTES + _TAG_BYTES
"""Two shares, encrypted."""


def public_of(private: bytes) -> bytes:
    """Return the public key of a private X25519 key (RFC 7748), 32 bytes each."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agreed_key(private: bytes, public: bytes, purpose: bytes) -> bytes:
    """Return 32 bytes that two devices agree on: HKDF-SHA256 of the whole X25519 secret.

    Parameters
    ----------
    private, public : bytes
        One's own key and the other's.
    purpose : bytes
        What the key is for: of one sum, one pair, one use.

    Raises
    ------
    MismatchError
        The other's key is one of the few with which any secret is the same.
    """
    try:
        secret = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise MismatchError("a device's public key agrees on the same secret with everybody; leave it out") from error
    return _derive(secret, purpose)


def pair_mask(private: bytes, public: bytes, *, digest: bytes, pair: tuple[int, int], words: int, bits: int) -> Words:
    """Return the mask of a pair of devices, which the first adds and the second subtracts.

    Parameters
    ----------
    private, public : bytes
        The mask keys of one and of the other.
    digest : bytes
        Of the roster: run, sum, group and everybody's keys.
    pair : tuple of int
        Numbers of the two in the roster; the order does not matter.
    words, bits : int
        Length, and 32 or 64.
    """
    first, second = sorted(pair)
    purpose = b"pair mask" + digest + first.to_bytes(4, "big") + second.to_bytes(4, "big")
    return _stream(agreed_key(private, public, purpose), words, bits)


def self_mask(seed: bytes, *, digest: bytes, words: int, bits: int) -> Words:
    """Return a device's own mask, from 32 random bytes."""
    return _stream(_derive(seed, b"self mask" + digest), words, bits)


def commitment_of(seed: bytes) -> bytes:
    """Return the hash by which a seed is known again; it says nothing of 32 random bytes."""
    return hashlib.sha256(b"mobillm-flower secure sums 1 seed" + seed).digest()


def seal(shares: bytes, key: bytes, *, nonce: bytes, bound_to: bytes) -> bytes:
    """Encrypt a pair of shares by ChaCha20-Poly1305 (RFC 8439)."""
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, shares, bound_to)


def unseal(sealed: bytes, key: bytes, *, bound_to: bytes) -> bytes | None:
    """Return a pair of shares, None where it was not encrypted under this key for this pair and sum."""
    try:
        return ChaCha20Poly1305(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], bound_to)
    except InvalidTag:
        return None


def word_type(bits: int) -> np.dtype[np.unsignedinteger]:
    """Return the words' type, in the order of bytes that travels."""
    return np.dtype(f"<u{bits // 8}")


def _derive(secret: bytes, purpose: bytes) -> bytes:
    info = b"mobillm-flower secure sums 1 " + purpose
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(secret)


def _stream(key: bytes, words: int, bits: int) -> Words:
    return np.frombuffer(key_stream(key, words * bits // 8), word_type(bits))
