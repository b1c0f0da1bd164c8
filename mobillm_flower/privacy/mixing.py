"""A secret rotation that devices share and the server does not know: obfuscation, never a guarantee.

Activations and prediction differences are rotated before they are sent. The square loss is invariant under it, so that
the server trains as well as without. It hides class names and what a direction means from who has no leaked samples;
clusters, sizes of classes and whatever a few leaked samples fix stay plain (`mobillm audit` measures it).
"""

from __future__ import annotations

import hashlib
import hmac
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from mobillm_flower.errors import SettingsError
from mobillm_flower.privacy.noise import derive, standard_normal

_KEY_BYTES = 32


class MixingKey:
    """32 secret bytes, and the rotations drawn from them.

    Parameters
    ----------
    secret : bytes
        The same on all devices of a fleet.

    Raises
    ------
    SettingsError
        There are not 32 of them.
    """

    def __init__(self, secret: bytes) -> None:
        if len(secret) != _KEY_BYTES:
            raise SettingsError(f"a mixing key has {_KEY_BYTES} bytes, this one has {len(secret)}")
        self._secret = secret

    @classmethod
    def read(cls, file: str | Path) -> MixingKey:
        """Read a file of 64 hexadecimal digits.

        Raises
        ------
        SettingsError
            It cannot be read, others than its owner can read it, or it holds something else.
        """
        path = Path(file).expanduser()
        how = "make one with: python -c 'import secrets; print(secrets.token_hex(32))'"
        try:
            mode, text = path.stat().st_mode, path.read_text("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"privacy.mixing-key={path}: cannot be read ({type(error).__name__}); {how}") from error
        if mode & 0o077:
            raise SettingsError(f"privacy.mixing-key={path} can be read by others; set its mode to 0600")
        try:
            return cls(bytes.fromhex(text))
        except (ValueError, SettingsError) as error:
            raise SettingsError(f"privacy.mixing-key={path} does not hold 64 hexadecimal digits; {how}") from error

    @property
    def name(self) -> str:
        """16 hexadecimal digits that tell keys apart and nothing about them."""
        return hmac.new(self._secret, b"mixing key", hashlib.sha256).hexdigest()[:16]

    def activations(self, rows: Tensor) -> Tensor:
        """Rotate vectors [..., d]; layers and pivots alike, so that what they have in common they keep."""
        return rows @ _rotation(self._secret, f"activations {rows.shape[-1]}", rows.shape[-1]).to(rows.dtype)

    def targets(self, rows: Tensor) -> Tensor:
        """Rotate prediction differences [B, K]."""
        return rows @ _rotation(self._secret, f"targets {rows.shape[-1]}", rows.shape[-1]).to(rows.dtype)

    def outputs(self, rows: Tensor) -> Tensor:
        """Rotate what the side network says back, [B, K]."""
        return rows @ _rotation(self._secret, f"targets {rows.shape[-1]}", rows.shape[-1]).to(rows.dtype).T


def mixing_key(name: str, file: str) -> MixingKey | None:
    """Return the key that settings name, None where they name none.

    Raises
    ------
    SettingsError
        The file is missing or unusable, or holds another key.
    """
    if not name:
        return None
    if not file:
        raise SettingsError(
            f"privacy.mixing={name} needs privacy.mixing-key, the file with that key, in this device's own settings"
        )
    key = MixingKey.read(file)
    if key.name != name:
        raise SettingsError(f"privacy.mixing-key={file} holds the key {key.name}, privacy.mixing={name} is another")
    return key


@lru_cache(maxsize=8)
def _rotation(secret: bytes, purpose: str, size: int) -> Tensor:
    """Return a uniformly drawn orthogonal matrix [n, n], float64."""
    normal = standard_normal(derive(secret, purpose), (size, size)).double()
    q, r = torch.linalg.qr(normal)
    rotation: Tensor = q * r.diagonal().sign()
    return rotation
