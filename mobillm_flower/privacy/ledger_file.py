"""The file of a release ledger: its tables, how it is made, opened, and carried over from an earlier version."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from mobillm_flower.errors import ReleaseRefused
from mobillm_flower.runs.files import UNREADABLE, transaction

_VERSION = 2
_KINDS = {"BLOB": "blob", "INTEGER": "integer", "REAL": "real", "TEXT": "text"}  # as declared, and as `typeof` says
_SCHEMA = """
CREATE TABLE IF NOT EXISTS releases (
    release BLOB PRIMARY KEY,
    sample BLOB NOT NULL,
    held INTEGER NOT NULL DEFAULT 0,
    tokens INTEGER NOT NULL,
    activations BLOB,
    target BLOB,
    epsilon REAL,
    delta REAL NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_sample ON releases (sample);
CREATE TABLE IF NOT EXISTS texts (text BLOB NOT NULL, release BLOB NOT NULL, PRIMARY KEY (text, release)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS evaluated (
    text BLOB PRIMARY KEY, exact INTEGER NOT NULL, epsilon REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counts (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""


def make_ledger(draft: Path) -> None:
    """Make an empty ledger; its journal mode is part of the file, since SQLite waits for no lock while it changes."""
    with contextlib.closing(_connect(draft)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.executescript(_SCHEMA)
        db.execute(f"PRAGMA user_version={_VERSION}")


def open_ledger(file: Path) -> sqlite3.Connection:
    """Open a ledger; one of an earlier version gets its new tables, and a count named `carried over`.

    Raises
    ------
    ReleaseRefused
        The file is no ledger, or of a later version.
    """
    db = _connect(file)
    try:
        _carry_over(db)
        _check_values(db)
        db.execute("PRAGMA synchronous=FULL")
        db.execute("PRAGMA secure_delete=ON")
    except UNREADABLE as error:
        db.close()
        raise damaged(error) from error
    except ReleaseRefused:
        db.close()
        raise
    return db


def damaged(error: Exception | str) -> ReleaseRefused:
    """Return what a device says where its ledger cannot be read; pages that are read later may be damaged, too."""
    why = error if isinstance(error, str) else type(error).__name__
    return ReleaseRefused(
        f"the device folder's ledger cannot be read ({why}); restore the folder, or remove it to "
        "start as a new device, which promises nothing for what was released before"
    )


def count(db: sqlite3.Connection, name: str) -> None:
    """Add one to a count of the ledger."""
    db.execute("INSERT INTO counts VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET value = value + 1", (name,))


def _carry_over(db: sqlite3.Connection) -> None:
    with transaction(db):
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > _VERSION:
            raise ReleaseRefused(
                f"the device folder's ledger is of version {version}, this release reads {_VERSION}; install the "
                "release that wrote it"
            )
        if version == _VERSION:
            return
        columns = [row[1] for row in db.execute("PRAGMA table_info(releases)")]
        for name, kind in (("epsilon", "REAL"), ("delta", "REAL NOT NULL DEFAULT 0")):
            if columns and name not in columns:
                db.execute(f"ALTER TABLE releases ADD COLUMN {name} {kind}")
        for statement in _SCHEMA.split(";\n"):
            db.execute(statement)
        if columns:
            count(db, "carried over")
        db.execute(f"PRAGMA user_version={_VERSION}")


def _check_values(db: sqlite3.Connection) -> None:
    """Refuse values of other types than their columns': SQLite keeps what it cannot convert, and adds up text as 0."""
    for table in ("releases", "texts", "evaluated", "counts"):
        for _, column, declared, *_ in db.execute(f"PRAGMA table_info({table})").fetchall():
            kind = _KINDS[declared]
            wrong = f"typeof({column}) NOT IN ('{kind}', 'null')"
            if kind in ("integer", "real"):
                wrong += f" OR {column} < 0"
            found = db.execute(f"SELECT EXISTS (SELECT 1 FROM {table} WHERE {wrong})")  # noqa: S608 - names of the schema
            if found.fetchone()[0]:
                raise damaged(f"a value of {table}.{column} is no {declared} of a ledger")


def _connect(database: Path) -> sqlite3.Connection:
    return sqlite3.connect(database, timeout=60, isolation_level=None, check_same_thread=False)
