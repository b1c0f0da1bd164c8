"""What the cache keeps, in which order, and how damage and others are noticed."""

import contextlib
import sqlite3
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from mobillm_flower.errors import CacheError
from mobillm_flower.server import ActivationCache, Damage
from tests.support.caches import BACKBONE, fill, make_samples, make_spec, plainly

ALICE, BOB = "a" * 32, "b" * 32


@pytest.fixture
def samples() -> Any:
    return make_samples(20, make_spec())


def test_held_means_committed_and_a_repeated_upload_changes_nothing(tmp_path: Path, samples: Any) -> None:
    cache = ActivationCache(tmp_path / "cache.sqlite")
    assert cache.add(ALICE, samples[:10], backbone=BACKBONE, round_=1) == 10
    assert cache.add(ALICE, samples[5:12], backbone=BACKBONE, round_=2) == 2
    assert cache.held(ALICE) == {s.release for s in samples[:12]}
    assert [row.round for row in cache.rows()].count(2) == 2
    cache.close()
    again = ActivationCache(tmp_path / "cache.sqlite")
    assert len(again) == 12
    assert again.devices() == {ALICE: 12}


def test_bytes_come_back_as_they_went_in(tmp_path: Path, samples: Any) -> None:
    cache = ActivationCache(tmp_path / "cache.sqlite")
    cache.add(ALICE, samples, backbone=BACKBONE, round_=1)
    found = cache.read(row.id for row in cache.rows())
    assert sorted(found) == sorted((s.activations, s.target) for s in samples)


def test_the_order_of_rows_does_not_depend_on_arrival_or_on_devices(tmp_path: Path, samples: Any) -> None:
    spec = make_spec()
    one = fill(tmp_path / "one.sqlite", samples, spec)
    other = fill(tmp_path / "other.sqlite", samples, spec, num_devices=7, shuffle_seed=3)
    assert [row.digest for row in one.rows()] == [row.digest for row in other.rows()]
    assert one.read(row.id for row in one.rows()) == other.read(row.id for row in other.rows())


def test_the_file_is_private(tmp_path: Path) -> None:
    ActivationCache(tmp_path / "cache.sqlite")
    assert stat.S_IMODE((tmp_path / "cache.sqlite").stat().st_mode) == 0o600


def test_a_window_beyond_the_quota_is_refused_whole(tmp_path: Path, samples: Any) -> None:
    size = len(samples[0].activations) + len(samples[0].target)
    cache = ActivationCache(tmp_path / "cache.sqlite", quota_bytes=12 * size)
    cache.add(ALICE, samples[:10], backbone=BACKBONE, round_=1)
    with pytest.raises(CacheError, match="is full"):
        cache.add(ALICE, samples[10:], backbone=BACKBONE, round_=1)
    assert len(cache) == 10


def test_a_row_of_an_earlier_release_is_checked_by_its_digest(tmp_path: Path, samples: Any) -> None:
    """That release's file has no column for a checksum; what is added later has one."""
    file = tmp_path / "cache.sqlite"
    cache = ActivationCache(file)
    cache.add(ALICE, samples[:10], backbone=BACKBONE, round_=1)
    cache.close()
    with sqlite3.connect(file) as db:
        db.execute("ALTER TABLE samples DROP COLUMN xxh3")
    cache = ActivationCache(file)
    cache.add(BOB, samples[10:12], backbone=BACKBONE, round_=1)
    ids = cache.rows().column("id").tolist()
    assert len(cache.read(ids)) == 12
    assert cache.verify() == []
    for number in (3, 12):  # without a checksum, and with one
        with sqlite3.connect(file) as db:
            db.execute("UPDATE samples SET activations = target WHERE id = ?", (number,))
        cache = ActivationCache(file)  # each row is looked at once
        with pytest.raises(CacheError, match=f"row {number} does not hold the bytes"):
            cache.read([number])


def test_verify_finds_a_changed_byte(tmp_path: Path, samples: Any) -> None:
    file = tmp_path / "cache.sqlite"
    cache = ActivationCache(file)
    cache.add(ALICE, samples, backbone=BACKBONE, round_=1)
    assert cache.verify() == []
    (row, *_) = cache.rows()
    with sqlite3.connect(file) as db:
        blob = bytearray(samples[0].activations)
        blob[3] ^= 1
        db.execute("UPDATE samples SET activations = ? WHERE id = ?", (bytes(blob), row.id))
    damage = Damage("its bytes are not those that were committed", row.id, ALICE)
    assert cache.verify() == [damage]
    assert str(damage) == f"row {row.id} of device {ALICE}: its bytes are not those that were committed"


def test_verify_names_the_rows_of_an_unreadable_page_and_checks_the_others(tmp_path: Path) -> None:
    file = tmp_path / "cache.sqlite"
    spec = make_spec(width=2048, codec="fp32")  # rows of several pages
    cache = fill(file, make_samples(20, spec), spec)
    cache.close()
    pages = bytearray(file.read_bytes())
    middle = make_samples(20, spec)[7].activations[8000:8016]
    at = pages.index(middle) // 4096 * 4096
    pages[at : at + 4] = b"\xff" * 4  # where the chain of overflow pages goes on
    file.write_bytes(pages)
    problems = ActivationCache(file).verify()
    rows = [damage for damage in problems if damage.row is not None]
    assert [damage.device for damage in rows] == ["0" * 32]
    assert len(problems) > len(rows)  # SQLite's own check sees it too


def test_a_file_of_which_a_name_is_damaged_is_refused(tmp_path: Path) -> None:
    """SQLite says the name, and its message is then no text."""
    file = tmp_path / "cache.sqlite"
    fill(file, make_samples(3, make_spec()), make_spec()).close()
    with contextlib.closing(sqlite3.connect(file)) as db, db:
        db.execute("PRAGMA writable_schema=ON")
        db.execute("UPDATE sqlite_master SET name = CAST(x'ECEC' AS TEXT), sql = 'CREATE no' WHERE name = 'meta'")
    with pytest.raises(CacheError, match=r"cache\.sqlite cannot be used as a cache: .*move it away to start anew"):
        ActivationCache(file)


def test_a_damaged_file_can_still_be_opened_to_be_verified(tmp_path: Path) -> None:
    file = tmp_path / "cache.sqlite"
    cache = fill(file, make_samples(200, make_spec()), make_spec(), num_devices=2)
    cache.close()
    pages = bytearray(file.read_bytes())
    at = pages.index(make_samples(200, make_spec())[100].activations) // 4096 * 4096
    pages[at : at + 8] = b"\xff" * 8  # the head of a page of rows
    file.write_bytes(pages)
    cache = ActivationCache(file)
    problems = cache.verify()
    damaged = {damage.row for damage in problems if damage.row is not None}
    assert 0 < len(damaged) < 200
    assert {damage.device for damage in problems if damage.device} <= {f"{i:032x}" for i in range(2)}
    with pytest.raises(CacheError, match=r"cache\.sqlite cannot be used: .*malformed; `mobillm cache verify` says"):
        cache.holdings()


def test_verify_sees_one_state_while_a_run_goes_on(tmp_path: Path, samples: Any) -> None:
    file = tmp_path / "cache.sqlite"
    cache = ActivationCache(file)
    cache.add(ALICE, samples[:10], backbone=BACKBONE, round_=1)
    other = ActivationCache(file)
    assert cache.verify() == []
    assert other.add(BOB, samples[10:], backbone=BACKBONE, round_=2) == 10  # nothing is left locked
    assert cache.verify() == []


def test_holdings_tell_what_each_device_has(tmp_path: Path, samples: Any) -> None:
    cache = ActivationCache(tmp_path / "cache.sqlite")
    assert cache.holdings() == []
    before = time.time()
    cache.add(BOB, samples[10:], backbone=BACKBONE, round_=1)
    cache.add(ALICE, samples[:4], backbone=BACKBONE, round_=1)
    cache.add(ALICE, samples[4:10], backbone=BACKBONE, round_=2)
    alice, bob = cache.holdings()
    assert (alice.device, alice.samples, alice.backbone) == (ALICE, 10, BACKBONE)
    assert (bob.device, bob.samples, bob.backbone) == (BOB, 10, BACKBONE)
    assert alice.num_bytes == sum(len(s.activations) + len(s.target) for s in samples[:10])
    assert alice.num_bytes + bob.num_bytes == cache.num_bytes
    assert before <= bob.first == bob.last <= alice.first <= alice.last <= time.time()


def test_a_file_that_is_no_cache_is_refused_and_kept(tmp_path: Path) -> None:
    file = tmp_path / "cache.sqlite"
    file.write_bytes(b"not a database, but somebody's notes" * 50)
    with pytest.raises(CacheError, match="cannot be used as a cache"):
        ActivationCache(file)
    assert file.read_bytes().startswith(b"not a database")


def test_another_version_is_refused_by_name(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "cache.sqlite") as db:
        db.execute("PRAGMA user_version=7")
    with pytest.raises(CacheError, match="has version 7, this release reads 1"):
        ActivationCache(tmp_path / "cache.sqlite")


def test_rows_after_each_window_are_those_of_a_fresh_process(tmp_path: Path, samples: Any) -> None:
    file = tmp_path / "cache.sqlite"
    cache = ActivationCache(file)
    seen = []
    for i in range(0, 20, 4):
        cache.add(f"{i:032x}", samples[i : i + 4], backbone=BACKBONE, round_=i)
        rows = cache.rows()
        assert list(rows) == plainly(file)
        assert rows is cache.rows()
        seen.append((rows, list(rows)))
    assert len({id(rows._table) for rows, _ in seen}) == 1  # nothing was read again
    assert all(list(rows) == was for rows, was in seen)
    assert list(cache.rows(before_round=8)) == [row for row in plainly(file) if row.round < 8]


def test_the_same_sample_of_several_devices_is_ordered_by_arrival(tmp_path: Path, samples: Any) -> None:
    file = tmp_path / "cache.sqlite"
    cache = ActivationCache(file)
    for device in (BOB, ALICE, "c" * 32):
        cache.add(device, samples[:5], backbone=BACKBONE, round_=1)
        assert list(cache.rows()) == plainly(file)
    assert [row.device for row in cache.rows()[:3]] == [BOB, ALICE, "c" * 32]


def test_what_another_connection_commits_is_seen(tmp_path: Path, samples: Any) -> None:
    """Also where it deletes the newest rows and others get their ids."""
    file = tmp_path / "cache.sqlite"
    cache, other = ActivationCache(file), ActivationCache(file)
    cache.add(ALICE, samples[:5], backbone=BACKBONE, round_=1)
    assert (len(cache), len(other), len(cache.rows()), len(other.rows())) == (5, 5, 5, 5)
    other.add(BOB, samples[5:10], backbone=BACKBONE, round_=1)
    assert (len(cache), cache.num_bytes) == (10, other.num_bytes)
    with sqlite3.connect(file) as db:
        db.execute("DELETE FROM samples WHERE device = ?", (BOB,))
    db.close()
    assert len(cache) == len(other) == 5
    other.add("c" * 32, samples[10:15], backbone=BACKBONE, round_=2)
    cache.add("d" * 32, samples[15:17], backbone=BACKBONE, round_=2)
    for one in (cache, other):
        assert list(one.rows()) == plainly(file)
        assert len(one) == 12
        assert one.num_bytes == sum(len(s.activations) + len(s.target) for s in samples[:5] + samples[10:17])


def test_counts_are_kept_as_windows_come(tmp_path: Path, samples: Any) -> None:
    file = tmp_path / "cache.sqlite"
    cache = ActivationCache(file)
    for window in (samples[:4], samples[2:6], samples[2:6], samples[6:]):
        cache.add(ALICE, window, backbone=BACKBONE, round_=1)
        db = sqlite3.connect(file)
        counted = db.execute("SELECT COUNT(*), SUM(LENGTH(activations) + LENGTH(target)) FROM samples").fetchone()
        db.close()
        assert (len(cache), cache.num_bytes) == counted


def test_a_task_that_begins_takes_the_rows_before_it_along_and_counts_its_own(tmp_path: Path, samples: Any) -> None:
    earlier = ActivationCache(tmp_path / "first run" / "cache.sqlite")
    earlier.add(ALICE, samples[:6], backbone=BACKBONE, round_=3)
    cache = ActivationCache(tmp_path / "second #1?" / "cache.sqlite")
    for _ in range(2):  # again after an interruption: nothing twice
        assert cache.begin_task(1, earlier.file) == 6
    cache.add(ALICE, samples[10:14], backbone=BACKBONE, round_=1)
    assert (len(cache), cache.num_of_task, cache.devices(), len(cache.held(ALICE))) == (10, 4, {ALICE: 4}, 4)
    assert [(held.device, held.task, held.samples) for held in cache.holdings()] == [(ALICE, 0, 6), (ALICE, 1, 4)]
    again = ActivationCache(cache.file)
    assert (again.task, again.num_of_task, again.devices()) == (1, 4, {ALICE: 4})
    rows = again.rows()
    assert sorted(zip(rows.column("task").tolist(), rows.column("round").tolist(), strict=True)) == (
        [(0, 0)] * 6 + [(1, 1)] * 4
    )
    assert {row.digest for row in rows if not row.task} == {row.digest for row in earlier.rows()}
    assert (len(earlier), earlier.task) == (6, 0)  # only read
    assert ActivationCache(tmp_path / "late.sqlite").begin_task(1, earlier.file, since=time.time() + 1) == 0
    assert again.verify() == []


def test_a_cache_to_go_on_from_that_is_none_changes_nothing(tmp_path: Path, samples: Any) -> None:
    (tmp_path / "notes.sqlite").write_text("no cache at all" * 100)
    earlier = ActivationCache(tmp_path / "first.sqlite")
    earlier.add(ALICE, samples[:3], backbone=BACKBONE, round_=1)
    cache = ActivationCache(tmp_path / "second.sqlite")
    cache.begin_task(1, earlier.file)
    for name in ("notes.sqlite", "missing.sqlite"):
        with pytest.raises(CacheError, match="cannot be used"):
            cache.begin_task(2, tmp_path / name)
    assert (cache.task, len(cache), ActivationCache(cache.file).task) == (1, 3, 1)


def test_a_task_begins_with_the_rows_of_the_cache_before_it_alone(tmp_path: Path, samples: Any) -> None:
    """A start that brought no sample may have gone on with another run; what devices sent is never deleted."""
    one, other = (ActivationCache(tmp_path / f"{name}.sqlite") for name in ("one", "other"))
    one.add(ALICE, samples[:6], backbone=BACKBONE, round_=1)
    other.add(BOB, samples[6:8], backbone=BACKBONE, round_=1)
    cache = ActivationCache(tmp_path / "cache.sqlite")
    for earlier, rows in ((one, 6), (other, 2), (None, 0), (one, 6)):
        assert cache.begin_task(1, earlier.file if earlier else None) == rows
        assert (len(cache), len(cache.rows()), cache.num_of_task) == (rows, rows, 0)
    cache.add(BOB, samples[8:9], backbone=BACKBONE, round_=1)
    with pytest.raises(CacheError, match=r"holds 1 samples of a run; use another run.folder"):
        cache.begin_task(1, other.file)
    assert len(cache) == 7
