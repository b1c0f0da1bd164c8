"""What a device remembers of secure sums, in its folder: the sum that is open, and whose sums it has agreed to."""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mobillm_flower.errors import ReleaseRefused
from mobillm_flower.runs.files import private_files, write_atomically

MAX_AGREED = 256
"""Most sets of devices that a device remembers; it agrees to no further one in the same run."""


@dataclass
class OpenSum:
    """A sum that a device takes part in; texts are hexadecimal, and empty before their phase and after the last use.

    Parameters
    ----------
    offer : str
        The server's, which the rest belongs to.
    cipher_key, mask_key, seed : str
        Private keys and the seed of the device's own mask.
    roster : str
        Who takes part.
    sealed : str
        The encrypted shares that the device gave its neighbours.
    delivered : str
        Hash of the shares that it was given, and so of the set it masks with.
    shares : mapping of str to str
        By number of the owner: the share of its seed, then that of its mask key.
    vector : str
        Hash of what was masked.
    survivors : str
        The one set whose sum the device helps to open.
    revealed : str
        The shares that it has given the server.
    """

    offer: str
    cipher_key: str = ""
    mask_key: str = ""
    seed: str = ""
    roster: str = ""
    sealed: str = ""
    delivered: str = ""
    shares: dict[str, str] = field(default_factory=dict)
    vector: str = ""
    survivors: str = ""
    revealed: str = ""


@dataclass(frozen=True)
class AgreedSum:
    """A set of devices whose sum a device has agreed to open.

    Parameters
    ----------
    run : int
        Flower's id of the run.
    purpose : str
        What was added up.
    devices : tuple of str
        Pseudonyms.
    vector : str
        Hash of what the device itself gave.
    """

    run: int
    purpose: str
    devices: tuple[str, ...]
    vector: str


class SumsFolder:
    """The folder `secure-sums` in a device's folder (0700, files 0600), written whole or not at all.

    Parameters
    ----------
    device_folder : Path
        The device's.
    """

    def __init__(self, device_folder: Path) -> None:
        self.path = device_folder / "secure-sums"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Let one process at a time answer: two answers at once could be for two sets."""
        with private_files():
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            with (self.path / "lock").open("w") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX)
                yield

    def begin(self, nonce: bytes, state: OpenSum) -> None:
        """Open a sum; one that was open before is forgotten with its secrets."""
        self.forget_open()
        self.write(nonce, state)

    def read(self, nonce: bytes) -> OpenSum | None:
        """Return an open sum, None where there is none of this nonce."""
        values = self._load(self._open(nonce), {})
        return OpenSum(**values) if values else None

    def write(self, nonce: bytes, state: OpenSum) -> None:
        """Replace what is known of an open sum."""
        write_atomically(self._open(nonce), json.dumps(asdict(state)).encode())

    def agreed(self) -> list[AgreedSum]:
        """Return the sets that the device has agreed to, oldest first."""
        return [AgreedSum(**{**one, "devices": tuple(one["devices"])}) for one in self._load(self._agreed, [])]

    def agree(self, one: AgreedSum) -> None:
        """Remember a set."""
        known = [*self.agreed(), one]
        write_atomically(self._agreed, json.dumps([asdict(item) for item in known]).encode())

    def forget_open(self) -> None:
        """Delete what is left of open sums; the sets that were agreed to stay."""
        for file in self.path.glob("*.open.json"):
            file.unlink()

    @property
    def _agreed(self) -> Path:
        return self.path / "agreed.json"

    def _open(self, nonce: bytes) -> Path:
        return self.path / f"{nonce.hex()}.open.json"

    @staticmethod
    def _load(file: Path, missing: Any) -> Any:
        try:
            loaded = json.loads(file.read_bytes())
        except FileNotFoundError:
            return missing
        except ValueError as error:
            raise ReleaseRefused(
                f"{file.name} in the device's folder is damaged; restore it, or remove the folder secure-sums, after "
                "which the device does not know any more which sums it has agreed to"
            ) from error
        good = isinstance(loaded, type(missing))
        if good and isinstance(loaded, dict):
            good = set(loaded) == {one.name for one in fields(OpenSum)}
        if not good:
            raise ReleaseRefused(
                f"{file.name} in the device's folder is of another release; remove the folder secure-sums"
            )
        return loaded
