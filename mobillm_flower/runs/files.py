"""Files that are their owner's alone, and writing all of something or nothing: to a file, to SQLite."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from mobillm_flower.errors import SettingsError

UNREADABLE = (sqlite3.DatabaseError, UnicodeDecodeError)
"""What SQLite raises of a damaged file: where a name in it is damaged, its own message is no text."""


def make_private(path: Path, setting: str) -> None:
    """Make a folder where it is missing, readable by its owner alone.

    Raises
    ------
    SettingsError
        It cannot be made, or not be written to; named as the value of `setting`.
    """
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        reason = error.strerror
    else:
        if os.access(path, os.W_OK | os.X_OK):
            return
        reason = "it is read-only"
    raise SettingsError(f"{setting}={path} cannot be used ({reason}); name a folder that can be written to")


@contextlib.contextmanager
def private_files() -> Iterator[None]:
    """Make files and folders inside, by this process and by those that it starts, readable by their owner alone."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def write_atomically(file: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Write bytes so that the file is either the old or the new one, also after a crash.

    One process at a time: the draft has one name, so that a killed process leaves at most one behind.

    Parameters
    ----------
    mode : int
        Of the file, less what the process's umask takes away.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.draft")
    try:
        with os.fdopen(os.open(draft, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, mode), "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError:
        draft.unlink(missing_ok=True)  # a full disk needs the room
        raise
    draft.replace(file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def touch_private(file: Path) -> None:
    """Make a file where it is missing, and let its owner alone read it."""
    os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
    file.chmod(0o600)


@contextlib.contextmanager
def transaction(db: sqlite3.Connection, *, keep: bool = True) -> Iterator[None]:
    """Write to SQLite all of what is written inside, or nothing: after an error, or where nothing is to be kept."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT" if keep else "ROLLBACK")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")
