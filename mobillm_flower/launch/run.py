"""Run a Flower app, in simulation or on a SuperLink that is there, and tell the truth about how it ended."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobillm_flower.config import Settings, run_folder
from mobillm_flower.errors import RunFailed, UnsupportedError
from mobillm_flower.launch.app import App
from mobillm_flower.launch.superlink import named_connection, simulation_superlink
from mobillm_flower.launch.watch import RunFollower, watch
from mobillm_flower.runs.events import OnEvent
from mobillm_flower.runs.folder import RunFolder
from mobillm_flower.runs.watching import Submitted

_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - Ray keeps objects there; where it is small, in the temporary folder
_LONGEST_S = 24 * 3600.0
_REPEATABLE = "trainer.validation-split=seed"  # in a simulation nobody lies, and a seed is there to repeat a run


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended.

    Parameters
    ----------
    run_path : Path or None
        The run's folder; None: it is not on this machine.
    status : str
        Flower's word: "finished:completed", "finished:failed", "finished:stopped".
    seconds : float
        From submission to end.
    run_id : str
        Flower's.
    """

    run_path: Path | None
    status: str
    seconds: float
    run_id: str


def run_app(app: App, overrides: Sequence[str], *, run_path: Path, on_event: OnEvent) -> RunOutcome:
    """Run an app in Flower's simulation, for a day at most.

    Parameters
    ----------
    app : App
        From `read_app`.
    overrides : sequence of str
        ``key=value`` words.
    run_path : Path
        The run's folder; events and Flower's own logs are written there.
    on_event : callable
        Called with each event of the run as it is written, and with `Submitted`, `FolderSeen` and `FlowerStatus`.

    Raises
    ------
    SettingsError, UnsupportedError
        Settings are wrong, or the extra `simulation` is missing; nothing was started.
    RunFailed
        The run did not complete; the message holds the reason and where the log is. Or there is no shared memory.
    """
    if importlib.util.find_spec("ray") is None:
        raise UnsupportedError("a simulation needs the extra `simulation`: pip install 'mobillm-flower[simulation]'")
    if sys.platform == "linux" and not os.access(_SHARED_MEMORY, os.W_OK | os.X_OK):
        raise RunFailed(
            f"a simulation needs shared memory, and {_SHARED_MEMORY} is missing or cannot be written to; mount a tmpfs "
            "there, of any size"
        )
    overrides = [_REPEATABLE, *overrides]
    settings = app.settings(overrides)
    run = RunFolder(run_path).make()
    run.flower.mkdir(exist_ok=True)
    toml = run.flower / "run_config.toml"
    _write_toml(toml, app.run_config([*overrides, f"run.folder={run_path}"]))
    federation = _federation(settings)
    began = time.monotonic()
    with simulation_superlink(run.flower, run.flower_log) as (connection, superlink):
        run_id = connection.submit(app, toml, federation)
        on_event(Submitted(run=run_id))
        seen = RunFollower(run.events, run_id, on_event)
        try:
            status = watch(
                connection,
                run_id,
                seen,
                on_event=on_event,
                lost=lambda: "" if superlink.poll() is None else f"flower-superlink ended, code {superlink.returncode}",
                timeout_s=_LONGEST_S,
            )
        except RunFailed as error:
            raise RunFailed(f"{error}. The log is {run.flower_log}") from None
        if status != "finished:completed" or seen.outcome != "completed":
            reason = seen.reason or connection.last_error(run_id)
            raise RunFailed(f"{app.folder.name} ended as {status}: {reason}. The log is {run.flower_log}")
    return RunOutcome(run_path, status, time.monotonic() - began, run_id)


def _federation(settings: Settings) -> str:
    """Return Flower's configuration of the simulation: one device at a time, or as many as share a GPU."""
    cores, share = os.cpu_count() or 1, settings.backbone.gpu_share
    at_once = max(1, min(cores, int(1 / share))) if share else 1
    words = [
        f"num-supernodes={settings.data.num_devices}",
        f"client-resources-num-cpus={cores // at_once}",
        f"init-args-num-cpus={cores}",
    ]
    return " ".join(words + [f"client-resources-num-gpus={share}"] * bool(share))


def run_on(
    app: App, overrides: Sequence[str], *, superlink: str, on_event: OnEvent, home: Path | None = None
) -> RunOutcome:
    """Run an app on a SuperLink that is there, with the SuperNodes that are connected to it.

    Where the ServerApp runs on this machine, the run's events are followed; elsewhere its status alone is known.

    Parameters
    ----------
    app : App
        From `read_app`.
    overrides : sequence of str
        ``key=value`` words; run.folder is a folder of the machine where the ServerApp runs.
    superlink : str
        Name of a connection in Flower's `config.toml`.
    on_event : callable
        As with `run_app`.
    home : Path, optional
        The folder of `config.toml`; by default FLWR_HOME, or .flwr in the home folder.

    Raises
    ------
    SettingsError
        Settings are wrong, or there is no such connection; nothing was submitted.
    RunFailed
        The run did not complete, or is not known any more; the message holds the reason.
    """
    settings = app.settings(overrides)
    connection = named_connection(superlink, home)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        toml = Path(folder) / "run_config.toml"
        _write_toml(toml, app.run_config(overrides))
        run_id = connection.submit(app, toml)
    on_event(Submitted(run=run_id))
    run_path = run_folder(settings, run_id)
    seen = RunFollower(RunFolder(run_path).events, run_id, on_event)
    status = watch(connection, run_id, seen, on_event=on_event)
    if status != "finished:completed" or (seen.begun and seen.outcome != "completed"):
        reason = seen.reason or connection.last_error(run_id)
        raise RunFailed(
            f"{app.folder.name} ended as {status}: {reason}. The log is that of `flwr log {run_id} {superlink}`"
        )
    return RunOutcome(run_path if seen.begun else None, status, time.monotonic() - began, run_id)


def _write_toml(file: Path, words: Mapping[str, Any]) -> None:
    file.write_text("".join(f"{json.dumps(key)} = {json.dumps(value)}\n" for key, value in words.items()), "utf-8")
