"""Who a device is: a key pair that follows from its secret, and a pseudonym that is the public key's hash."""

from __future__ import annotations

import hashlib
import hmac

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_RAW_BYTES = 32


class Identity:
    """A device's Ed25519 keys (RFC 8032); its folder keeps the secret alone.

    Parameters
    ----------
    secret : bytes
        The device's.
    """

    def __init__(self, secret: bytes) -> None:
        seed = hmac.new(secret, b"identity", hashlib.sha256).digest()
        self._private = Ed25519PrivateKey.from_private_bytes(seed)

    @property
    def public_key(self) -> bytes:
        """32 bytes."""
        return self._private.public_key().public_bytes_raw()

    @property
    def pseudonym(self) -> str:
        """The name the server knows the device by."""
        return pseudonym_of(self.public_key)

    def sign(self, statement: bytes) -> bytes:
        """Return a signature of 64 bytes."""
        return self._private.sign(statement)


def pseudonym_of(public_key: bytes) -> str:
    """Return the name of the device with a public key: 32 hex digits of its SHA-256."""
    return hashlib.sha256(public_key).hexdigest()[:_RAW_BYTES]


def is_signed(statement: bytes, signature: bytes, public_key: bytes) -> bool:
    """Whether the holder of a public key's private key signed a statement."""
    if len(public_key) != _RAW_BYTES:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, statement)
    except (InvalidSignature, ValueError):
        return False
    return True
