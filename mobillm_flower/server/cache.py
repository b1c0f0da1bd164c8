"""The activation cache: SQLite, one row a sample, key (device, release).

A row is committed before the device is told that it is held, and a repeated upload is a no-op. Rows are read in the
order of the hash of their bytes, so that neither arrival nor the partition into devices matters to training.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mobillm_flower.errors import CacheError, CacheFull, MobiLLMError
from mobillm_flower.privacy.ledger import Release
from mobillm_flower.runs.files import transaction
from mobillm_flower.server.cache_file import CacheFile, Holding, carry_over
from mobillm_flower.server.integrity import Damage, checksum, digest, find_damage, problem, unlike
from mobillm_flower.server.rows import Rows

T = TypeVar("T")

_CLOCK_SLACK_S = 86400.0  # a clock may be put back so far without a word
_REFERENCE = "SELECT digest, id, backbone, tokens, round, device, stage FROM samples"
_ADD = """
INSERT OR IGNORE INTO samples
    (device, release, backbone, stage, round, tokens, received, digest, activations, target, xxh3)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_UNTRAINED, _TASK, _DELETED = "untrained", "task", "rows-deleted"
_COUNT_UNTRAINED = """
INSERT INTO meta VALUES (:key, CAST(:added AS TEXT))
ON CONFLICT (key) DO UPDATE SET value = CAST(CAST(value AS INTEGER) + :added AS TEXT)
"""


class ActivationCache:
    """Activations and targets of all devices on disk.

    Parameters
    ----------
    file : path
        SQLite file, made with mode 0600.
    quota_bytes : int
        Most bytes of activations and targets (0: no limit).

    Attributes
    ----------
    task : int
        Which task of a sequence it takes rows of, counted from 0: `add`, `held` and `devices` are of this task alone.
        Rows of earlier ones are there for training.

    Raises
    ------
    CacheError
        The file is no cache, or of another version.
    """

    def __init__(self, file: str | Path, *, quota_bytes: int = 0) -> None:
        self.file = Path(file)
        self.quota_bytes = quota_bytes
        self._disk = CacheFile(self.file)
        self._rows: Rows | None = None
        self._last_id = 0  # the last of those in `_rows`
        self._known_size: tuple[int, int, int] | None = None
        self._checked = bytearray()  # by row: 1 where its bytes were found to be those that were committed
        self.task = self.read_meta(_TASK, int, default=0)

    def close(self) -> None:
        """Close the file."""
        self._disk.db.close()

    def __len__(self) -> int:
        return self._size()[0]

    @property
    def num_bytes(self) -> int:
        """Bytes of activations and targets."""
        return self._size()[1]

    @property
    def num_of_task(self) -> int:
        """Rows of the task, without those of earlier ones."""
        return self._size()[2]

    def _size(self) -> tuple[int, int, int]:
        """Return the rows, their bytes, and the rows of the task; counted once, then kept up to date by `add`."""
        with self._disk.access() as db:
            self._notice_other_writers()
            if self._known_size is None:
                query = (
                    "SELECT COUNT(*), COALESCE(SUM(LENGTH(activations) + LENGTH(target)), 0), "
                    "COUNT(*) FILTER (WHERE stage = ?) FROM samples"
                )
                count, size, of_task = db.execute(query, (self.task,)).fetchone()
                self._known_size = (int(count), int(size), int(of_task))
            return self._known_size

    def add(self, device: str, samples: Sequence[Release], *, backbone: str, round_: int) -> int:
        """Commit a window, all of it or nothing; rows that are held already stay as they are.

        Returns
        -------
        int
            Rows that are new.

        Raises
        ------
        CacheFull
            The quota would be passed.
        CacheError
            The disk refuses.
        """
        now = time.time()
        shared = (backbone, self.task, round_)
        rows = [
            (device, s.release, *shared, s.tokens, now, digest(backbone, s), *both, checksum(*both))
            for s in samples
            for both in [(s.activations, s.target)]
        ]
        with self._disk.access() as db:
            held = self.held(device, of_all_tasks=True)
            count, size, of_task = self._size()
            size += sum(len(s.activations) + len(s.target) for s in samples if s.release not in held)
            if self.quota_bytes and size > self.quota_bytes:
                raise CacheFull(
                    f"cache.quota-mib={self.quota_bytes >> 20} is full: {size} bytes would be held; raise the quota, "
                    "or forget a device"
                )
            try:
                with transaction(db):
                    before = db.total_changes
                    db.executemany(_ADD, rows)
                    added = db.total_changes - before
                    db.execute(_COUNT_UNTRAINED, {"key": _UNTRAINED, "added": added})
            except sqlite3.Error as error:
                raise CacheError(
                    f"{self.file}: a window was not committed: {error}; what was committed before is safe; put that "
                    "right and start the run again in the same folder"
                ) from error
            self._known_size = (count + added, size, of_task + added)
            return added

    @property
    def num_untrained(self) -> int:
        """Rows that were committed since training from the cache last began; see `note_training`."""
        return self.read_meta(_UNTRAINED, int, default=0)

    def note_training(self) -> None:
        """Remember that training begins from all rows that are held now."""
        self.set_meta(_UNTRAINED, "0")

    def held(self, device: str, *, of_all_tasks: bool = False) -> frozenset[bytes]:
        """Return the release ids of a device that are committed: those of the task, or of earlier ones, too."""
        query = "SELECT release FROM samples WHERE device = ? AND (stage = ? OR ?)"
        with self._disk.access() as db:
            return frozenset(row[0] for row in db.execute(query, (device, self.task, of_all_tasks)))

    def devices(self) -> dict[str, int]:
        """Return the number of samples of each device."""
        query = "SELECT device, COUNT(*) FROM samples WHERE stage = ? GROUP BY device ORDER BY device"
        with self._disk.access() as db:
            return dict(db.execute(query, (self.task,)))

    def holdings(self) -> list[Holding]:
        """Return what is held of each device and task, in the order of their pseudonyms."""
        query = (
            "SELECT device, backbone, stage, COUNT(*), SUM(LENGTH(activations) + LENGTH(target)), MIN(received), "
            "MAX(received) FROM samples GROUP BY device, backbone, stage ORDER BY device, backbone, stage"
        )
        with self._disk.access() as db:
            return [Holding(*row) for row in db.execute(query)]

    def rows(self, *, before_round: int | None = None) -> Rows:
        """Return references in the order of their digests, optionally only those committed before a round."""
        with self._disk.access() as db, self._disk.one_state():
            self._notice_other_writers()
            if self._rows is None:
                self._rows = Rows(db.execute(f"{_REFERENCE} ORDER BY digest, id"), len(self))
            else:  # ids only grow, unless rows are deleted, and then nothing is known any more
                new = db.execute(f"{_REFERENCE} WHERE id > ?", (self._last_id,)).fetchall()
                self._rows = self._rows.with_new(new) if new else self._rows
            (self._last_id,) = db.execute("SELECT COALESCE(MAX(id), 0) FROM samples").fetchone()
            rows = self._rows
        return rows if before_round is None else rows.before(before_round)

    def targets(self, ids: Iterable[int]) -> list[bytes]:
        """Return the target bytes of rows, in the order asked, without reading their activations.

        Raises
        ------
        CacheError
            A row is not there.
        """
        query = "SELECT samples.id, target FROM json_each(?) AS asked CROSS JOIN samples ON samples.id = asked.value"
        return [target for (target,) in self._in_order(query, ids)]

    def read(self, ids: Iterable[int]) -> list[tuple[bytes, bytes]]:
        """Return (activations, target) bytes of rows, in the order asked, whose checksums fit when first read.

        Raises
        ------
        CacheError
            A row is not there, or does not hold the bytes that were committed.
        """
        query = (
            "SELECT samples.id, activations, target, xxh3 FROM json_each(?) AS asked CROSS JOIN samples "
            "ON samples.id = asked.value"
        )
        ids = list(ids)
        rows = self._in_order(query, ids)
        checked = self._checked
        checked.extend(bytes(max(0, max(ids, default=0) + 1 - len(checked))))
        for id_, has_checksum in unlike(ids, rows, checked):
            if has_checksum or self._problem(id_):
                raise CacheError(
                    f"{self.file}: row {id_} does not hold the bytes that were committed; `mobillm cache "
                    "verify` names the devices of such rows, `mobillm cache forget` deletes a device's"
                )
        for id_ in ids:
            checked[id_] = 1
        return [(activations, target) for activations, target, _ in rows]

    def _problem(self, id_: int) -> str:
        """Return what is wrong with a row of an earlier release, which has a digest and no checksum."""
        with self._disk.access() as db:
            return problem(db, id_)

    def _in_order(self, query: str, ids: Iterable[int]) -> list[tuple[Any, ...]]:
        """Read rows by one statement for all; CROSS JOIN keeps the order of the array."""
        wanted = list(ids)
        with self._disk.access() as db:
            rows = db.execute(query, (json.dumps(wanted),)).fetchall()
        if [row[0] for row in rows] != wanted:
            gone = sorted(set(wanted) - {row[0] for row in rows})
            raise CacheError(f"{self.file}: row {gone[0]} is gone; it was forgotten while it was in use")
        return [row[1:] for row in rows]

    def verify(self) -> list[Damage]:
        """Check SQLite's own integrity and every row's digest; returns what is wrong."""
        with self._disk.one_state() as db:
            return find_damage(db)

    def forget(self, device: str) -> int:
        """Delete a device's rows, overwrite their pages, and return how many there were.

        Raises
        ------
        CacheError
            The rows are deleted, but another process has the file open, which keeps their bytes on disk.
        """
        with self._disk.access() as db:
            count = db.execute("DELETE FROM samples WHERE device = ?", (device,)).rowcount
            if not self._shrink(count):
                raise CacheError(
                    f"{self.file}: {count} rows are deleted, but another process has the file open; their bytes leave "
                    "the disk when the last one closes it"
                )
            return int(count)

    def expired(self, retention_s: float, *, now: float | None = None) -> dict[str, int]:
        """Return how many rows of each device are older than a retention time (0: none are)."""
        if not retention_s:
            return {}
        query = "SELECT device, COUNT(*) FROM samples WHERE received < ? GROUP BY device ORDER BY device"
        with self._disk.access() as db:
            return dict(db.execute(query, ((time.time() if now is None else now) - retention_s,)))

    def expire(self, retention_s: float, *, now: float | None = None, certain: bool = False) -> dict[str, int]:
        """Delete the rows that `expired` returns, and return how many there were of each device.

        While another process has the file open, their bytes stay on disk until the last one closes it.

        Parameters
        ----------
        retention_s, now : float
            Longest age; the time, by default the clock's.
        certain : bool
            Somebody has looked at the clock.

        Raises
        ------
        CacheError
            Every row would be deleted, or the last one is to come, and nobody has looked at the clock: it may be wrong,
            and devices that were told that their samples are held do not send them again.
        """
        now = time.time() if now is None else now
        with self._disk.access() as db:
            expired = self.expired(retention_s, now=now)
            (newest,) = db.execute("SELECT MAX(received) FROM samples").fetchone()
            wrong = newest is not None and not now - retention_s <= newest <= now + _CLOCK_SLACK_S
            if retention_s and wrong and not certain:
                clock, last = (time.strftime("%Y-%m-%d", time.gmtime(value)) for value in (now, newest))
                raise CacheError(
                    f"{self.file}: the last sample came on {last}, and the clock says {clock}: every row is beyond "
                    "cache.retention-days, or the clock is wrong; set the clock, delete the rows with `mobillm cache "
                    "expire`, or start in another folder"
                )
            if expired:
                db.execute("DELETE FROM samples WHERE received < ?", (now - retention_s,))
                self._shrink(sum(expired.values()))
        return expired

    def begin_task(self, task: int, earlier: Path | None, *, since: float = 0.0) -> int:
        """Take rows of another task from now on, and copy what an earlier cache holds; returns how many rows that are.

        All of it or nothing. Copied rows keep their task and stand before the first round. They take the place of
        those that were copied before: that start brought no sample, and may have gone on with another cache.

        Parameters
        ----------
        task : int
            Which task of the sequence, counted from 0.
        earlier : path or None
            The cache of the run before; None: nothing is copied.
        since : float
            Rows that were received before this time, in Unix seconds, stay behind.

        Raises
        ------
        CacheError
            One of the files cannot be used, or devices have sent samples of the task before.
        """
        if self.num_of_task:
            raise CacheError(f"{self.file} holds {self.num_of_task} samples of a run; use another run.folder")
        with self._disk.access() as db:
            copied = carry_over(db, earlier, {_TASK: str(task)}, since=since)
            self.task = task
            self._invalidate()
            return copied

    def keep(self, ids: Iterable[int]) -> int:
        """Delete all rows of the task but these, remember it, overwrite their pages; returns how many were deleted."""
        query = "DELETE FROM samples WHERE stage = ? AND id NOT IN (SELECT value FROM json_each(?))"
        with self._disk.access() as db:
            with transaction(db):
                count = db.execute(query, (self.task, json.dumps(list(ids)))).rowcount
                self.set_meta(_DELETED, str(count))
            self._shrink(count)
            return int(count)

    @property
    def num_deleted(self) -> int | None:
        """Rows that `keep` deleted; None where it never did."""
        return self.read_meta(_DELETED, int, default=None)

    def finish_keep(self) -> None:
        """Overwrite the pages of what `keep` deleted, where that was interrupted."""
        with self._disk.access():
            self._shrink(self.num_deleted or 0)

    def set_meta(self, key: str, value: str) -> None:
        """Store a short text beside the samples."""
        with self._disk.access() as db:
            db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def meta(self, key: str) -> str | None:
        """Return a text stored by `set_meta`."""
        with self._disk.access() as db:
            row = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def read_meta(self, key: str, read: Callable[[str], T], *, default: T) -> T:
        """Return what `read` makes of a text stored by `set_meta`, `default` where none is stored.

        Raises
        ------
        CacheError
            `read` cannot: the file is damaged.
        """
        text = self.meta(key)
        try:
            return default if text is None else read(text)
        except (LookupError, TypeError, ValueError, AttributeError, MobiLLMError) as error:
            raise CacheError(
                f"{self.file}: its {key!r} is damaged ({type(error).__name__}); move the file away to start anew"
            ) from error

    def _shrink(self, count: int) -> bool:
        """Overwrite the pages of deleted rows; False where another process is in the way."""
        if not count:
            return True
        self._invalidate()
        return self._disk.shrink()

    def _invalidate(self) -> None:
        """Read all again when it is next asked for: rows were deleted, and SQLite may give their ids to others."""
        self._rows = self._known_size = None
        self._checked = bytearray()

    def _notice_other_writers(self) -> None:
        """Forget what is known if another connection has committed since."""
        if self._disk.changed_by_others():
            self._invalidate()
