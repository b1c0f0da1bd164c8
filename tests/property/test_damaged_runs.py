"""A run's folder whose files are damaged: every command reads it, or ends with an error of this package."""

from __future__ import annotations

import contextlib
import gc
import json
import shutil
import tempfile
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobillm_flower.errors import MobiLLMError, RunFailed
from mobillm_flower.runs import device_events
from mobillm_flower.runs.record import read_run
from tests.support.cli import mobillm
from tests.support.damage import damaged
from tests.support.run_folders import make_references
from tests.support.runs import NUM_DEVICES, run, tiny_config, tiny_run

READERS: dict[str, list[list[str]]] = {
    "settings.yaml": [["settings", "--run"], ["report"], ["status"], ["cache", "ls"], ["predict", "--text=a cat"]],
    "events.jsonl": [["status"], ["status", "--json"], ["report"], ["cache", "ls"]],
    "results.json": [["report"]],
    "audit.json": [["report"]],
    "cache.sqlite": [["cache", "ls"], ["cache", "verify"], ["cache", "forget", "0"]],
    "side_network/config.json": [["predict", "--text=a cat"], ["report"]],
    "side_network/model.safetensors": [["predict", "--text=a cat"]],
}
"""Commands that read a file of a run."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder as it was left; with results and an audit."""
    path = tiny_run(tmp_path_factory.mktemp("whole"))
    (path / "results.json").write_text(json.dumps({"references": make_references()}), "utf-8")
    cell = {"attack": "label", "figure": 0.5, "chance": 0.3, "guess": "a majority"}
    (path / "audit.json").write_text(json.dumps({"run": str(path), "cells": [cell]}), "utf-8")
    gc.collect()  # the devices' ledgers are closed
    return path


@pytest.mark.parametrize("name", list(READERS))
@given(draw=st.randoms(use_true_random=False))
@settings(max_examples=6, deadline=None)
def test_commands_read_what_is_damaged_or_refuse_it(whole: Path, name: str, draw: Random) -> None:
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(shutil.copytree(whole, Path(parent, "run")))
        (folder / name).write_bytes(damaged(name, (folder / name).read_bytes(), draw))
        for command, *options in READERS[name]:
            inner = options[:1] if command == "cache" else []
            with contextlib.suppress(MobiLLMError):  # any other exception is raised
                mobillm(
                    command, *inner, *_last(folder, options[len(inner) :]), *(["--yes"] if "forget" in inner else [])
                )


def _last(folder: Path, options: list[str]) -> list[str]:
    return [*options, str(folder)] if options == ["--run"] else [str(folder), *options]


@pytest.mark.parametrize(
    "name", ["cache.sqlite", "events.jsonl", "checkpoint/trainer.pt", "devices/partition-1/ledger.sqlite"]
)
@given(draw=st.randoms(use_true_random=False))
@settings(max_examples=2, deadline=None)
def test_a_run_goes_on_from_what_is_damaged_or_refuses_it(whole: Path, name: str, draw: Random) -> None:
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(shutil.copytree(whole, Path(parent, "run")))
        (folder / name).write_bytes(damaged(name, (folder / name).read_bytes(), draw))
        with contextlib.suppress(MobiLLMError):
            run(_config(whole, folder))
        with contextlib.suppress(MobiLLMError):
            assert not [reason for reason in _reasons(folder) if "unexpected" in reason]


def test_a_device_whose_ledger_cannot_be_read_is_refused_with_its_reason(whole: Path, tmp_path: Path) -> None:
    """Also where its first page is whole."""
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    for number in range(NUM_DEVICES):
        file = folder / f"devices/partition-{number}/ledger.sqlite"
        content = file.read_bytes()
        file.write_bytes(content[:4096] + bytes([255]) * (len(content) - 4096))
    with pytest.raises(
        RunFailed, match=r"all 3 refused; .*the device folder's ledger cannot be read \(DatabaseError\)"
    ):
        run(_config(whole, folder))


def _config(whole: Path, folder: Path) -> dict[str, Any]:
    return tiny_config(folder, whole.parent / "backbone", data__num_devices=NUM_DEVICES)


def _reasons(folder: Path) -> list[str]:
    kinds = (device_events.Failure, device_events.NodeRefused, device_events.Dropped)
    return [event.reason for event in read_run(folder).session.events if isinstance(event, kinds)]
