"""Programs that stand in for Flower's: they answer as they are told to, and write down how they were called."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

_PROGRAM = """#!{python}
import http.server, json, os, sys, time
from pathlib import Path

home, name, words = Path(__file__).parent, Path(__file__).name, sys.argv[1:]
plan = json.loads((home / "plan.json").read_text("utf-8"))
calls = home / "calls.jsonl"
before = [json.loads(line) for line in calls.read_text("utf-8").splitlines()]
with calls.open("a", encoding="utf-8") as stream:
    stream.write(json.dumps({{"program": name, "words": words, "environment": dict(os.environ)}}) + "\\n")


class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments):
        pass


if name == "flower-superlink":
    if plan["superlink"] == "listens":
        port = int(words[words.index("--port") + 1])
        http.server.HTTPServer(("127.0.0.1", port), Healthy).serve_forever()
    time.sleep(600)
elif words[0] == "run":
    print("Building ...", json.dumps({{"success": True, "run-id": plan["run"]}}))
elif words[0] == "list":
    asked = sum(call["words"][:1] == ["list"] for call in before)
    status = plan["statuses"][min(asked, len(plan["statuses"]) - 1)]
    if status == "hangs":
        time.sleep(600)
    print(json.dumps({{"runs": [{{"run-id": plan["run"], "status": status}}]}}))
elif words[0] == "log":
    print(plan["log"])
"""


class FakeFlower:
    """The programs `flwr` and `flower-superlink` beside a Python that is not there.

    Every one of them returns 0, as `flwr run` does.
    """

    run = "4711"

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self._folder = folder / "bin"
        self._folder.mkdir()
        (self._folder / "calls.jsonl").touch()
        for name in ("flwr", "flower-superlink"):
            program = self._folder / name
            program.write_text(_PROGRAM.format(python=sys.executable), "utf-8")
            program.chmod(0o755)
        self.home = folder / "flwr"
        self.home.mkdir()
        (self.home / "config.toml").write_text(
            '[superlink.fleet]\naddress = "127.0.0.1:1"\ninsecure = true\n\n[superlink.local]\naddress = ":local:"\n\n'
            "[superlink.old]\noptions.num-supernodes = 10\n",
            "utf-8",
        )
        python = self._folder / "python"  # the programs beside it are found, and it runs
        python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n', "utf-8")
        python.chmod(0o755)
        patch.setattr(sys, "executable", str(python))
        self.answers()

    def answers(self, *statuses: str, superlink: str = "listens", log: str = "") -> None:
        """Set what `flwr list` says, one status after another, the last for ever; whether the SuperLink listens."""
        plan = {"run": self.run, "statuses": statuses or ["pending"], "superlink": superlink, "log": log}
        (self._folder / "plan.json").write_text(json.dumps(plan), "utf-8")

    def calls(self, program: str, *words: str) -> list[dict[str, Any]]:
        """Return how a program was called with these first words: "words", "environment"."""
        lines = (self._folder / "calls.jsonl").read_text("utf-8").splitlines()
        return [
            call
            for call in map(json.loads, lines)
            if call["program"] == program and call["words"][: len(words)] == list(words)
        ]
