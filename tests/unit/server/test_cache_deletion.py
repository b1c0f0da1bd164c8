"""What is deleted from the cache: a device, what is too old, samples of a task that is learned."""

import sqlite3
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mobillm_flower.errors import CacheError
from mobillm_flower.server import ActivationCache
from tests.support.caches import BACKBONE, make_samples, make_spec, plainly

ALICE, BOB = "a" * 32, "b" * 32


@pytest.fixture
def samples() -> Any:
    return make_samples(20, make_spec())


def test_forget_removes_a_device_and_leaves_no_bytes_of_it_in_the_file(tmp_path: Path, samples: Any) -> None:
    file = tmp_path / "cache.sqlite"
    cache = ActivationCache(file)
    cache.add(ALICE, samples[:10], backbone=BACKBONE, round_=1)
    cache.add(BOB, samples[10:], backbone=BACKBONE, round_=1)
    assert samples[0].activations in file.read_bytes() + file.with_name("cache.sqlite-wal").read_bytes()
    assert cache.forget(ALICE) == 10
    assert cache.devices() == {BOB: 10}
    cache.close()
    left = file.read_bytes()
    assert all(s.activations not in left for s in samples[:10])
    assert samples[10].activations in left


def test_rows_past_the_retention_time_are_deleted(tmp_path: Path, samples: Any) -> None:
    cache = ActivationCache(tmp_path / "cache.sqlite")
    cache.add(ALICE, samples, backbone=BACKBONE, round_=1)
    assert cache.expire(0) == {}
    assert cache.expire(100, now=time.time() + 50) == {}
    later = [replace(sample, release=b"later" + sample.release[5:]) for sample in samples[:1]]
    cache._disk.db.execute("UPDATE samples SET received = received - 60")
    cache.add(ALICE, later, backbone=BACKBONE, round_=2)
    assert cache.expire(100, now=time.time() + 50) == {ALICE: 20}
    assert len(cache.rows()) == 1


@pytest.mark.parametrize("years", [-10, 10])
def test_a_clock_that_is_wrong_deletes_nothing(tmp_path: Path, samples: Any, years: int) -> None:
    """Rows were committed by a right clock; when it is right again, nothing is lost."""
    cache = ActivationCache(tmp_path / "cache.sqlite")
    cache.add(ALICE, samples, backbone=BACKBONE, round_=1)
    with pytest.raises(CacheError, match="clock"):
        cache.expire(30 * 86400, now=time.time() + years * 365 * 86400)
    assert cache.expire(30 * 86400) == {}
    assert len(cache.rows()) == len(samples)


def test_who_has_looked_at_the_clock_deletes_all_that_is_old(tmp_path: Path, samples: Any) -> None:
    cache = ActivationCache(tmp_path / "cache.sqlite")
    cache.add(ALICE, samples, backbone=BACKBONE, round_=1)
    later = time.time() + 31 * 86400
    assert cache.expired(30 * 86400, now=later) == {ALICE: len(samples)}
    assert cache.expire(30 * 86400, now=later, certain=True) == {ALICE: len(samples)}
    assert len(cache.rows()) == 0
    assert cache.expire(30 * 86400, now=later) == {}  # an empty cache says nothing of the clock


def test_a_clock_that_was_ahead_when_rows_came_is_noticed(tmp_path: Path, samples: Any) -> None:
    cache = ActivationCache(tmp_path / "cache.sqlite")
    cache.add(ALICE, samples[:5], backbone=BACKBONE, round_=1)
    cache.add(ALICE, samples[5:], backbone=BACKBONE, round_=2)
    cache._disk.db.execute("UPDATE samples SET received = received + 1e8 WHERE round = 2")
    with pytest.raises(CacheError, match="clock"):
        cache.expire(86400)
    assert len(cache.rows()) == len(samples)


def test_forget_says_when_another_reader_keeps_the_bytes_on_disk(tmp_path: Path, samples: Any) -> None:
    file = tmp_path / "cache.sqlite"
    cache = ActivationCache(file)
    cache.add(ALICE, samples, backbone=BACKBONE, round_=1)
    reader = sqlite3.connect(file, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT COUNT(*) FROM samples").fetchone()
    cache._disk.db.execute("PRAGMA busy_timeout=50")
    with pytest.raises(CacheError, match="20 rows are deleted, but another process has the file open"):
        cache.forget(ALICE)
    assert cache.devices() == {}
    reader.close()
    cache.close()
    left = b"".join(other.read_bytes() for other in tmp_path.iterdir())
    assert all(s.activations not in left for s in samples)


def test_a_row_forgotten_while_in_use_is_an_error_not_a_zero(tmp_path: Path, samples: Any) -> None:
    cache = ActivationCache(tmp_path / "cache.sqlite")
    cache.add(ALICE, samples, backbone=BACKBONE, round_=1)
    rows = cache.rows()
    cache.forget(ALICE)
    with pytest.raises(CacheError, match="is gone"):
        cache.read([rows[0].id])


def test_ids_that_sqlite_gives_again_are_read_again(tmp_path: Path, samples: Any) -> None:
    file = tmp_path / "cache.sqlite"
    cache = ActivationCache(file)
    cache.add(ALICE, samples[:5], backbone=BACKBONE, round_=1)
    cache.add(BOB, samples[5:10], backbone=BACKBONE, round_=1)
    before = {row.id: row.device for row in cache.rows()}
    cache.forget(BOB)
    cache.add("c" * 32, samples[10:16], backbone=BACKBONE, round_=2)
    after = {row.id: row.device for row in cache.rows()}
    assert any(before.get(id_) == BOB and device == "c" * 32 for id_, device in after.items())
    assert list(cache.rows()) == plainly(file)
    assert (len(cache), cache.devices()) == (11, {ALICE: 5, "c" * 32: 6})


def test_forgetting_a_device_takes_its_rows_of_every_task(tmp_path: Path, samples: Any) -> None:
    earlier = ActivationCache(tmp_path / "first.sqlite")
    earlier.add(ALICE, samples[:6], backbone=BACKBONE, round_=1)
    cache = ActivationCache(tmp_path / "second.sqlite")
    cache.begin_task(1, earlier.file)
    cache.add(ALICE, samples[6:8], backbone=BACKBONE, round_=1)
    cache.add(BOB, samples[8:10], backbone=BACKBONE, round_=1)
    assert cache.forget(ALICE) == 8
    assert (len(cache), cache.devices()) == (2, {BOB: 2})


def test_only_named_rows_of_a_finished_task_are_kept(tmp_path: Path, samples: Any) -> None:
    earlier = ActivationCache(tmp_path / "first.sqlite")
    earlier.add(ALICE, samples[:6], backbone=BACKBONE, round_=1)
    cache = ActivationCache(tmp_path / "second.sqlite")
    cache.begin_task(1, earlier.file)
    cache.add(BOB, samples[6:12], backbone=BACKBONE, round_=1)
    kept = [row.id for row in cache.rows() if row.task == 1][:2]
    assert cache.keep(kept) == 4
    assert (len(cache), cache.devices()) == (8, {BOB: 2})
    assert cache.keep([]) == 2
    assert (len(cache), cache.devices()) == (6, {})  # what was there before it stays
    assert samples[11].activations not in cache.file.read_bytes()  # nor in a free page


def test_rows_are_deleted_and_that_is_remembered_or_neither(
    tmp_path: Path, samples: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ActivationCache(tmp_path / "cache.sqlite")
    cache.add(ALICE, samples[:6], backbone=BACKBONE, round_=1)

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(cache, "set_meta", full)
        with pytest.raises(CacheError, match="database or disk is full"):
            cache.keep([])
    assert (len(ActivationCache(cache.file)), cache.num_deleted) == (6, None)
    with monkeypatch.context() as patched:
        patched.setattr(cache, "_shrink", full)
        with pytest.raises(CacheError, match="database or disk is full"):
            cache.keep([])
    again = ActivationCache(cache.file)
    assert (len(again), again.num_deleted) == (0, 6)
