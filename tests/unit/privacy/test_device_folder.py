"""The device's folder: private, its secret and ledger belong together, its ids keyed."""

from __future__ import annotations

import multiprocessing
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mobillm_flower.errors import ReleaseRefused, SettingsError
from mobillm_flower.privacy.device_folder import ID_BYTES, DeviceFolder
from mobillm_flower.privacy.ledger import Release, SampleKeys

SAMPLE = {"text": "wake me at six", "pair": None, "label": 0}


def make_release(folder: DeviceFolder, text: str = "wake me", shaping: str = "v1") -> tuple[SampleKeys, Release]:
    sample = folder.sample_id({"text": text})
    release = Release(folder.release_id(sample, shaping), 1, f"activations of {text}".encode(), b"target")
    return SampleKeys(sample, folder.text_ids([text])), release


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Any]:
    made = DeviceFolder(tmp_path / "device")
    yield made
    made.close()


# folder and secret -----------------------------------------------------------------------------------------------
def test_modes(folder: DeviceFolder) -> None:
    folder.ledger.record([make_release(folder)])
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


def test_one_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=r"device-folder=.*file/device cannot be used \(Not a directory\)"):
        DeviceFolder(tmp_path / "file" / "device")


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


def test_a_missing_ledger_is_not_started_anew(folder: DeviceFolder) -> None:
    for file in folder.path.glob("ledger.sqlite*"):
        file.unlink()
    with pytest.raises(ReleaseRefused, match="has its secret and no ledger"):
        DeviceFolder(folder.path)


def test_a_ledger_without_the_secret_it_was_kept_under_is_refused(folder: DeviceFolder) -> None:
    (folder.path / "secret").unlink()
    folder = DeviceFolder(folder.path)  # nothing was released: a start that was cut short
    folder.ledger.record([make_release(folder)])
    folder.close()
    (folder.path / "secret").unlink()
    with pytest.raises(ReleaseRefused, match="has a ledger and no secret"):
        DeviceFolder(folder.path)


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


@pytest.mark.parametrize(
    "other",
    ["  wake\u00a0me\tat\nsix ", "wake me at six", "wake  me at six"],
    ids=["blanks", "same", "two"],
)
def test_a_text_is_counted_as_one_however_it_is_spaced(folder: DeviceFolder, other: str) -> None:
    assert folder.text_ids([other]) == folder.text_ids(["wake me at six"])


def test_a_text_is_counted_as_one_in_any_normal_form(folder: DeviceFolder) -> None:
    assert folder.text_ids(["cafe\u0301"]) == folder.text_ids(["caf\u00e9"]) != folder.text_ids(["cafe"])
    assert folder.text_ids(["", "  "]) == ()
    assert len(folder.text_ids(["\ud800"])) == 1  # a lone surrogate, as JSON may hold it
