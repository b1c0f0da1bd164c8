"""A counter outside the device's folder: who puts an older copy of the folder back does not put this back with it."""

from __future__ import annotations

import hmac
from pathlib import Path

from mobillm_flower.errors import ReleaseRefused
from mobillm_flower.runs.files import write_atomically


class Counter:
    """A file with the number of changes of a ledger, signed with the device's secret.

    Parameters
    ----------
    file : Path
        Outside the device's folder, best where its backups do not reach.
    key : bytes
        Of the device: the file of another one is refused.
    """

    def __init__(self, file: Path, key: bytes) -> None:
        self.file, self._key = file, key

    def read(self) -> int | None:
        """Return the number, None where the file is missing.

        Raises
        ------
        ReleaseRefused
            It cannot be read, or is another device's.
        """
        try:
            number, _, mac = self.file.read_text("ascii").strip().partition(" ")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise ReleaseRefused(f"this device's counter cannot be read ({type(error).__name__})") from error
        if not number.isdecimal() or not hmac.compare_digest(mac, self._mac(number)):
            raise ReleaseRefused(
                "this device's counter is damaged, or another device's; give each device a file of its own in "
                "device-counter"
            )
        return int(number)

    def write(self, number: int) -> None:
        """Replace the number, on disk when this returns; raises ReleaseRefused where it cannot be written."""
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomically(self.file, f"{number} {self._mac(str(number))}\n".encode(), mode=0o600)
        except OSError as error:
            raise ReleaseRefused(f"this device's counter cannot be written ({type(error).__name__})") from error

    def _mac(self, number: str) -> str:
        return hmac.new(self._key, f"counter {number}".encode(), "sha256").hexdigest()
