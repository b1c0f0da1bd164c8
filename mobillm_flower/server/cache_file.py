"""The SQLite file of the activation cache: its tables, who may use it when, and what is copied from an earlier one."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from mobillm_flower.errors import CacheError
from mobillm_flower.runs.files import UNREADABLE, touch_private, transaction

_VERSION = 1
_MAPPED_BYTES = 1 << 40  # SQLite cuts it to its own limit, as a rule 2 GiB; what lies beyond is read by system calls
_LOCK_WAIT_S = 60.0  # SQLite waits and tries again so long for another process that is writing
# the column `stage` is the row's task: 0 but in a run that goes on with a finished one
_SCHEMA = """
CREATE TABLE IF NOT EXISTS samples (
    id INTEGER PRIMARY KEY,
    device TEXT NOT NULL,
    release BLOB NOT NULL,
    backbone TEXT NOT NULL,
    stage INTEGER NOT NULL,
    round INTEGER NOT NULL,
    tokens INTEGER NOT NULL,
    received REAL NOT NULL,
    digest BLOB NOT NULL,
    activations BLOB NOT NULL,
    target BLOB NOT NULL,
    xxh3 INTEGER,
    UNIQUE (device, release)
);
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
_CARRY_OVER = """
INSERT OR IGNORE INTO samples
    (device, release, backbone, stage, round, tokens, received, digest, activations, target, xxh3)
SELECT device, release, backbone, stage, 0, tokens, received, digest, activations, target, {checksum}
FROM earlier.samples WHERE received >= ? ORDER BY id
"""
_HAS_CHECKSUM = "SELECT 1 FROM pragma_table_info('samples', '{database}') WHERE name = 'xxh3'"


@dataclass(frozen=True)
class Holding:
    """What the cache holds of one device.

    Parameters
    ----------
    device : str
        Its pseudonym.
    backbone : str
        Fingerprint of its type.
    task : int
        Which task of a sequence they are of, counted from 0.
    samples, num_bytes : int
        Rows, and bytes of their activations and targets.
    first, last : float
        When its first and its last row were committed, in Unix seconds.
    """

    device: str
    backbone: str
    task: int
    samples: int
    num_bytes: int
    first: float
    last: float


class CacheFile:
    """A cache's file, open: one thread at a time uses it, and what SQLite cannot do is a CacheError.

    Parameters
    ----------
    path : path
        Made with mode 0600 where it is missing.

    Raises
    ------
    CacheError
        The file is no cache, or of another version.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.db = path, open_cache(path)
        self._lock = threading.RLock()
        self._data_version = 0

    @contextlib.contextmanager
    def access(self) -> Iterator[sqlite3.Connection]:
        """Use the file."""
        with self._lock:
            try:
                yield self.db
            except UNREADABLE as error:
                raise CacheError(
                    f"{self.path} cannot be used: {error}; `mobillm cache verify` says which rows are damaged"
                ) from error

    @contextlib.contextmanager
    def one_state(self) -> Iterator[sqlite3.Connection]:
        """Read one state of the file inside, whatever others commit meanwhile."""
        with self._lock:
            self.db.execute("BEGIN")
            try:
                yield self.db
            finally:
                with contextlib.suppress(sqlite3.DatabaseError):  # nothing was written
                    self.db.execute("ROLLBACK")

    def changed_by_others(self) -> bool:
        """Return whether another connection has committed since this was last asked."""
        (version,) = self.db.execute("PRAGMA data_version").fetchone()
        before, self._data_version = self._data_version, version
        return bool(version != before)

    def shrink(self) -> bool:
        """Overwrite the pages of deleted rows; False where another process is in the way."""
        try:
            self.db.execute("VACUUM")
            (busy, *_) = self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.OperationalError:  # locked
            return False
        return not busy


def open_cache(file: Path) -> sqlite3.Connection:
    """Open or make a cache, with mode 0600; raises CacheError where the file is none, or of another version."""
    file.parent.mkdir(parents=True, exist_ok=True)
    touch_private(file)
    try:
        db = sqlite3.connect(
            f"file:{quote(str(file.resolve()))}",
            uri=True,  # so that another file can be attached for reading alone
            timeout=_LOCK_WAIT_S,
            isolation_level=None,
            check_same_thread=False,
        )
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.execute("PRAGMA secure_delete=ON")
        # pages of the system's own cache, read without a copy: half the time of a random row. Writing is unchanged
        db.execute(f"PRAGMA mmap_size={_MAPPED_BYTES}")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version not in (0, _VERSION):
            raise CacheError(f"{file} has version {version}, this release reads {_VERSION}; use its release")
        db.executescript(_SCHEMA)
        if not db.execute(_HAS_CHECKSUM.format(database="main")).fetchone():
            db.execute("ALTER TABLE samples ADD COLUMN xxh3 INTEGER")  # of a release before it
        db.execute(f"PRAGMA user_version={_VERSION}")
    except UNREADABLE as error:
        raise CacheError(f"{file} cannot be used as a cache: {error}; move it away to start anew") from error
    return db


def carry_over(db: sqlite3.Connection, earlier: Path | None, meta: Mapping[str, str], *, since: float) -> int:
    """Put the rows of an earlier cache (None: no row) in the place of all rows, and set texts beside the samples.

    All of it or nothing; returns how many rows were copied.
    """
    if earlier is not None:
        db.execute("ATTACH DATABASE ? AS earlier", (f"file:{quote(str(earlier.resolve()))}?mode=ro",))
    try:
        copied = 0
        with transaction(db):
            db.execute("DELETE FROM samples")
            db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", meta.items())
            if earlier is not None:
                known = db.execute(_HAS_CHECKSUM.format(database="earlier")).fetchone()
                copied = db.execute(_CARRY_OVER.format(checksum="xxh3" if known else "NULL"), (since,)).rowcount
    finally:
        if earlier is not None:
            db.execute("DETACH DATABASE earlier")
    return int(copied)
