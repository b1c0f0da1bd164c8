from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mobillm_flower.config import load_settings
from mobillm_flower.launch.watch import RunFollower
from mobillm_flower.runs.device_events import Waiting
from mobillm_flower.runs.events import Evaluation, Event
from mobillm_flower.runs.folder import RunFolder
from mobillm_flower.runs.watching import Said
from mobillm_flower.strategies.lifecycle import running

GRID: Any = SimpleNamespace(run=SimpleNamespace(run_id=7))


def test_what_a_strategy_prints_and_logs_is_in_one_file_and_in_the_terminal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, events = RunFolder(tmp_path), list[Event]()
    folder.log.write_text("of the run before\n", "utf-8")
    seen = RunFollower(folder.events, "7", events.append)
    caplog.set_level(logging.INFO, "flwr")
    logging.getLogger("flwr").addHandler(caplog.handler)
    with running(load_settings({}), tmp_path, GRID, strategy="Own") as started:
        sys.stdout.write("mine \x1b[2J\n")
        logging.getLogger("flwr").warning("a node is missing")
        started.folder.append(Evaluation(1, 240, 20, {"accuracy": 0.75}))
    sys.stdout.write("after the run\n")
    logging.getLogger("flwr").removeHandler(caplog.handler)
    seen.read()
    said = [event.text for event in events if isinstance(event, Said)]
    assert said[:2] == ["mine \\x1b[2J", "WARNING: a node is missing"]
    assert said[-1] == f"INFO: {caplog.messages[-1]}"  # the last line is the metric, and where the report comes from
    assert caplog.messages[-1].startswith("accuracy 0.7500 on 240 test samples of 20 devices")
    assert f"mobillm report {tmp_path}" in caplog.messages[-1]
    assert len(said) == 3
    assert capsys.readouterr().out == "mine \x1b[2J\nafter the run\n"


def test_a_wait_says_how_many_are_there() -> None:
    assert Waiting(1, 2, 1, 0).reason == "1 of 2 devices connected, waiting"
    assert Waiting(1, 3, 3, 2).reason == "1 of 3 devices connected, 2 refused, waiting"
