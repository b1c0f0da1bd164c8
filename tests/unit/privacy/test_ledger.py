"""The release ledger: all or none, by text, its releases made once, its limits kept whatever was put back."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mobillm_flower.errors import ReleaseRefused
from mobillm_flower.privacy.accounting import Guarantee
from mobillm_flower.privacy.device_folder import DeviceFolder
from mobillm_flower.privacy.ledger import Limits, Release, SampleKeys


def make_release(folder: DeviceFolder, text: str = "wake me", shaping: str = "v1") -> tuple[SampleKeys, Release]:
    sample = folder.sample_id({"text": text})
    release = Release(folder.release_id(sample, shaping), 1, f"activations of {text}".encode(), b"target")
    return SampleKeys(sample, folder.text_ids([text])), release


def rows(folder: DeviceFolder) -> list[tuple[Any, ...]]:
    with sqlite3.connect(folder.path / "ledger.sqlite") as db:
        return db.execute("SELECT release, held, activations, target FROM releases ORDER BY release").fetchall()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[DeviceFolder]:
    made = DeviceFolder(tmp_path / "device")
    yield made
    made.close()


# ledger and outbox -----------------------------------------------------------------------------------------------
def test_a_re_send_is_byte_identical(tmp_path: Path) -> None:
    folder = DeviceFolder(tmp_path / "device")
    sample, release = make_release(folder)
    folder.ledger.record([(sample, release)])
    assert folder.ledger.outbox([release.release, bytes(16)]) == {release.release: release}
    folder.close()
    folder = DeviceFolder(tmp_path / "device")  # a restart
    assert folder.ledger.outbox([release.release]) == {release.release: release}
    assert folder.ledger.held() == set()
    folder.close()


def test_acknowledged_releases_lose_their_bytes(folder: DeviceFolder) -> None:
    pairs = [make_release(folder, text) for text in ("one", "two")]
    folder.ledger.record(pairs)
    first, second = (release for _, release in pairs)
    assert folder.ledger.acknowledge([first.release, bytes(16)]) == 1
    assert folder.ledger.acknowledge([first.release]) == 0
    assert folder.ledger.held() == {first.release}
    assert folder.ledger.outbox([first.release, second.release]) == {second.release: second}
    kept = {release: (held, activations, target) for release, held, activations, target in rows(folder)}
    assert kept[first.release] == (1, None, None)
    assert kept[second.release] == (0, second.activations, second.target)


def test_acknowledging_nothing_is_nothing(folder: DeviceFolder) -> None:
    assert folder.ledger.acknowledge([]) == 0
    assert folder.ledger.held() == set()


def test_acknowledged_releases_are_refused_again(tmp_path: Path) -> None:
    folder = DeviceFolder(tmp_path / "device")
    sample, release = make_release(folder)
    folder.ledger.record([(sample, release)])
    folder.ledger.acknowledge([release.release])
    folder.close()
    folder = DeviceFolder(tmp_path / "device")
    assert list(folder.ledger.allowed([(sample, release.release)])) == [False]
    with pytest.raises(ReleaseRefused, match="was released under these settings before and the server held it"):
        folder.ledger.record([(sample, release)])
    folder.close()


def test_another_release_of_a_sample_is_counted(folder: DeviceFolder) -> None:
    for shaping in ("v1", "v2", "v3"):
        folder.ledger.record([make_release(folder, shaping=shaping)])
    assert len(rows(folder)) == 3


def test_budget(tmp_path: Path) -> None:
    folder = DeviceFolder(tmp_path / "device", limits=Limits(max_releases=2))
    for shaping in ("v1", "v2"):
        folder.ledger.record([make_release(folder, shaping=shaping)])
    sample, third = make_release(folder, shaping="v3")
    with pytest.raises(ReleaseRefused, match=r"was released 2 times; privacy.max-releases=2 allows no more"):
        folder.ledger.record([(sample, third)])
    _, second = make_release(folder, shaping="v2")  # waits in the outbox
    assert list(folder.ledger.allowed([(sample, third.release), (sample, second.release)])) == [False, True]
    folder.ledger.record([make_release(folder, "another text")])
    assert len(rows(folder)) == 3
    folder.close()


def test_the_budget_counts_held_releases_and_survives_a_restart(tmp_path: Path) -> None:
    folder = DeviceFolder(tmp_path / "device", limits=Limits(max_releases=1))
    sample, first = make_release(folder)
    folder.ledger.record([(sample, first)])
    folder.ledger.acknowledge([first.release])
    folder.close()
    folder = DeviceFolder(tmp_path / "device", limits=Limits(max_releases=1))
    with pytest.raises(ReleaseRefused, match="released 1 times"):
        folder.ledger.record([make_release(folder, shaping="v2")])
    folder.close()


def test_the_budget_holds_within_one_batch(tmp_path: Path) -> None:
    folder = DeviceFolder(tmp_path / "device", limits=Limits(max_releases=1))
    with pytest.raises(ReleaseRefused, match="released 1 times"):
        folder.ledger.record([make_release(folder, shaping="v1"), make_release(folder, shaping="v2")])
    assert rows(folder) == []
    folder.close()


def test_the_epsilon_of_all_releases_of_a_sample_adds_up(tmp_path: Path) -> None:
    folder = DeviceFolder(tmp_path / "device", limits=Limits(budget=6.0))
    first, second = make_release(folder, shaping="v1"), make_release(folder, shaping="v2")
    folder.ledger.record([first], Guarantee(4.0, 0.0))
    folder.ledger.record([second], Guarantee(2.0, 0.0))
    sample, third = make_release(folder, shaping="v3")
    with pytest.raises(ReleaseRefused, match=r"took an epsilon of 6; 0.5 more is beyond privacy.budget=6"):
        folder.ledger.record([(sample, third)], Guarantee(0.5, 0.0))
    folder.ledger.record([second], Guarantee(2.0, 0.0))  # the same release again takes nothing
    with pytest.raises(ReleaseRefused, match="allows no release without an epsilon"):
        folder.ledger.record([(sample, third)])
    folder.close()


def test_without_a_budget_a_protected_sample_is_released_once(tmp_path: Path) -> None:
    folder = DeviceFolder(tmp_path / "device")
    folder.ledger.record([make_release(folder, shaping="v1")], Guarantee(4.0, 0.0))
    sample, again = make_release(folder, shaping="v2")
    with pytest.raises(ReleaseRefused, match=r"beyond privacy.budget=4"):
        folder.ledger.record([(sample, again)], Guarantee(4.0, 0.0))
    folder.close()
    smaller = DeviceFolder(tmp_path / "device")
    with pytest.raises(ReleaseRefused, match=r"beyond privacy.budget=1"):
        smaller.ledger.record([(sample, again)], Guarantee(1.0, 0.0))
    smaller.close()


def test_no_epsilon_is_promised_for_a_sample_that_went_out_unprotected(tmp_path: Path) -> None:
    folder = DeviceFolder(tmp_path / "device")
    folder.ledger.record([make_release(folder, shaping="v1")])
    folder.close()
    folder = DeviceFolder(tmp_path / "device", limits=Limits(budget=100.0))
    with pytest.raises(ReleaseRefused, match="released without protection before"):
        folder.ledger.record([make_release(folder, shaping="v2")], Guarantee(1.0, 0.0))
    folder.close()


def test_record_is_all_or_none(folder: DeviceFolder) -> None:
    held = make_release(folder, "held")
    folder.ledger.record([held])
    folder.ledger.acknowledge([held[1].release])
    before = rows(folder)
    with pytest.raises(ReleaseRefused, match="released under these settings before"):
        folder.ledger.record([make_release(folder, "new"), held, make_release(folder, "newer")])
    assert rows(folder) == before
    folder.ledger.record([make_release(folder, "new")])  # the failed transaction left no lock
    assert len(rows(folder)) == 2


def test_racing_records_keep_the_budget(tmp_path: Path) -> None:
    path, outcomes, barrier = tmp_path / "device", [], threading.Barrier(6)
    DeviceFolder(path).close()

    def release(i: int) -> None:
        folder = DeviceFolder(path, limits=Limits(max_releases=2))
        barrier.wait()
        try:
            folder.ledger.record([make_release(folder, shaping=str(i))])
            outcomes.append("made")
        except ReleaseRefused:
            outcomes.append("refused")
        folder.close()

    threads = [threading.Thread(target=release, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["made"] * 2 + ["refused"] * 4


def test_errors_hold_no_sample_text(folder: DeviceFolder) -> None:
    sample, release = make_release(folder, "my secret diary")
    folder.ledger.record([(sample, release)])
    folder.ledger.acknowledge([release.release])
    with pytest.raises(ReleaseRefused, match="train from that run's cache") as caught:
        folder.ledger.record([(sample, release)])
    assert "diary" not in str(caught.value)
    assert sample.sample.hex() not in str(caught.value)


# by text ---------------------------------------------------------------------------------------------------------
def keys(folder: DeviceFolder, name: str, *texts: str) -> tuple[SampleKeys, bytes]:
    return SampleKeys(folder.sample_id({"name": name}), folder.text_ids(texts)), folder.release_id(name.encode(), "v1")


def test_a_text_is_released_once_whatever_sample_it_is_part_of(tmp_path: Path) -> None:
    folder = DeviceFolder(tmp_path / "device", limits=Limits(max_releases=1))
    samples = [keys(folder, "one", "a", "b"), keys(folder, "two", "b ", "c"), keys(folder, "three", "c", "d")]
    assert list(folder.ledger.allowed(samples)) == [True, False, True]
    assert list(folder.ledger.allowed(samples)) == [True, False, True]  # nothing was written
    folder.ledger.record([(samples[0][0], Release(samples[0][1], 1, b"", b""))])
    assert list(folder.ledger.allowed(samples[1:])) == [False, True]
    folder.close()


def test_the_epsilon_of_a_text_adds_up_over_samples(tmp_path: Path) -> None:
    folder = DeviceFolder(tmp_path / "device", limits=Limits(budget=3.0, max_delta=2e-5))
    samples = [keys(folder, str(i), "same", f"and {i}") for i in range(4)]
    assert list(folder.ledger.allowed(samples, Guarantee(1.0, 0.0))) == [True, True, True, False]
    assert list(folder.ledger.allowed(samples, Guarantee(1.0, 1e-5))) == [True, True, False, False]
    folder.close()


# metrics ---------------------------------------------------------------------------------------------------------
def test_metrics_are_counted_and_bounded(tmp_path: Path) -> None:
    for _ in range(2):
        folder = DeviceFolder(tmp_path / "device", limits=Limits(max_evaluations=2))
        folder.ledger.evaluate(folder.text_ids(["test"]))
        folder.close()
    folder = DeviceFolder(tmp_path / "device", limits=Limits(max_evaluations=2))
    with pytest.raises(ReleaseRefused, match=r"reported 2 metrics; privacy.max-evaluations=2 allows no more"):
        folder.ledger.evaluate(folder.text_ids(["another"]))
    folder.close()


def test_a_text_that_exact_metrics_were_on_gets_no_epsilon(folder: DeviceFolder) -> None:
    folder.ledger.evaluate(folder.text_ids(["wake  me"]))
    with pytest.raises(ReleaseRefused, match="exact metrics on a text of this sample were reported before"):
        folder.ledger.record([make_release(folder)], Guarantee(1.0, 0.0))
    folder.ledger.record([make_release(folder)])  # nothing is promised


def test_noisy_metrics_and_releases_share_a_budget(tmp_path: Path) -> None:
    folder = DeviceFolder(tmp_path / "device", limits=Limits(budget=3.0))
    for _ in range(2):
        folder.ledger.evaluate(folder.text_ids(["wake me"]), epsilon=1.0)
    with pytest.raises(ReleaseRefused, match=r"took an epsilon of 2; 2 more is beyond privacy.budget=3"):
        folder.ledger.record([make_release(folder)], Guarantee(2.0, 0.0))
    folder.ledger.evaluate(folder.text_ids(["wake me"]), epsilon=1.0)
    with pytest.raises(ReleaseRefused, match=r"test row took an epsilon of 3; 1 more is beyond privacy.budget=3"):
        folder.ledger.evaluate(folder.text_ids(["wake me"]), epsilon=1.0)
    folder.close()


# another file than it was ----------------------------------------------------------------------------------------
def spend(tmp_path: Path, shaping: str) -> None:
    folder = DeviceFolder(tmp_path / "device", limits=Limits(max_releases=3), counter=tmp_path / "counter")
    folder.ledger.record([make_release(folder, shaping=shaping)])
    folder.close()


def test_a_folder_that_was_put_back_is_noticed(tmp_path: Path) -> None:
    spend(tmp_path, "v1")
    shutil.copytree(tmp_path / "device", tmp_path / "copy")
    spend(tmp_path, "v2")
    shutil.rmtree(tmp_path / "device")
    shutil.copytree(tmp_path / "copy", tmp_path / "device")
    with pytest.raises(ReleaseRefused, match=r"older than its counter \(1 changes, 2 counted\): the folder was"):
        spend(tmp_path, "v3")


def test_evaluations_are_counted_outside_too(tmp_path: Path) -> None:
    spend(tmp_path, "v1")
    shutil.copytree(tmp_path / "device", tmp_path / "copy")
    folder = DeviceFolder(tmp_path / "device", counter=tmp_path / "counter")
    folder.ledger.evaluate([])
    folder.close()
    with pytest.raises(ReleaseRefused, match="the folder was put back"):
        DeviceFolder(tmp_path / "copy", counter=tmp_path / "counter")


def test_a_counter_that_is_gone_another_devices_or_damaged_is_refused(tmp_path: Path) -> None:
    spend(tmp_path, "v1")
    with pytest.raises(ReleaseRefused, match="damaged, or another device's"):
        DeviceFolder(tmp_path / "another", counter=tmp_path / "counter")
    (tmp_path / "counter").write_text("0 00")
    with pytest.raises(ReleaseRefused, match="damaged, or another device's"):
        spend(tmp_path, "v2")
    (tmp_path / "counter").unlink()
    with pytest.raises(ReleaseRefused, match="counter beside this device's folder is missing"):
        spend(tmp_path, "v2")


def test_a_counter_behind_its_ledger_is_a_cut_between_the_two(tmp_path: Path) -> None:
    spend(tmp_path, "v1")
    before = (tmp_path / "counter").read_text()
    spend(tmp_path, "v2")
    (tmp_path / "counter").write_text(before)
    spend(tmp_path, "v3")
    assert (tmp_path / "counter").read_text().startswith("3 ")


def test_what_is_no_ledger_is_refused(tmp_path: Path) -> None:
    DeviceFolder(tmp_path / "device").close()
    (tmp_path / "device" / "ledger.sqlite").write_bytes(b"no database" * 99)
    with pytest.raises(ReleaseRefused, match=r"ledger cannot be read \(DatabaseError\)"):
        DeviceFolder(tmp_path / "device")


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("releases.epsilon", "a lot"),
        ("releases.epsilon", b"\x01"),
        ("releases.epsilon", -1.0),
        ("releases.delta", "none"),
        ("releases.held", "yes"),
        ("releases.tokens", 1.5),
        ("releases.activations", "text"),
        ("texts.text", 7),
        ("evaluated.epsilon", "x"),
        ("evaluated.exact", -1),
        ("counts.value", "many"),
    ],
)
def test_a_value_that_is_none_of_its_column_is_refused_and_counts_as_no_zero(
    tmp_path: Path, column: str, value: Any
) -> None:
    folder = DeviceFolder(tmp_path / "device")
    folder.ledger.record([make_release(folder)], Guarantee(1.0, 0.0))
    folder.ledger.evaluate([b"a text"])
    folder.close()
    table, _, name = column.partition(".")
    with sqlite3.connect(tmp_path / "device" / "ledger.sqlite") as db:
        db.execute(f"UPDATE {table} SET {name} = ?", (value,))
    with pytest.raises(ReleaseRefused, match=f"ledger cannot be read .a value of {column} is no"):
        DeviceFolder(tmp_path / "device")


def test_a_ledger_of_a_later_version_is_refused(tmp_path: Path) -> None:
    DeviceFolder(tmp_path / "device").close()
    with sqlite3.connect(tmp_path / "device" / "ledger.sqlite") as db:
        db.execute("PRAGMA user_version=3")
    with pytest.raises(ReleaseRefused, match="is of version 3, this release reads 2"):
        DeviceFolder(tmp_path / "device")


def test_sums_are_of_the_same_texts_or_of_others_alone(folder: DeviceFolder) -> None:
    """Two sums that differ by one text give it away; samples that were sent one by one are no sums."""

    def add_up(name: str, *texts: str, whole: bool = True) -> None:
        release = folder.release_id(name.encode(), "sum")
        keys = SampleKeys(release, tuple(folder.text_ids(list(texts))))
        folder.ledger.record([(keys, Release(release, len(texts), b"words", b""))], whole=whole)

    folder.ledger.record([make_release(folder, "one")])
    add_up("first", "one", "two", "three")
    add_up("the same otherwise", "one", "two", "three")
    add_up("others", "four", "five")
    for number, texts in enumerate((["one", "two"], ["one", "two", "three", "six"], ["three", "four"])):
        with pytest.raises(ReleaseRefused, match="sums of a part of these samples, or of them and others"):
            add_up(f"other {number}", *texts)
    assert len(rows(folder)) == 4
    add_up("fewer", "one", "two", whole=False)


@pytest.fixture
def old(tmp_path: Path) -> tuple[Path, SampleKeys, Release]:
    """A folder as version 0.1.0 left it: releases by text and label together, and no texts."""
    folder = DeviceFolder(tmp_path / "device")
    keys, release = make_release(folder)
    folder.close()
    (tmp_path / "device" / "ledger.sqlite").unlink()
    with sqlite3.connect(tmp_path / "device" / "ledger.sqlite") as db:
        db.execute(
            "CREATE TABLE releases (release BLOB PRIMARY KEY, sample BLOB NOT NULL, held INTEGER NOT NULL DEFAULT 0, "
            "tokens INTEGER NOT NULL, activations BLOB, target BLOB, epsilon REAL) WITHOUT ROWID"
        )
        row = (release.release, keys.sample, release.tokens, release.activations, release.target, 4.0)
        db.execute("INSERT INTO releases VALUES (?, ?, 0, ?, ?, ?, ?)", row)
    return tmp_path / "device", keys, release


def test_an_old_ledger_promises_nothing_until_its_texts_are_known(old: tuple[Path, SampleKeys, Release]) -> None:
    path, keys, release = old
    folder = DeviceFolder(path)
    assert folder.ledger.outbox([release.release]) == {release.release: release}
    with pytest.raises(ReleaseRefused, match="has 1 releases of an earlier version, which does not say of which texts"):
        folder.ledger.record([make_release(folder, "another")], Guarantee(1.0, 0.0))
    folder.ledger.record([make_release(folder, "another")])  # nothing is promised
    folder.ledger.attribute([keys])
    folder.ledger.record([make_release(folder, "a third")], Guarantee(1.0, 0.0))
    with pytest.raises(ReleaseRefused, match=r"took an epsilon of 4; 1 more is beyond privacy.budget=1"):
        folder.ledger.record([make_release(folder, shaping="v2")], Guarantee(1.0, 0.0))
    folder.close()
