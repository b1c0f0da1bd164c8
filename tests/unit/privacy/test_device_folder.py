"""The device's folder: private, its ids keyed, its ledger all or none, its releases made once."""

from __future__ import annotations

import multiprocessing
import sqlite3
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mobillm_flower.errors import ReleaseRefused
from mobillm_flower.privacy.device_folder import ID_BYTES, DeviceFolder, Release

SAMPLE = {"text": "wake me at six", "pair": None, "label": 0}


def make_release(folder: DeviceFolder, text: str = "wake me", shaping: str = "v1") -> tuple[bytes, Release]:
    sample = folder.sample_id({"text": text})
    return sample, Release(folder.release_id(sample, shaping), 1, f"activations of {text}".encode(), b"target")


def rows(folder: DeviceFolder) -> list[tuple[Any, ...]]:
    with sqlite3.connect(folder.path / "ledger.sqlite") as db:
        return db.execute("SELECT release, held, activations, target FROM releases ORDER BY release").fetchall()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Any]:
    made = DeviceFolder(tmp_path / "device")
    yield made
    made.close()


# folder and secret -----------------------------------------------------------------------------------------------
def test_modes(folder: DeviceFolder) -> None:
    folder.record([make_release(folder)])
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.path.iterdir()}
    assert {"secret", "ledger.sqlite", "ledger.sqlite-wal"} <= set(modes)
    assert set(modes.values()) == {0o600}


def test_an_open_folder_is_closed_to_others(tmp_path: Path) -> None:
    path = tmp_path / "device"
    path.mkdir(mode=0o755)
    path.chmod(0o755)
    DeviceFolder(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_pseudonym_is_stable_and_depends_on_the_secret(tmp_path: Path) -> None:
    names = []
    for name in ("one", "one", "two"):
        folder = DeviceFolder(tmp_path / name)
        names.append(folder.pseudonym)
        folder.close()
    assert names[0] == names[1] != names[2]
    assert len(bytes.fromhex(names[0])) == 16
    assert names[0] == names[0].lower()


def test_secret_is_random_and_not_in_what_is_sent(folder: DeviceFolder) -> None:
    secret = (folder.path / "secret").read_bytes()
    assert len(secret) == 32
    assert len(set(secret)) > 8
    assert bytes.fromhex(folder.pseudonym) not in secret


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_secret_of_wrong_length_is_refused(tmp_path: Path, size: int) -> None:
    DeviceFolder(tmp_path / "device").close()
    (tmp_path / "device" / "secret").write_bytes(bytes(size))
    with pytest.raises(ReleaseRefused, match=f"holds {size} bytes, a device's secret has 32; restore it"):
        DeviceFolder(tmp_path / "device")


def test_no_draft_of_the_secret_stays(folder: DeviceFolder) -> None:
    assert [file.name for file in folder.path.glob("secret*")] == ["secret"]


def test_racing_threads_get_one_secret(tmp_path: Path) -> None:
    barrier, names, errors = threading.Barrier(8), [], []

    def start() -> None:
        barrier.wait()
        try:
            folder = DeviceFolder(tmp_path / "device")
            names.append(folder.pseudonym)
            folder.close()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(names) == 8
    assert len(set(names)) == 1


def _start(path: str, barrier: Any, results: Any) -> None:  # runs in another process
    barrier.wait()
    try:
        folder = DeviceFolder(path)
        results.put(folder.pseudonym)
        folder.close()
    except Exception as error:
        results.put(repr(error))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_racing_processes_get_one_secret(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_start, args=(str(tmp_path / "device"), barrier, results)) for _ in range(4)]
    for process in processes:
        process.start()
    names = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    folder = DeviceFolder(tmp_path / "device")
    assert set(names) == {folder.pseudonym}
    folder.close()


# ids -------------------------------------------------------------------------------------------------------------
def test_ids_are_keyed(tmp_path: Path) -> None:
    one, two = DeviceFolder(tmp_path / "one"), DeviceFolder(tmp_path / "two")
    sample = one.sample_id(SAMPLE)
    release = one.release_id(sample, "v1")
    assert sample != two.sample_id(SAMPLE)
    assert release != two.release_id(sample, "v1")
    assert one.noise_key(release) != two.noise_key(release)
    assert one.data_fingerprint([sample]) != two.data_fingerprint([sample])
    one.close()
    two.close()


def test_ids_survive_a_restart(tmp_path: Path) -> None:
    found = []
    for _ in range(2):
        folder = DeviceFolder(tmp_path / "device")
        sample = folder.sample_id(SAMPLE)
        release = folder.release_id(sample, "v1")
        found.append((sample, release, folder.noise_key(release), folder.data_fingerprint([sample])))
        folder.close()
    assert found[0] == found[1]


def test_ids_have_their_length_and_purpose(folder: DeviceFolder) -> None:
    sample = folder.sample_id(SAMPLE)
    release = folder.release_id(sample, "v1")
    assert len(sample) == len(release) == ID_BYTES == 16
    assert len(folder.noise_key(release)) == 32
    assert not folder.noise_key(release).startswith(release)
    assert len({sample, release, folder.noise_key(release)[:16], bytes.fromhex(folder.pseudonym)}) == 4


def test_everything_that_shapes_a_release_changes_its_id(folder: DeviceFolder) -> None:
    samples = [
        folder.sample_id(SAMPLE),
        folder.sample_id({**SAMPLE, "label": 1}),
        folder.sample_id({**SAMPLE, "pair": ""}),
    ]
    releases = {folder.release_id(sample, shaping) for sample in samples for shaping in ("v1", "v2")}
    assert len(releases) == 6


def test_sample_id_does_not_depend_on_the_order_of_fields(folder: DeviceFolder) -> None:
    assert folder.sample_id(SAMPLE) == folder.sample_id(dict(reversed(SAMPLE.items())))


def test_data_fingerprint_is_of_the_set(folder: DeviceFolder) -> None:
    ids = [folder.sample_id({"text": str(i)}) for i in range(5)]
    assert folder.data_fingerprint(ids) == folder.data_fingerprint(reversed(ids))
    assert folder.data_fingerprint(ids) != folder.data_fingerprint(ids[1:])
    assert len(folder.data_fingerprint(ids)) == 32


# ledger and outbox -----------------------------------------------------------------------------------------------
def test_a_re_send_is_byte_identical(tmp_path: Path) -> None:
    folder = DeviceFolder(tmp_path / "device")
    sample, release = make_release(folder)
    folder.record([(sample, release)])
    assert folder.outbox([release.release, bytes(16)]) == {release.release: release}
    folder.close()
    folder = DeviceFolder(tmp_path / "device")  # a restart
    folder.check(sample, release.release)
    assert folder.outbox([release.release]) == {release.release: release}
    assert folder.held() == set()
    folder.close()


def test_acknowledged_releases_lose_their_bytes(folder: DeviceFolder) -> None:
    pairs = [make_release(folder, text) for text in ("one", "two")]
    folder.record(pairs)
    first, second = (release for _, release in pairs)
    assert folder.acknowledge([first.release, bytes(16)]) == 1
    assert folder.acknowledge([first.release]) == 0
    assert folder.held() == {first.release}
    assert folder.outbox([first.release, second.release]) == {second.release: second}
    kept = {release: (held, activations, target) for release, held, activations, target in rows(folder)}
    assert kept[first.release] == (1, None, None)
    assert kept[second.release] == (0, second.activations, second.target)


def test_acknowledging_nothing_is_nothing(folder: DeviceFolder) -> None:
    assert folder.acknowledge([]) == 0
    assert folder.held() == set()


def test_acknowledged_releases_are_refused_again(tmp_path: Path) -> None:
    folder = DeviceFolder(tmp_path / "device")
    sample, release = make_release(folder)
    folder.record([(sample, release)])
    folder.acknowledge([release.release])
    folder.close()
    folder = DeviceFolder(tmp_path / "device")
    with pytest.raises(ReleaseRefused, match="was released under these settings before and the server held it"):
        folder.check(sample, release.release)
    with pytest.raises(ReleaseRefused, match="was released under these settings before"):
        folder.record([(sample, release)])
    folder.close()


def test_another_release_of_a_sample_is_counted(folder: DeviceFolder) -> None:
    for shaping in ("v1", "v2", "v3"):
        folder.record([make_release(folder, shaping=shaping)])
    sample, _ = make_release(folder)
    assert folder.num_releases(sample) == 3
    assert folder.num_releases(bytes(16)) == 0


def test_budget(tmp_path: Path) -> None:
    folder = DeviceFolder(tmp_path / "device", max_releases=2)
    for shaping in ("v1", "v2"):
        folder.record([make_release(folder, shaping=shaping)])
    sample, third = make_release(folder, shaping="v3")
    with pytest.raises(ReleaseRefused, match=r"was released 2 times; privacy.max-releases=2 allows no more"):
        folder.check(sample, third.release)
    with pytest.raises(ReleaseRefused, match=r"privacy.max-releases=2"):
        folder.record([(sample, third)])
    folder.check(*(lambda pair: (pair[0], pair[1].release))(make_release(folder, shaping="v2")))  # waits in the outbox
    folder.record([make_release(folder, "another text")])
    assert folder.num_releases(sample) == 2
    folder.close()


def test_the_budget_counts_held_releases_and_survives_a_restart(tmp_path: Path) -> None:
    folder = DeviceFolder(tmp_path / "device", max_releases=1)
    sample, first = make_release(folder)
    folder.record([(sample, first)])
    folder.acknowledge([first.release])
    folder.close()
    folder = DeviceFolder(tmp_path / "device", max_releases=1)
    with pytest.raises(ReleaseRefused, match="released 1 times"):
        folder.check(*(lambda pair: (pair[0], pair[1].release))(make_release(folder, shaping="v2")))
    folder.close()


def test_the_budget_holds_within_one_batch(tmp_path: Path) -> None:
    folder = DeviceFolder(tmp_path / "device", max_releases=1)
    with pytest.raises(ReleaseRefused, match="released 1 times"):
        folder.record([make_release(folder, shaping="v1"), make_release(folder, shaping="v2")])
    assert rows(folder) == []
    folder.close()


def test_the_epsilon_of_all_releases_of_a_sample_adds_up(tmp_path: Path) -> None:
    folder = DeviceFolder(tmp_path / "device", budget=6.0)
    first, second = make_release(folder, shaping="v1"), make_release(folder, shaping="v2")
    folder.record([first], epsilon=4.0)
    folder.record([second], epsilon=2.0)
    sample, third = make_release(folder, shaping="v3")
    with pytest.raises(ReleaseRefused, match=r"took an epsilon of 6; 0.5 more is beyond privacy.budget=6"):
        folder.check(sample, third.release, epsilon=0.5)
    folder.check(sample, second[1].release, epsilon=2.0)  # the same release again takes nothing
    with pytest.raises(ReleaseRefused, match="allows no release without an epsilon"):
        folder.check(sample, third.release)
    folder.close()


def test_without_a_budget_a_protected_sample_is_released_once(tmp_path: Path) -> None:
    folder = DeviceFolder(tmp_path / "device")
    folder.record([make_release(folder, shaping="v1")], epsilon=4.0)
    sample, again = make_release(folder, shaping="v2")
    with pytest.raises(ReleaseRefused, match=r"beyond privacy.budget=4"):
        folder.record([(sample, again)], epsilon=4.0)
    folder.close()
    smaller = DeviceFolder(tmp_path / "device")
    with pytest.raises(ReleaseRefused, match=r"beyond privacy.budget=1"):
        smaller.check(sample, again.release, epsilon=1.0)
    smaller.close()


def test_no_epsilon_is_promised_for_a_sample_that_went_out_unprotected(tmp_path: Path) -> None:
    folder = DeviceFolder(tmp_path / "device", budget=100.0)
    folder.budget = 0.0
    folder.record([make_release(folder, shaping="v1")])
    folder.budget = 100.0
    sample, protected = make_release(folder, shaping="v2")
    with pytest.raises(ReleaseRefused, match="released without protection before"):
        folder.check(sample, protected.release, epsilon=1.0)
    folder.close()


def test_record_is_all_or_none(folder: DeviceFolder) -> None:
    held = make_release(folder, "held")
    folder.record([held])
    folder.acknowledge([held[1].release])
    before = rows(folder)
    with pytest.raises(ReleaseRefused, match="released under these settings before"):
        folder.record([make_release(folder, "new"), held, make_release(folder, "newer")])
    assert rows(folder) == before
    folder.record([make_release(folder, "new")])  # the failed transaction left no lock
    assert len(rows(folder)) == 2


def test_racing_records_keep_the_budget(tmp_path: Path) -> None:
    path, outcomes, barrier = tmp_path / "device", [], threading.Barrier(6)
    DeviceFolder(path).close()

    def release(i: int) -> None:
        folder = DeviceFolder(path, max_releases=2)
        barrier.wait()
        try:
            folder.record([make_release(folder, shaping=str(i))])
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
    folder.record([(sample, release)])
    folder.acknowledge([release.release])
    with pytest.raises(ReleaseRefused, match="train from that run's cache") as caught:
        folder.check(sample, release.release)
    assert "diary" not in str(caught.value)
    assert sample.hex() not in str(caught.value)
