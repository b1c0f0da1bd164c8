"""`mobillm status`: figures from events, and how they are printed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from mobillm_flower.runs import device_events, events
from mobillm_flower.runs.folder import RunFolder
from mobillm_flower.runs.record import RunRecord
from mobillm_flower.runs.status import run_status
from tests.support.cli import lines, mobillm, parsed, refused
from tests.support.run_folders import write_run

A, B = "a" * 32, "b" * 32


def prepared(resumed_steps: int = 0, run: str = "") -> events.Prepared:
    return events.Prepared(2, 160, 2, 8, 100, 50, resumed_steps, layers={}, pivots={}, scale=1.0, run=run)


def window(device: str, new: int, remaining: int) -> device_events.Window:
    return device_events.Window(1, device, 1, new, new, remaining, refused=0, bytes=100, forward_seconds=0.1)


def met(device: str, num_train: int) -> device_events.DeviceMet:
    return device_events.DeviceMet(device, "minilm", layers=2, num_train=num_train, num_test=0)


def record(*timed: tuple[float, events.Event]) -> RunRecord:
    written = [dataclasses.replace(event, time=time, run=event.run or "7") for time, event in timed]
    return RunRecord(RunFolder("run"), written)


MEETING = ((100, events.Started("PaeMobiLLM")), (101, met(A, 100)), (102, met(B, 60)))
INGESTING = (*MEETING, (110, prepared()), (120, window(A, 20, 80)), (130, window(B, 30, 30)), (170, window(A, 30, 50)))


def test_a_run_that_has_only_begun_is_meeting() -> None:
    status = run_status(record(*MEETING), now=104)
    assert (status.phase, status.run_id, status.total, status.held, status.seconds) == ("meeting", "7", 160, 0, 4)
    assert (status.samples_per_s, status.seconds_left, status.cache_bytes, status.share) == (0.0, None, None, 0.0)
    assert [device.state for device in status.devices] == ["nothing sent", "nothing sent"]


def test_rate_is_over_the_last_minute_and_the_slowest_device_sets_the_time_left() -> None:
    status = run_status(record(*INGESTING), now=185)
    assert status.phase_text == "ingesting"
    assert (status.held, status.windows, status.share) == (80, 3, 0.5)
    assert status.samples_per_s == 60 / 60  # what came at 130 and 170, not at 120
    # A: 50 samples in 60 s, 50 left, 15 s of it gone; B: 30 in 20 s, 30 left, long over
    assert status.until_sent_s == {A: pytest.approx(45), B: 0.0}
    assert status.seconds_left == pytest.approx(45)
    early = run_status(record(*INGESTING[:5]), now=130)
    assert early.samples_per_s == 20 / 20  # ingestion began 20 s ago


def test_strikes_failures_and_devices_that_are_passed_over_are_counted() -> None:
    status = run_status(
        record(
            *INGESTING,
            (171, device_events.Rejected(A, rule="shape", detail="3 is not 4")),
            (172, device_events.Failure("error 5", device=B)),
            (173, device_events.Failure("error 5", device=B)),
            (174, device_events.Dropped(B, "2 failures in a row")),
            (175, device_events.NodeRefused("9", "another task")),
        ),
        now=180,
    )
    assert (status.strikes, status.failures, status.refused) == (1, 2, 1)
    assert [device.state for device in status.devices] == ["part sent", "dropped: 2 failures in a row"]
    assert B not in status.until_sent_s
    again = run_status(record(*INGESTING, (174, device_events.Dropped(B, "away")),
                              (176, device_events.Returned(B))), now=180)  # fmt: skip
    assert again.devices[1].state == "part sent"


def test_what_a_round_says_is_held_counts_and_later_windows_are_added() -> None:
    round_ = events.Round(1, num_held=75, cache_bytes=4096)
    status = run_status(record(*INGESTING, (171, round_), (172, window(B, 10, 20))), now=180)
    assert (status.held, status.cache_bytes) == (85, 4096)
    status = run_status(record(*INGESTING, (171, round_), (190, device_events.Forgotten(A, 50))), now=191)
    assert (status.held, status.devices[0].held) == (25, 0)


TRAINING = (
    *INGESTING,
    (200, events.Ingested(samples=80, epochs=5)),
    (210, events.Epoch(1, 10)),
    (220, events.Epoch(2, 20)),
)


def test_training_tells_the_epoch_and_the_time_left() -> None:
    status = run_status(record(*TRAINING), now=224)
    assert status.phase_text == "training, epoch 3 of 5"
    assert status.seconds_left == pytest.approx(3 * 10 - 4)
    assert status.samples_per_s == pytest.approx(30 / 60)  # up to when the ingestion ended: what came at 170
    first = run_status(record(*TRAINING[:-2]), now=205)
    assert (first.phase_text, first.seconds_left) == ("training, epoch 1 of 5", None)


def test_a_run_that_goes_on_continues_its_epochs_and_forgets_those_after_its_checkpoint() -> None:
    again = (
        (300, events.Started("PaeMobiLLM", run="8")),
        (301, met(A, 100)),
        (305, prepared(15, run="8")),
        (306, events.Ingested(80, 5, run="8")),
    )
    status = run_status(record(*TRAINING, *again), now=307)
    assert (status.run_id, status.phase_text, status.seconds_left) == ("8", "training, epoch 2 of 5", None)
    status = run_status(record(*TRAINING, *again, (316, events.Epoch(2, 20))), now=317)
    assert status.phase_text == "training, epoch 3 of 5"
    assert status.seconds_left == pytest.approx(29)
    assert (status.held, status.seconds) == (80, 17)


@pytest.mark.parametrize("outcome", ["completed", "failed"])
def test_a_run_that_is_over_does_not_age(outcome: str) -> None:
    end = events.Finished(outcome, 1.0, "no sample" if outcome == "failed" else "")
    status = run_status(record(*TRAINING, (230, events.Trained(30, 3)), (240, end)), now=9999)
    assert (status.phase, status.over, status.seconds, status.seconds_left) == (outcome, True, 140, None)
    assert status.reason == ("no sample" if outcome == "failed" else "")
    assert run_status(record(*TRAINING, (230, events.Trained(30, 3))), now=231).phase_text == "evaluating"


def test_the_command_prints_a_line_a_figure_and_a_line_a_device(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", end="uploading")
    with RunFolder(run).hold():
        printed = lines("status", run)
    printed = [line for line in printed if line]
    assert [printed[0], printed[1].split()] == ["Status", ["what", "figure", "remark"]]
    assert printed[2].split() == ["phase", "ingesting"]
    assert [printed[-5], printed[-4].split()[:3]] == ["Devices", ["device", "held", "of"]]
    (held,) = [line for line in printed if line.startswith("samples held")]
    assert held.split()[2:] == ["30", "50.0%", "of", "60,", "in", "3", "windows"]
    assert [line.split()[:4] for line in printed[-3:]] == [[f"{i:08x}", "10", "20", "1"] for i in (1, 2, 3)]


def test_a_completed_run_has_its_metric(tmp_path: Path) -> None:
    """Those of them that are single numbers: a function of the user's own may return lists."""
    run = write_run(tmp_path / "run", end="completed")
    RunFolder(run).append(events.Evaluation(3, 12, 3, {"accuracy": 0.75, "of-each-class": [0.5, 1.0]}))
    (line,) = [line for line in lines("status", run) if line.startswith("accuracy")]
    assert line.split()[:2] == ["accuracy", "0.7500"]
    assert parsed("status", run)["metrics"] == {"accuracy": 0.75}


def test_json_has_everything_and_says_whether_the_folder_is_in_use(tmp_path: Path) -> None:
    found = parsed("status", write_run(tmp_path / "run", end="completed"))
    assert (found["phase"], found["held"], found["total"], found["share"]) == ("completed", 30, 60, 0.5)
    assert (found["cache_bytes"], found["in_use"], found["seconds_left"]) == (4096, False, None)
    assert [device["state"] for device in found["devices"]] == ["part sent"] * 3
    with RunFolder(tmp_path / "run").hold():
        assert parsed("status", tmp_path / "run")["in_use"] is True


def test_watch_ends_with_the_run_and_when_nobody_goes_on_with_it(tmp_path: Path) -> None:
    done = write_run(tmp_path / "done", end="failed", reason="no device")
    (line,) = lines("status", done, "--watch")
    assert line.startswith("failed: 3 devices, 30 of 60 samples")
    stopped = write_run(tmp_path / "stopped", end="training")
    line, last = lines("status", stopped, "--watch")
    assert line.startswith("training, epoch 4; no process here goes on with it: 3 devices")
    assert "was interrupted" in last
    result = mobillm("status", stopped, "--watch", "--json")
    assert [json.loads(text)["phase"] for text in result.stdout.splitlines()] == ["training"]


def test_a_folder_without_a_log_is_refused(tmp_path: Path) -> None:
    assert "holds no readable events.jsonl" in refused("status", tmp_path)
    assert "is no folder" in refused("status", tmp_path / "none")
