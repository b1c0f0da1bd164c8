"""A SuperLink with SuperNodes on this machine: real processes on ports of their own, ended by process id."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
APP = ROOT / "examples" / "quickstart"
_ASK_S = 8.0  # one of Flower's commands takes seconds of a core, which the devices need


class Deployment:
    """A SuperLink on a database in a folder, its SuperNodes, and the commands that submit runs to it.

    `devices` maps the name of a SuperNode to its node config; each has a device folder of that name. With `tls` all
    messages are encrypted, under a certificate of its own authority.
    """

    def __init__(self, folder: Path, devices: dict[str, str], *, tls: bool = False) -> None:
        self.folder, self.devices = folder, devices
        self._trusted = make_certificates(folder) if tls else None
        trust = f'root-certificates = "{folder / "ca.crt"}"' if tls else "insecure = true"
        self.port, self._control = free_port(), free_port()
        self._ports = {name: free_port() for name in devices}
        self._running: dict[str, psutil.Popen] = {}
        self._answered = 0.0
        (folder / "flwr").mkdir()
        (folder / "flwr" / "config.toml").write_text(
            f'[superlink.fleet]\naddress = "127.0.0.1:{self.port}"\n{trust}\n', "utf-8"
        )
        self.environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "FLWR_HOME": str(folder / "flwr"),
            "MOBILLM_HOME": str(folder / "mobillm"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }

    def start_superlink(self) -> None:
        """Start it, the second time on the database of the first, and wait until it answers."""
        keys = "--ssl-ca-certfile ca.crt --ssl-certfile server.crt --ssl-keyfile server.key"
        command = f"flower-superlink {keys if self._trusted else '--insecure'} --database state.db "
        command += f"--host 127.0.0.1 --port {self.port} "
        command += f"--control-api-address 127.0.0.1:{self._control} --disable-runtime-dependency-installation"
        self._start("superlink", command.split())
        address = f"http{'s' if self._trusted else ''}://127.0.0.1:{self.port}/health"
        wait_for(lambda: healthy(address, self._trusted), "the SuperLink answers")

    def start_device(self, name: str) -> None:
        """Start a SuperNode, the second time as a new node on the same device folder."""
        config = f"{self.devices[name]} device-folder='{self.folder / name}'"
        if (self.folder / "backbone").exists():  # a device of its own loads no folder that only the run names
            config += f" backbone.name='{self.folder / 'backbone'}'"
        trust = f"--root-certificates {self.folder / 'ca.crt'}" if self._trusted else "--insecure"
        command = f"flower-supernode {trust} --superlink 127.0.0.1:{self.port} --port {self._ports[name]}"
        self._start(name, [*command.split(), "--node-config", config])

    def kill(self, name: str) -> None:
        """Kill a process and what it started, without a chance to say goodbye."""
        kill_family(self._running.pop(name))

    def kill_server_app(self) -> None:
        """Kill the process in which the strategy runs, and leave the SuperLink alone."""
        children = self._running["superlink"].children(recursive=True)
        apps = [child for child in children if any("flwr-serverapp" in word for word in command_line(child))]
        assert apps, [command_line(child) for child in children]
        for app in apps:
            app.send_signal(signal.SIGKILL)

    def submit(self, run_path: Path, *settings: str) -> str:
        """Submit the quickstart with a run folder; returns the run's id."""
        words = " ".join([*settings, f"run.folder={run_path}"])
        answer = self.flwr("run", str(APP), "fleet", "--format", "json", "-c", f'settings="{words}"')
        return str(answer["run-id"])

    def status(self, run_id: str) -> str:
        """Flower's word on a run."""
        return str(self.flwr("list", "fleet", "--run-id", run_id, "--format", "json")["runs"][0]["status"])

    def is_over(self, run_id: str) -> bool:
        """Whether Flower says that a run is over; it is not asked again soon."""
        if time.monotonic() - self._answered < _ASK_S:
            return False
        over = self.status(run_id).startswith("finished")
        self._answered = time.monotonic()
        return over

    def flwr(self, *words: str) -> dict[str, Any]:
        """Run one of Flower's commands that answer in JSON."""
        answer = subprocess.run(
            ["flwr", *words], cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return dict(json.loads(answer.stdout[answer.stdout.index("{") :]))

    def end(self) -> None:
        """End everything that was started here."""
        for name in reversed(list(self._running)):
            self.kill(name)

    def _start(self, name: str, command: list[str]) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._running[name] = psutil.Popen(
                command, cwd=self.folder, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )


def make_certificates(folder: Path) -> ssl.SSLContext:
    """Write ca.crt, server.crt and server.key for this machine, with openssl; returns what trusts them."""
    for command in (
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.crt",
        "req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout server.key -out server.csr",
        "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile names -out server.crt",
    ):
        (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1", "utf-8")
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)
    return ssl.create_default_context(cafile=str(folder / "ca.crt"))


def events(run_path: Path, kind: str) -> list[dict[str, Any]]:
    """Events of a kind in a run's folder, none where it has not begun."""
    file = run_path / "events.jsonl"
    lines = file.read_text("utf-8").split("\n")[:-1] if file.exists() else []
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def wait_for(until: Callable[[], object], what: str, *, seconds: float = 600) -> None:
    """Ask again and again; fails the test where it takes too long."""
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain until {what}"
        time.sleep(0.2)


def healthy(address: str, trusted: ssl.SSLContext | None = None) -> bool:
    """Whether a server answers at an address."""
    with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=2, context=trusted) as answer:
        return bool(answer.status == 200)
    return False


def command_line(process: psutil.Process) -> list[str]:
    """What a process was started with; nothing where it is gone, or dead and not waited for."""
    try:
        return list(process.cmdline())
    except psutil.NoSuchProcess:
        return []


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def kill_family(parent: psutil.Popen) -> None:
    """Kill a process and its children, by process id."""
    family: list[psutil.Process] = [parent]
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [*parent.children(recursive=True), parent]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family, timeout=30)
