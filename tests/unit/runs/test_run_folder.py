"""The run folder's lock, held by one process and gone with it; its log after a writer that was killed."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mobillm_flower.errors import InUseError, SettingsError
from mobillm_flower.runs import folder as run_folder
from mobillm_flower.runs.events import Finished, Started
from mobillm_flower.runs.folder import RunFolder

HOLD = """
import subprocess, sys, time
from mobillm_flower.runs.folder import RunFolder

lock = RunFolder(sys.argv[1]).make().hold()
child = subprocess.Popen([sys.executable, "-c", "import time; print('up', flush=True); time.sleep(120)"])
print(child.pid, flush=True)
time.sleep(120)
"""


@pytest.fixture(autouse=True)
def _short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "_LOCK_WAIT_S", 0.1)


def test_a_folder_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run").make()
    assert run.holder() is None
    lock = run.hold()
    assert RunFolder(tmp_path / "run").holder() == os.getpid()
    with pytest.raises(InUseError, match=rf"run is in use by process {os.getpid()}; wait until it has ended"):
        RunFolder(tmp_path / "run").hold()
    lock.close()
    assert run.holder() is None
    with run.hold():
        assert run.holder() == os.getpid()
    assert run.holder() is None


def test_looking_at_the_lock_makes_no_file(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run").make()
    assert run.holder() is None
    assert list(run.path.iterdir()) == []
    assert stat.S_IMODE(run.path.stat().st_mode) == 0o700


def test_a_look_does_not_keep_a_run_from_starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "_LOCK_WAIT_S", 30.0)
    run = RunFolder(tmp_path / "run").make()
    run.hold().close()
    looking = (run.path / "lock").open(encoding="utf-8")
    assert run_folder._lock(looking, fcntl.LOCK_SH)
    tries = []

    def sleep(seconds: float) -> None:
        tries.append(seconds)
        looking.close()

    monkeypatch.setattr(time, "sleep", sleep)
    with run.hold():
        assert len(tries) == 1


@pytest.mark.slow
def test_a_killed_process_lets_go_though_a_program_that_it_started_lives_on(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    child = 0
    try:
        assert process.stdout is not None
        lines = {process.stdout.readline().strip(), process.stdout.readline().strip()}
        child = int((lines - {"up"}).pop())
        run = RunFolder(tmp_path / "run").make()
        assert run.holder() == process.pid
        with pytest.raises(InUseError, match=f"in use by process {process.pid}"):
            run.hold()
        process.send_signal(signal.SIGKILL)
        process.wait()
        os.kill(child, 0)  # still there
        assert run.holder() is None
        run.hold().close()
    finally:
        process.kill()
        if child:
            os.kill(child, signal.SIGKILL)
        process.communicate()


def test_a_torn_line_is_cut_before_the_next_event(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.append(Started("PaeMobiLLM"))
    with run.events.open("a") as stream:
        stream.write('{"time": 12.5, "event": "wind')  # whoever wrote it was killed
    run.append(Finished("completed", 1.0))
    assert [json.loads(line)["event"] for line in run.events.read_text().splitlines()] == ["started", "finished"]
    run.events.write_text('{"time": 12.5')  # a log that ends within its first line
    run.append(Started("PaeMobiLLM"))
    assert [json.loads(line)["event"] for line in run.events.read_text().splitlines()] == ["started"]


@pytest.mark.parametrize(("path", "reason"), [("file/run", "Not a directory"), ("run", "it is read-only")])
def test_a_folder_that_cannot_be_written_to_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, reason: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "access", lambda *_: False)  # also of root, who may write wherever the disk lets it
    with pytest.raises(
        SettingsError, match=rf"run\.folder=.*{path} cannot be used \({reason}\); name a folder"
    ) as said:
        RunFolder(tmp_path / path).make()
    assert "\n" not in str(said.value)
