"""Runs in a process of their own that kills itself, without a chance to clean up, at a chosen point.

The process is forked from one that has imported everything but run nothing, so that a kill costs no import.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord

from mobillm_flower import SideTuningClient, load_settings, make_strategy
from mobillm_flower.clients import side_tuning
from mobillm_flower.runs.folder import RunFolder
from tests.support.local_grid import LocalGrid

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload([__name__])


def run_killed(config: dict[str, Any], nodes: list[dict[str, Any]], at: str, count: int) -> None:
    """Run strategy and devices in another process, which kills itself when `at` comes for the `count`-th time.

    `at` is the kind of an event of the log, just before it is written; "answer": a device has made a window and written
    its ledger, and has sent nothing; or "fsync": a checkpoint's draft is written but not in its place (odd counts), or
    in its place (even ones).
    """
    process = _PROCESSES.Process(target=_run, args=(config, nodes, at, count))
    process.start()
    process.join(240)
    assert process.exitcode == -signal.SIGKILL, process.exitcode


def _run(config: dict[str, Any], nodes: list[dict[str, Any]], at: str, count: int) -> None:
    left = count

    def kill_at(point: str) -> None:
        nonlocal left
        if point == at:
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    _before(RunFolder, "append", lambda _folder, event: kill_at(event.kind))
    _before(os, "fsync", lambda _file: kill_at("fsync"))
    _before(side_tuning, "pack_window", lambda *_, **__: kill_at("answer"))
    run(config, nodes)


def run(config: dict[str, Any], nodes: list[dict[str, Any]]) -> Any:
    """Run to the end in this process; returns strategy and grid."""
    grid = LocalGrid(SideTuningClient().app, nodes, config, order_seed=2)
    strategy = make_strategy(load_settings(config))
    strategy.poll_s = 0.0
    strategy.start(grid, ArrayRecord())
    return strategy, grid


def partial_files(folder: Path) -> list[str]:
    """Names of drafts that were left behind."""
    return sorted(file.name for file in folder.rglob(".*.draft"))


def _before(owner: Any, name: str, look: Callable[..., None]) -> None:
    honest = getattr(owner, name)

    def looked(*arguments: Any, **keywords: Any) -> Any:
        look(*arguments, **keywords)
        return honest(*arguments, **keywords)

    setattr(owner, name, looked)
