"""The device's own folder: its secret, what is derived from it, its release ledger and outbox.

Flower's `Context.state` and node ids do not survive a restart; this folder does. It is readable by its owner alone
(0700, files 0600). Nothing in it is ever sent, save what a release puts into the outbox.

A *release* is one sample's bytes under one choice of everything that shapes them. Its life: **prepared** (bytes in
the outbox; a re-send is those bytes) until a request shows that the server holds it, then **held** (bytes deleted;
releasing that id again is refused).
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mobillm_flower.errors import ReleaseRefused
from mobillm_flower.privacy.counter import Counter
from mobillm_flower.privacy.identity import Identity
from mobillm_flower.privacy.ledger import Ledger, Limits
from mobillm_flower.privacy.ledger_file import make_ledger
from mobillm_flower.runs.files import make_private, touch_private

ID_BYTES = 16
"""Length of release ids, sample ids and hashes of texts."""


class DeviceFolder:
    """A device's secret and ledger.

    Parameters
    ----------
    path : Path
        The folder; made with mode 0700 where it is missing.
    limits : Limits, optional
        What the device agrees to, ever; nothing is bounded by default.
    counter : Path or None
        A file outside the folder that notices when an older copy of the folder is put in its place.

    Raises
    ------
    ReleaseRefused
        Secret or ledger is missing while the other is there; one of them, or the counter, is damaged or older.
    SettingsError
        The folder cannot be made or written to.
    """

    def __init__(self, path: str | Path, *, limits: Limits | None = None, counter: Path | None = None) -> None:
        self.path = Path(path)
        make_private(self.path, "device-folder")
        self.path.chmod(0o700)
        known = (self.path / "secret").exists()
        if known and not (self.path / "ledger.sqlite").exists():  # the secret is made last
            raise ReleaseRefused(
                "the device folder has its secret and no ledger: what was released is not known any more; restore "
                "ledger.sqlite, or remove the folder to start as a new device, which promises nothing for what was "
                "released before"
            )
        file = self._make_once("ledger.sqlite", make_ledger)
        if not known and not (self.path / "secret").exists():
            self._refuse_orphan(file)
        self._secret = self._load_secret()
        outside = None if counter is None else Counter(counter, self._derived(b"counter"))
        self.ledger = Ledger(file, limits=limits or Limits(), counter=outside)

    def close(self) -> None:
        """Close the ledger."""
        self.ledger.close()

    @property
    def pseudonym(self) -> str:
        """The name the server knows the device by: 32 hex digits, its public key's hash."""
        return self.identity.pseudonym

    @property
    def identity(self) -> Identity:
        """The key pair that follows from the secret."""
        return Identity(self._secret)

    def sample_id(self, content: Mapping[str, Any]) -> bytes:
        """Return the keyed hash of a sample's content; the server cannot test guesses against it."""
        return self._mac(b"sample" + _canonical(content))

    def text_ids(self, texts: Iterable[str]) -> tuple[bytes, ...]:
        """Return keyed hashes of texts as `plain_text` has them; empty texts are left out."""
        plain = (plain_text(text) for text in texts)
        return tuple(self._mac(b"text" + text.encode("utf-8", "surrogatepass")) for text in plain if text)

    def row_id(self, digest: bytes) -> bytes:
        """Return the keyed hash of a row's digest, under which all that is released of the row is counted."""
        return self._mac(b"row" + digest)

    def release_id(self, sample: bytes, shaping: str) -> bytes:
        """Return the keyed hash of a sample and of everything else that shapes its bytes.

        Parameters
        ----------
        sample : bytes
            From `sample_id`.
        shaping : str
            Canonical description of backbone, precision, engine, lengths, layers, pivot, perturbation, codec, schema.
        """
        return self._mac(b"release" + sample + shaping.encode())

    def noise_key(self, release: bytes) -> bytes:
        """Return 32 secret bytes from which one release's noise is drawn."""
        return self._derived(b"noise" + release)

    def data_fingerprint(self, samples: Iterable[bytes]) -> str:
        """Return a keyed hash of the set of samples, so that the server can see that the data changed."""
        return self._mac(b"data" + b"".join(sorted(samples))).hex()

    def _mac(self, message: bytes) -> bytes:
        return self._derived(message)[:ID_BYTES]

    def _derived(self, message: bytes) -> bytes:
        return hmac.new(self._secret, message, hashlib.sha256).digest()

    def _load_secret(self) -> bytes:
        file = self._make_once("secret", lambda draft: draft.write_bytes(secrets.token_bytes(32)))
        secret = file.read_bytes()
        if len(secret) != 32:
            raise ReleaseRefused(
                f"the device folder's secret holds {len(secret)} bytes, a device's secret has 32; restore it, or "
                "remove the folder to start as a new device"
            )
        return secret

    @staticmethod
    def _refuse_orphan(file: Path) -> None:
        """Refuse a ledger that lists releases where the secret is gone under which it lists them."""
        with contextlib.closing(Ledger(file, limits=Limits())) as ledger:
            if not ledger.is_empty:
                raise ReleaseRefused(
                    "the device folder has a ledger and no secret; restore the file `secret`, or remove the folder to "
                    "start as a new device, which promises nothing for what was released before"
                )

    def _make_once(self, name: str, make: Callable[[Path], object]) -> Path:
        """Return a file of the folder, made whole under another name where it is missing; the first process wins."""
        file = self.path / name
        if not file.exists():
            draft = self.path / f"{name}.{os.getpid()}.{secrets.token_hex(4)}"
            touch_private(draft)
            make(draft)
            try:
                os.link(draft, file)
            except FileExistsError:
                pass
            finally:
                draft.unlink()
        return file


def plain_text(text: str) -> str:
    """Return a text as the ledger counts it: in normal form C, with white space collapsed."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def _canonical(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
