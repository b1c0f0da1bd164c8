"""Files and SQLite: all of something is written, or nothing; and who may read it."""

from __future__ import annotations

import contextlib
import os
import resource
import sqlite3
from pathlib import Path

import pytest

from mobillm_flower.runs.files import touch_private, transaction, write_atomically


def test_what_cannot_be_written_leaves_the_old_file_and_no_draft(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint" / "trainer.pt"
    write_atomically(file, b"old" * 1000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))  # the system refuses to make files larger
    try:
        with pytest.raises(OSError, match="too large"):
            write_atomically(file, b"new" * 1_000_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_bytes() == b"old" * 1000
    assert [path.name for path in file.parent.iterdir()] == ["trainer.pt"]


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_a_file_has_the_mode_that_was_asked_for_also_where_it_replaces_another(tmp_path: Path, mode: int) -> None:
    before = os.umask(0o022)
    try:
        for data in (b"old", b"new"):
            write_atomically(tmp_path / "made" / "file", data, mode=mode)
            assert (tmp_path / "made" / "file").read_bytes() == data
            assert (tmp_path / "made" / "file").stat().st_mode & 0o777 == mode
    finally:
        os.umask(before)


def test_a_private_file_is_its_owners_and_keeps_what_it_holds(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"kept")
    file.chmod(0o644)
    touch_private(file)
    assert (file.read_bytes(), file.stat().st_mode & 0o777) == (b"kept", 0o600)


@pytest.mark.parametrize(("keep", "fails", "left"), [(True, False, 2), (True, True, 0), (False, False, 0)])
def test_all_that_a_transaction_writes_is_kept_or_nothing(tmp_path: Path, keep: bool, fails: bool, left: int) -> None:
    file = tmp_path / "db.sqlite"
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute("CREATE TABLE t (x UNIQUE)")
        with contextlib.suppress(sqlite3.IntegrityError), transaction(db, keep=keep):
            db.execute("INSERT INTO t VALUES (1), (2)")
            if fails:
                db.execute("INSERT INTO t VALUES (1)")
        assert not db.in_transaction  # the next one can begin
        with contextlib.closing(sqlite3.connect(file)) as other:
            assert other.execute("SELECT COUNT(*) FROM t").fetchone() == (left,)


def test_an_error_is_told_though_sqlite_has_ended_the_transaction_itself(tmp_path: Path) -> None:
    """As it does where the disk is full; to take back what is taken back already would be an error of its own."""
    with contextlib.closing(sqlite3.connect(tmp_path / "db.sqlite", isolation_level=None)) as db:
        db.execute("CREATE TABLE t (x UNIQUE)")
        with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"), transaction(db):
            db.executemany("INSERT OR ROLLBACK INTO t VALUES (?)", [(1,), (1,)])
        assert db.execute("SELECT COUNT(*) FROM t").fetchone() == (0,)
