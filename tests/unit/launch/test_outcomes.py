"""How a run's end is told, with programs that stand in for Flower's."""

from __future__ import annotations

import http.server
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from mobillm_flower.errors import RunFailed, SettingsError
from mobillm_flower.launch import RunOutcome, read_app, run_app, run_on
from mobillm_flower.launch import superlink as superlink_module
from mobillm_flower.launch import watch as watch_module
from mobillm_flower.runs.events import Event, Finished, Started
from mobillm_flower.runs.folder import RunFolder
from mobillm_flower.runs.watching import FlowerStatus
from tests.support.cli import refused
from tests.support.fake_flower import FakeFlower
from tests.support.pages import ROOT

APP = read_app(ROOT / "examples" / "quickstart")
_LONG_S = 600.0
pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def flower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeFlower:
    for name in ("_LOOK_S", "_ASK_S", "_START_S"):
        monkeypatch.setattr(watch_module, name, 0.01)
    return FakeFlower(tmp_path, monkeypatch)


def submitted(flower: FakeFlower, events: list[Event] | None = None) -> RunOutcome:
    """Run the quickstart on the connection `fleet`."""
    on_event = (lambda _event: None) if events is None else events.append
    return run_on(APP, [], superlink="fleet", home=flower.home, on_event=on_event)


def simulated(run: Path) -> RunOutcome:
    return run_app(APP, [], run_path=run, on_event=lambda _event: None)


def test_a_run_that_completed_is_told_with_its_statuses(flower: FakeFlower) -> None:
    flower.answers("pending", "running", "finished:completed")
    events: list[Event] = []
    outcome = submitted(flower, events)
    assert (outcome.status, outcome.run_id, outcome.run_path) == ("finished:completed", flower.run, None)
    assert [event.status for event in events if isinstance(event, FlowerStatus)] == ["pending", "running"]


def test_a_failed_run_is_an_error_although_every_command_returns_0(flower: FakeFlower) -> None:
    flower.answers("running", "finished:failed", log="all is well\nValueError: no data here\nbye")
    with pytest.raises(RunFailed, match=r"quickstart ended as finished:failed: ValueError: no data here\. The log is"):
        submitted(flower)


def test_a_simulation_that_fails_before_its_log_begins_says_why(flower: FakeFlower, tmp_path: Path) -> None:
    said = "SettingsError: unknown strategy 'peas'; did you mean 'pae'?"
    flower.answers(
        "finished:failed", log=f"{said}address already in use\nINFO [uvicorn.error] Finished server process [1]"
    )
    with pytest.raises(RunFailed, match=f"ended as finished:failed: {re.escape(said)}"):
        simulated(tmp_path / "run")


def test_a_simulation_whose_runtime_crashed_says_what_it_crashed_of(flower: FakeFlower, tmp_path: Path) -> None:
    said = "FileNotFoundError: [Errno 2] No such file or directory: '/dev/shm'"
    after = "RuntimeError: Simulation Runtime crashed.\nRuntimeError: An error was encountered. Ending simulation."
    flower.answers("finished:failed", log=f"Traceback\n{said}\nTraceback\n{after}\nERROR: Exit Code: 700")
    with pytest.raises(RunFailed, match=f"ended as finished:failed: {re.escape(said)}"):
        simulated(tmp_path / "run")


def test_without_shared_memory_nothing_is_started(
    flower: FakeFlower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mobillm_flower.launch.run._SHARED_MEMORY", str(tmp_path / "shm"))
    with pytest.raises(RunFailed, match=r"^a simulation needs shared memory, and .*shm is missing or cannot"):
        simulated(tmp_path / "run")
    assert not flower.calls("flower-superlink")


def test_a_run_in_a_folder_that_cannot_be_written_to_starts_nothing(flower: FakeFlower, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=r"run\.folder=.*file/run cannot be used \(Not a directory\)"):
        simulated(tmp_path / "file" / "run")
    assert not flower.calls("flower-superlink")


def test_mobillm_run_exits_with_1_where_the_run_failed(flower: FakeFlower, monkeypatch: pytest.MonkeyPatch) -> None:
    flower.answers("finished:failed", log="ValueError: no data here")
    monkeypatch.setenv("FLWR_HOME", str(flower.home))
    assert "ended as finished:failed" in refused("run", APP.folder, "--superlink", "fleet", "--json")


def test_a_simulation_that_never_said_it_completed_is_an_error_whatever_flower_says(
    flower: FakeFlower, tmp_path: Path
) -> None:
    flower.answers("finished:completed")
    with pytest.raises(RunFailed, match="quickstart ended as finished:completed: nothing was logged"):
        simulated(tmp_path / "run")


@pytest.mark.parametrize("status", ["pending", "starting"])
def test_a_run_that_does_not_begin_ends_with_a_reason(
    flower: FakeFlower, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    monkeypatch.setattr(watch_module, "_PENDING_S", 0.3)
    flower.answers(status)
    message = (
        rf"has been {status} for 0\.3 s: .* has not started its ServerApp.*`flwr stop {flower.run} fleet` takes it"
    )
    with pytest.raises(RunFailed, match=message):
        submitted(flower)


def test_a_simulation_that_does_not_begin_names_its_log_and_is_ended(
    flower: FakeFlower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "_PENDING_S", 0.3)
    log = tmp_path / "run" / "flower" / "superlink.log"
    with pytest.raises(RunFailed, match=rf"has been pending for 0\.3 s.*ServerApp\. The log is {log}$"):
        simulated(tmp_path / "run")
    commands = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    assert not [command for command in commands if str(tmp_path) in command]


@pytest.mark.parametrize("statuses", [["pending", "starting", "running"], ["running"]])
def test_a_run_that_began_may_take_long(
    flower: FakeFlower, monkeypatch: pytest.MonkeyPatch, statuses: list[str]
) -> None:
    monkeypatch.setattr(watch_module, "_PENDING_S", 0.0 if statuses == ["running"] else _LONG_S)
    flower.answers(*statuses, *["running"] * 5, "finished:completed")
    assert submitted(flower).status == "finished:completed"


def test_a_run_whose_events_are_seen_has_begun_whatever_flower_says(
    flower: FakeFlower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "_PENDING_S", 0.0)
    monkeypatch.setattr(watch_module, "_SILENCE_S", 0.01)
    flower.answers("pending", "pending", "pending", "finished:completed")
    run = tmp_path / "run"
    folder = RunFolder(run, run_id=flower.run).make()
    folder.append(Started("PaeMobiLLM"))
    folder.append(Finished("completed", 1.0))
    outcome = run_on(APP, [f"run.folder={run}"], superlink="fleet", home=flower.home, on_event=lambda _event: None)
    assert outcome.run_path == run


def test_a_superlink_that_does_not_answer_any_more_is_given_up(
    flower: FakeFlower, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(superlink_module, "_ANSWER_S", 0.3)
    monkeypatch.setattr(watch_module, "_LOST_S", 0.1)
    flower.answers("hangs")
    with pytest.raises(RunFailed, match=r"the SuperLink of 'fleet' does not answer for 0\.1 s"):
        submitted(flower)


@pytest.fixture
def foreign() -> Iterator[int]:
    """A server that says it is healthy, as a SuperLink of somebody else's does; gives its port."""

    class Healthy(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Healthy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.mark.parametrize(
    ("ours", "message"),
    [
        ("is deaf", "a program that was not started here listens at http"),
        ("listens", "a program that was not started here listens at http|flower-superlink ended with code 1|is taken"),
    ],
)
def test_a_superlink_of_somebody_else_on_our_port_is_noticed_and_gets_nothing(
    flower: FakeFlower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, foreign: int, ours: str, message: str
) -> None:
    monkeypatch.setattr(superlink_module, "free_port", lambda: foreign)
    flower.answers("finished:completed", superlink=ours)  # one that listens ends itself: the port is taken
    with pytest.raises(RunFailed, match=message):
        simulated(tmp_path / "run")
    assert not flower.calls("flwr")


def test_a_taken_port_is_one_sentence(tmp_path: Path) -> None:
    log = tmp_path / "log"
    said = "ERROR [uvicorn.error] [Errno 98] error while attempting to bind on address ('127.0.0.1', 9093): "
    log.write_text(f"{said}address already in use\nINFO: Application shutdown complete.\n", "utf-8")
    ended: Any = SimpleNamespace(poll=lambda: 1, returncode=1, pid=0)
    with pytest.raises(
        RunFailed, match=r"^port 9093 is taken: another program listens at it; end that program, or"
    ) as said_:
        superlink_module.wait_healthy(ended, "http://127.0.0.1:9093", log)
    assert str(said_.value).count(".") == 0
    with pytest.raises(RunFailed, match="flower-superlink ended with code 1"):
        superlink_module.wait_healthy(ended, "http://127.0.0.1:9094", log)


@pytest.mark.parametrize(("name", "address"), [("local", ":local:"), ("old", ":local")])
def test_a_connection_to_a_superlink_that_flower_starts_itself_is_refused(
    flower: FakeFlower, name: str, address: str
) -> None:
    with pytest.raises(
        SettingsError, match=rf"\[superlink\.{name}\] .* has the address '{address}'.*leave --superlink"
    ):
        run_on(APP, [], superlink=name, home=flower.home, on_event=lambda _event: None)
    assert not flower.calls("flwr")


def test_flower_is_told_to_install_nothing_wherever_it_would(flower: FakeFlower, tmp_path: Path) -> None:
    flower.answers("finished:failed")
    with pytest.raises(RunFailed, match="finished:failed"):
        simulated(tmp_path / "run")
    (superlink,) = flower.calls("flower-superlink")
    (run,) = flower.calls("flwr", "run")
    assert "--disable-runtime-dependency-installation" in superlink["words"]
    for call in (superlink, run):
        assert call["environment"]["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
        assert call["environment"]["FLWR_HOME"] == str(tmp_path / "run" / "flower")
