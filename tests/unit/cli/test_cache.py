"""`mobillm cache` on real small caches."""

from __future__ import annotations

import json
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from mobillm_flower.config import load_settings, to_yaml
from mobillm_flower.runs import folder as run_folder
from mobillm_flower.runs.device_events import DeviceMet
from mobillm_flower.runs.folder import RunFolder
from mobillm_flower.server import ActivationCache
from tests.support.caches import BACKBONE, fill, make_samples, make_spec
from tests.support.cli import lines, mobillm, parsed, refused

DEVICES = [f"{number:032x}" for number in range(3)]


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """A run's folder: three devices with ten samples each, a settings file, a log, a side network."""
    folder = RunFolder(tmp_path / "run").make()
    settings = load_settings({"cache.quota-mib": 5, "cache.retention-days": 30.0})
    folder.settings.write_text(to_yaml(settings), "utf-8")
    for device in DEVICES:
        folder.append(DeviceMet(device=device, backbone="tiny", layers=2, num_train=10, num_test=0))
    fill(folder.cache, make_samples(30, make_spec()), make_spec(), num_devices=3).close()
    folder.side_network.mkdir()
    return folder.path


def damage(run: Any, number: int) -> None:
    with sqlite3.connect(run / "cache.sqlite") as db:
        db.execute("UPDATE samples SET target = zeroblob(LENGTH(target)) WHERE id = ?", (number,))


def devices(run: Any) -> dict[str, int]:
    cache = ActivationCache(run / "cache.sqlite")
    try:
        return cache.devices()
    finally:
        cache.close()


def test_ls_has_a_line_a_device_and_one_for_all(run: Any) -> None:
    *found, total = lines("cache", "ls", run)
    size = ActivationCache(run / "cache.sqlite").num_bytes
    assert [line.split()[:2] for line in found] == [[device, "10"] for device in DEVICES]
    assert all(f"tiny ({BACKBONE[:12]})" in line for line in found)
    assert (
        total == f"3 devices, 30 samples, {size:,} bytes of 5 MiB; a run deletes rows older than 30 days when it starts"
    )


def test_ls_json(run: Any) -> None:
    before = time.time()
    found = parsed("cache", "ls", run)
    assert {key: found[key] for key in ("run", "quota_mib", "retention_days", "in_use_by")} == {
        "run": str(run),
        "quota_mib": 5,
        "retention_days": 30.0,
        "in_use_by": None,
    }
    assert [device["device"] for device in found["devices"]] == DEVICES
    first = found["devices"][0]
    assert (first["samples"], first["backbone"], first["fingerprint"]) == (10, "tiny", BACKBONE)
    assert 0 < first["first"] <= first["last"] <= before
    size = sum(device["bytes"] for device in found["devices"])
    assert size == ActivationCache(run / "cache.sqlite").num_bytes


def test_looking_deletes_nothing_though_the_retention_time_is_over(run: Any) -> None:
    with sqlite3.connect(run / "cache.sqlite") as db:
        db.execute("UPDATE samples SET received = 1000000")
    assert "1970-01-1" in lines("cache", "ls", run)[0]
    assert lines("cache", "verify", run) == ["30 rows, all as they were committed"]
    assert sum(devices(run).values()) == 30


def test_ls_needs_neither_settings_nor_log_and_tells_who_holds_the_folder(run: Any) -> None:
    (run / "settings.yaml").unlink()
    (run / "events.jsonl").unlink()
    with RunFolder(run).hold():
        *found, total = lines("cache", "ls", run)
        assert parsed("cache", "ls", run)["in_use_by"] == RunFolder(run).holder()
    assert "? (aaaaaaaaaaaa)" in found[0]
    assert total.endswith(f" bytes; in use by process {json.loads((run / 'lock').read_text())}")


def test_verify_of_a_whole_cache(run: Any) -> None:
    assert lines("cache", "verify", run) == ["30 rows, all as they were committed"]
    assert parsed("cache", "verify", run) == {"run": str(run), "rows": 30, "damages": []}


def test_verify_names_rows_and_devices_and_ends_with_1(run: Any) -> None:
    damage(run, 5)
    with sqlite3.connect(run / "cache.sqlite") as db:
        (device,) = db.execute("SELECT device FROM samples WHERE id = 5").fetchone()
    answer = mobillm("cache", "verify", run)
    assert answer.exit_code == 1
    first, advice = answer.stdout.splitlines()
    assert first == f"row 5 of device {device}: its bytes are not those that were committed"
    assert "from a copy, or forget the devices named and train again" in advice
    answer = mobillm("cache", "verify", run, "--json")
    assert answer.exit_code == 1
    problem = "its bytes are not those that were committed"
    assert json.loads(answer.stdout)["damages"] == [{"row": 5, "device": device, "problem": problem}]


def test_forget_deletes_one_device_and_says_what_still_stems_from_it(run: Any) -> None:
    first, left = lines("cache", "forget", run, DEVICES[1], "--yes")
    assert first == f"10 samples of device {DEVICES[1]} are deleted, and their pages overwritten."
    assert "Still made with them: side_network in " in left
    assert "delete side_network and start the run again with the same settings and --out" in left
    assert devices(run) == {DEVICES[0]: 10, DEVICES[2]: 10}
    event = json.loads((run / "events.jsonl").read_text().splitlines()[-1])
    assert (event["event"], event["device"], event["samples"]) == ("forgotten", DEVICES[1], 10)


def test_forget_json(run: Any) -> None:
    found = parsed("cache", "forget", run, DEVICES[2], "--yes")
    assert found == {"run": str(run), "device": DEVICES[2], "samples": 10, "trained_with_it": ["side_network"]}
    assert DEVICES[2] not in devices(run)


def test_forget_while_another_process_reads_is_logged_and_told_afterwards(run: Any) -> None:
    with sqlite3.connect(run / "cache.sqlite") as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT COUNT(*) FROM samples").fetchone()
        said = refused("cache", "forget", run, DEVICES[0], "--yes")
    assert "10 rows are deleted, but another process has the file open" in said
    assert DEVICES[0] not in devices(run)
    event = json.loads((run / "events.jsonl").read_text().splitlines()[-1])
    assert (event["event"], event["device"], event["samples"]) == ("forgotten", DEVICES[0], 10)


def test_forget_without_anything_trained_says_no_more(run: Any) -> None:
    (run / "side_network").rmdir()
    assert len(lines("cache", "forget", run, DEVICES[0], "--yes")) == 1


def test_a_beginning_is_enough_where_one_device_alone_has_it(run: Any) -> None:
    with sqlite3.connect(run / "cache.sqlite") as db:
        db.execute("UPDATE samples SET device = ? WHERE device = ?", ("ab" * 16, DEVICES[2]))
    assert lines("cache", "forget", run, "AB", "--yes")[0].startswith(f"10 samples of device {'ab' * 16}")
    assert refused("cache", "forget", run, "00", "--yes").startswith(f"2 devices begin with '00': {DEVICES[0]}, ")
    assert "the cache holds no device 'ff'; it holds" in refused("cache", "forget", run, "ff", "--yes")
    assert "the cache holds no device ''; it holds" in refused("cache", "forget", run, "", "--yes")
    assert devices(run) == {DEVICES[0]: 10, DEVICES[1]: 10}


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_in_a_pipe_forget_wants_to_be_told(run: Any, more: Any) -> None:
    message = refused("cache", "forget", run, DEVICES[0], *more, stdin="y\n")
    assert "nothing was deleted; give --yes" in message
    assert len(devices(run)) == 3


def test_forget_is_refused_while_a_run_holds_the_folder(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "_LOCK_WAIT_S", 0.1)
    with RunFolder(run).hold():
        assert "is in use by process" in refused("cache", "forget", run, DEVICES[0], "--yes")
    assert len(devices(run)) == 3
    assert lines("cache", "forget", run, DEVICES[0], "--yes")


def test_expire_deletes_what_is_old_though_it_is_all_there_is(run: Any) -> None:
    assert lines("cache", "expire", run) == ["0 samples of 0 devices are deleted; 30 are left."]
    with sqlite3.connect(run / "cache.sqlite") as db:
        db.execute("UPDATE samples SET received = 1000000")
    assert "nothing was deleted; give --yes" in refused("cache", "expire", run, stdin="y\n")
    assert sum(devices(run).values()) == 30
    found = parsed("cache", "expire", run, "--yes")
    assert found == {"run": str(run), "samples": 30, "devices": 3, "left": 0}
    told = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert [event["device"] for event in told if event["event"] == "forgotten"] == DEVICES


@pytest.mark.parametrize("command", [["ls"], ["verify"], ["expire"], ["forget", "--yes"]])
def test_a_folder_without_a_cache_is_refused_and_none_is_made(tmp_path: Path, command: Any) -> None:
    name, *options = command
    device = ["aa"] if name == "forget" else []
    message = refused("cache", name, tmp_path, *device, *options)
    assert "holds no cache.sqlite; name the folder of a run that has begun" in message
    assert "is no folder" in refused("cache", name, tmp_path / "absent", *device, *options)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_cache_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache.sqlite").write_bytes(b"notes" * 500)
    for name in ("ls", "verify"):
        assert "cannot be used as a cache" in refused("cache", name, tmp_path)
