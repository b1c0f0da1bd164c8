"""Flower's programs: their environment, a SuperLink of our own, the commands that talk to one.

`flwr run` returns 0 even when the run failed, starts a detached SuperLink and installs the app's dependencies. Here a
SuperLink is a child of this process on ports of its own, ends with it, and a run's status is asked for.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
import tomllib
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from mobillm_flower.errors import RunFailed, SettingsError
from mobillm_flower.launch.app import App
from mobillm_flower.launch.processes import started

_START_S = 120.0
_ANSWER_S = 120.0  # for one of Flower's commands
_SUBMIT_S = 600.0  # the same for `flwr run`, which builds the app and sends it
_NO_REASONS = ("Ending simulation", "Simulation Runtime crashed")  # what Flower says after the reason
_LOCAL = ":local"  # addresses of SuperLinks that `flwr run` starts in the background begin so


@dataclass(frozen=True)
class Connection:
    """A SuperLink as Flower's own commands reach it.

    Parameters
    ----------
    name : str
        Its name in `config.toml`.
    environment : mapping of str to str
        The commands' environment; FLWR_HOME says where `config.toml` is.
    """

    name: str
    environment: Mapping[str, str]

    def submit(self, app: App, run_config: Path, federation: str = "") -> str:
        """Hand an app in and return the run's id.

        Parameters
        ----------
        app : App
            From `read_app`.
        run_config : Path
            TOML file of what to override in the app's config.
        federation : str
            Flower's `--federation-config`, for a simulation.

        Raises
        ------
        RunFailed
            Flower did not accept it, with its reason; or did not answer.
        """
        words = ["run", str(app.folder), self.name, "--format", "json", "--run-config", str(run_config)]
        words += ["--federation-config", federation] if federation else []
        try:
            answer = self.flwr(*words, timeout_s=_SUBMIT_S)
        except subprocess.TimeoutExpired as error:
            raise RunFailed(
                f"flwr run did not answer for {_SUBMIT_S:g} s; whether it submitted {app.folder.name}, flwr list "
                f"{self.name} tells"
            ) from error
        parsed = _json(answer.stdout)
        if not parsed.get("success") or "run-id" not in parsed:
            reason = parsed.get("error-message") or (answer.stdout + answer.stderr).strip()[-600:]
            raise RunFailed(f"flwr run did not accept {app.folder.name}: {reason}")
        return str(parsed["run-id"])

    def status(self, run_id: str) -> str:
        """Return Flower's word for how a run stands, such as "finished:failed"; "unknown" where it does not say."""
        try:
            answer = self.flwr("list", self.name, "--run-id", run_id, "--format", "json", timeout_s=_ANSWER_S)
        except subprocess.TimeoutExpired:
            return "unknown"
        runs = _json(answer.stdout).get("runs") or [{}]
        return str(runs[0].get("status", "unknown"))

    def last_error(self, run_id: str) -> str:
        """Return the last line of the ServerApp's log that speaks of an error, as the SuperLink has it."""
        try:
            answer = self.flwr("log", run_id, self.name, "--show", timeout_s=_ANSWER_S)
        except subprocess.TimeoutExpired:
            return "nothing was logged"
        return last_error(answer.stdout)

    def flwr(self, *words: str, timeout_s: float = _ANSWER_S) -> subprocess.CompletedProcess[str]:
        """Run one of Flower's commands to its end; its exit code may not tell the truth."""
        return subprocess.run(
            [program("flwr", self.environment), *words],
            env=dict(self.environment),
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )


def flower_environment(home: Path | None = None) -> dict[str, str]:
    """Return this process's environment for Flower's programs: no telemetry, no installing, no progress bars.

    Parameters
    ----------
    home : Path, optional
        The folder of Flower's `config.toml`; by default the user's own.
    """
    binaries = Path(sys.executable).parent
    return {
        **os.environ,
        "PATH": f"{binaries}{os.pathsep}{os.environ.get('PATH', '')}",
        **({"FLWR_HOME": str(home)} if home else {}),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def named_connection(name: str, home: Path | None = None) -> Connection:
    """Return a connection of the user's `config.toml`.

    Parameters
    ----------
    name : str
        As it stands there, under [superlink].
    home : Path, optional
        The folder of `config.toml`; by default FLWR_HOME, or .flwr in the home folder.

    Raises
    ------
    SettingsError
        The file cannot be read, has no such connection, or that one is to a SuperLink that Flower starts itself: it is
        found by its port, whoever started it, and keeps the environment that it was started with.
    """
    home = (home or Path(os.environ.get("FLWR_HOME") or "~/.flwr")).expanduser().resolve()
    file = home / "config.toml"
    try:
        known = tomllib.loads(file.read_text("utf-8")).get("superlink", {})
    except (OSError, ValueError) as error:
        raise SettingsError(f"{file} cannot be read; Flower's connections stand there ({error})") from error
    names = sorted(key for key, value in known.items() if isinstance(value, dict))
    if name not in names:
        raise SettingsError(f"{file} has no [superlink.{name}]; it has {', '.join(names) or 'no connection'}")
    address = str(known[name].get("address", _LOCAL))
    if address.startswith(_LOCAL):
        raise SettingsError(
            f"[superlink.{name}] in {file} has the address {address!r}: a SuperLink that Flower starts in the "
            "background, or finds there; to simulate, leave --superlink out"
        )
    return Connection(name, flower_environment(home))


@contextlib.contextmanager
def simulation_superlink(home: Path, log: Path) -> Iterator[tuple[Connection, subprocess.Popen[bytes]]]:
    """Run a SuperLink of our own for Flower's simulation; yields how to reach it, and its process.

    Parameters
    ----------
    home, log : Path, Path
        Folder of Flower's own files, and the file of its log.
    """
    port, control = free_port(), free_port()
    environment = flower_environment(home)
    command = [program("flower-superlink", environment), "--insecure", "--simulation", "--isolation", "subprocess"]
    command += ["--control-api-address", f"127.0.0.1:{control}", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--database", str(home / "state.db"), "--disable-runtime-dependency-installation"]
    with started(command, environment, log) as process:
        wait_healthy(process, f"http://127.0.0.1:{port}", log)
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "run"\n\n[superlink.run]\naddress = "127.0.0.1:{port}"\ninsecure = true\n', "utf-8"
        )
        yield Connection("run", environment), process


def wait_healthy(
    process: subprocess.Popen[bytes], address: str, log: Path, *, trusted: ssl.SSLContext | None = None
) -> None:
    """Wait until a SuperLink answers, and see that it is the one that was started.

    Parameters
    ----------
    process : Popen
        The SuperLink; it, or a process that it started, listens at `address`.
    address : str
        Its address, with http:// or https://.
    log : Path
        Its log, for the reason where it ends.
    trusted : SSLContext, optional
        Whom to trust, for https.

    Raises
    ------
    RunFailed
        It ended, did not answer in time, or another program has its port and answers in its place.
    """
    port = urllib.parse.urlsplit(address).port or 443

    def healthy() -> bool:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"{address}/health", timeout=2, context=trusted) as answer,  # noqa: S310 - our own
        ):
            return bool(answer.status == 200)
        return False

    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            said = last_error(whole := log.read_text("utf-8", "replace"))
            if any(str(port) in line and "in use" in line for line in whole.splitlines()):
                raise RunFailed(
                    f"port {port} is taken: another program listens at it; end that program, or choose another port"
                )
            raise RunFailed(f"flower-superlink ended with code {process.returncode}: {said}. The log is {log}")
        if healthy():
            if _listens(process.pid, port):
                return
            raise RunFailed(
                f"a program that was not started here listens at {address} and answers in the place of "
                f"flower-superlink; end it, or choose another port. The log is {log}"
            )
        time.sleep(0.2)
    raise RunFailed(f"flower-superlink was not ready after {_START_S:g} s. The log is {log}")


def _listens(pid: int, port: int) -> bool:
    """Whether a process, or one that it started, has a listening socket on a port."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for member in [parent, *parent.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                sockets = member.net_connections("inet")
                if any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in sockets):
                    return True
    return False


def program(name: str, environment: Mapping[str, str]) -> str:
    """Return the path of one of Flower's programs; raises RunFailed where it is not installed."""
    path = shutil.which(name, path=environment["PATH"])
    if path is None:
        raise RunFailed(f"{name} is not installed beside {sys.executable}; pip install 'mobillm-flower[simulation]'")
    return path


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def last_error(log: str) -> str:
    """Return the last line of a log that gives the reason of an error."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    reasons = (line for line in lines if not any(words in line for words in _NO_REASONS))
    errors = [line for line in reasons if "rror" in line.replace("uvicorn.error", "")]  # a logger's name
    return (errors or lines or ["nothing was logged"])[-1][-400:]


def _json(text: str) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        parsed = json.loads(text[text.index("{") :])
        if isinstance(parsed, dict):
            return parsed
    return {}
