"""The device's own folder: secret, pseudonym, release ledger and outbox.

Flower's `Context.state` and node ids do not survive a restart; this folder does. It is readable by its owner alone
(0700, files 0600). Nothing in it is ever sent, save what a release puts into the outbox.

A *release* is one sample's bytes under one choice of everything that shapes them. Its life: **prepared** (bytes in
the outbox; a re-send is those bytes) until a request shows that the server holds it, then **held** (bytes deleted;
releasing that id again is refused).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobillm_flower.errors import ReleaseRefused

ID_BYTES = 16
"""Length of release ids and sample ids."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS releases (
    release BLOB PRIMARY KEY,
    sample BLOB NOT NULL,
    held INTEGER NOT NULL DEFAULT 0,
    tokens INTEGER NOT NULL,
    activations BLOB,
    target BLOB,
    epsilon REAL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_sample ON releases (sample);
"""


@dataclass(frozen=True)
class Release:
    """One sample as it leaves the device.

    Parameters
    ----------
    release : bytes
        The release id, 16 bytes.
    tokens : int
        Packed rows of the sample: 1, or the number of tokens with pivot `all`.
    activations, target : bytes
        Encoded activations and target.
    """

    release: bytes
    tokens: int
    activations: bytes
    target: bytes


class DeviceFolder:
    """A device's secret and ledger.

    Parameters
    ----------
    path : Path
        The folder; made with mode 0700 where it is missing.
    max_releases : int
        Releases allowed of one sample, ever (0: counted, not bounded).
    budget : float
        Most ε that the releases of one sample may add up to, ever (0: what one of them takes, where it has an ε).
    """

    def __init__(self, path: str | Path, *, max_releases: int = 0, budget: float = 0.0) -> None:
        self.path = Path(path)
        self.max_releases, self.budget = max_releases, budget
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path.chmod(0o700)
        self._secret = self._load_secret()
        self._db = _connect(self._make_once("ledger.sqlite", _make_ledger))
        columns = [row[1] for row in self._db.execute("PRAGMA table_info(releases)")]
        if "epsilon" not in columns:  # of a folder from before: nothing was promised for what it lists
            self._db.execute("ALTER TABLE releases ADD COLUMN epsilon REAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("PRAGMA secure_delete=ON")

    def close(self) -> None:
        """Close the ledger."""
        self._db.close()

    @property
    def pseudonym(self) -> str:
        """The name the server knows the device by: 32 hex digits derived from the secret."""
        return self._mac(b"pseudonym").hex()

    def sample_id(self, content: Mapping[str, Any]) -> bytes:
        """Return the keyed hash of a sample's content; the server cannot test guesses against it."""
        return self._mac(b"sample" + _canonical(content))

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
        return hmac.new(self._secret, b"noise" + release, hashlib.sha256).digest()

    def data_fingerprint(self, samples: Iterable[bytes]) -> str:
        """Return a keyed hash of the set of samples, so that the server can see that the data changed."""
        return self._mac(b"data" + b"".join(sorted(samples))).hex()

    def acknowledge(self, held: Iterable[bytes]) -> int:
        """Mark releases as held by the server and delete their bytes; unknown ids are passed over.

        Returns
        -------
        int
            How many were marked that were not before.
        """
        with self._transaction():
            cursor = self._db.executemany(
                "UPDATE releases SET held = 1, activations = NULL, target = NULL WHERE release = ? AND held = 0",
                [(release,) for release in held],
            )
        return max(0, cursor.rowcount)

    def held(self) -> set[bytes]:
        """Return the ids that the server has shown to hold."""
        return {row[0] for row in self._db.execute("SELECT release FROM releases WHERE held = 1")}

    def outbox(self, wanted: Sequence[bytes]) -> dict[bytes, Release]:
        """Return prepared releases among `wanted`, byte for byte as they were prepared."""
        prepared: dict[bytes, Release] = {}
        for release in wanted:
            row = self._db.execute(
                "SELECT tokens, activations, target FROM releases WHERE release = ? AND held = 0", (release,)
            ).fetchone()
            if row:
                prepared[release] = Release(release, *row)
        return prepared

    def check(self, sample: bytes, release: bytes, *, epsilon: float | None = None) -> None:
        """Raise ReleaseRefused where this release must not be made.

        Parameters
        ----------
        sample, release : bytes
            Their ids.
        epsilon : float or None
            What the release takes of the sample's budget; None where no ε can be named for it.

        Raises
        ------
        ReleaseRefused
            The id was released before and the server showed that it held it, or the sample's budget is spent.
        """
        row = self._db.execute("SELECT held FROM releases WHERE release = ?", (release,)).fetchone()
        if row and row[0]:
            raise ReleaseRefused(
                "this sample was released under these settings before and the server held it; train from that run's "
                "cache, or change what is released"
            )
        if self.max_releases and not row:
            (made,) = self._db.execute("SELECT COUNT(*) FROM releases WHERE sample = ?", (sample,)).fetchone()
            if made >= self.max_releases:
                raise ReleaseRefused(
                    f"this sample was released {made} times; privacy.max-releases={self.max_releases} allows no more"
                )
        if not row:
            self._check_budget(sample, epsilon)

    def _check_budget(self, sample: bytes, epsilon: float | None) -> None:
        """Add up what a sample's releases took (basic composition)."""
        if epsilon is None:
            if self.budget:
                raise ReleaseRefused(
                    f"privacy.budget={self.budget!r} allows no release without an epsilon; give privacy.joint-epsilon, "
                    "or take the budget away"
                )
            return
        spent = [row[0] for row in self._db.execute("SELECT epsilon FROM releases WHERE sample = ?", (sample,))]
        if None in spent:
            raise ReleaseRefused(
                "this sample was released without protection before; no epsilon can be promised for it any more"
            )
        allowed = self.budget or epsilon
        if sum(spent) + epsilon > allowed * (1 + 1e-9):
            raise ReleaseRefused(
                f"releases of this sample took an epsilon of {sum(spent):g}; {epsilon:g} more is beyond privacy.budget="
                f"{allowed:g}"
            )

    def record(self, releases: Sequence[tuple[bytes, Release]], *, epsilon: float | None = None) -> None:
        """Write (sample id, release) pairs into ledger and outbox, all or none, before anything is sent.

        `epsilon` is what each takes of its sample's budget, see `check`.

        An id that waits in the outbox already keeps its bytes: what is sent is read back from there.

        Raises
        ------
        ReleaseRefused
            One of them must not be made; see `check`.
        """
        with self._transaction():
            for sample, item in releases:
                self.check(sample, item.release, epsilon=epsilon)
                self._db.execute(
                    "INSERT OR IGNORE INTO releases (release, sample, tokens, activations, target, epsilon) "
                    "VALUES (?, ?, ?, ?, ?, ?)",
                    (item.release, sample, item.tokens, item.activations, item.target, epsilon),
                )

    def num_releases(self, sample: bytes) -> int:
        """Return how many releases of a sample the ledger holds."""
        (count,) = self._db.execute("SELECT COUNT(*) FROM releases WHERE sample = ?", (sample,)).fetchone()
        return int(count)

    def _mac(self, message: bytes) -> bytes:
        return hmac.new(self._secret, message, hashlib.sha256).digest()[:ID_BYTES]

    def _load_secret(self) -> bytes:
        file = self._make_once("secret", lambda draft: draft.write_bytes(secrets.token_bytes(32)))
        secret = file.read_bytes()
        if len(secret) != 32:
            raise ReleaseRefused(
                f"{file} holds {len(secret)} bytes, a device's secret has 32; restore it, or remove the folder to "
                "start as a new device"
            )
        return secret

    def _make_once(self, name: str, make: Callable[[Path], object]) -> Path:
        """Return a file of the folder, made whole under another name where it is missing; the first process wins."""
        file = self.path / name
        if not file.exists():
            draft = self.path / f"{name}.{os.getpid()}.{secrets.token_hex(4)}"
            _touch_private(draft)
            make(draft)
            try:
                os.link(draft, file)
            except FileExistsError:
                pass
            finally:
                draft.unlink()
        return file

    def _transaction(self) -> _Transaction:
        return _Transaction(self._db)


class _Transaction:
    """BEGIN IMMEDIATE … COMMIT, or ROLLBACK on an error."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, *_: object) -> None:
        self._db.execute("COMMIT" if kind is None else "ROLLBACK")


def _canonical(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _connect(database: Path) -> sqlite3.Connection:
    return sqlite3.connect(database, timeout=60, isolation_level=None, check_same_thread=False)


def _make_ledger(draft: Path) -> None:
    # the journal mode is part of the file: SQLite does not wait for a lock while it is changed
    db = _connect(draft)
    db.execute("PRAGMA journal_mode=WAL")
    db.executescript(_SCHEMA)
    db.close()


def _touch_private(file: Path) -> None:
    os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
    file.chmod(0o600)
