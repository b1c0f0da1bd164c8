"""Whole runs of three devices in this process, with two layers of MiniLM."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord

from mobillm_flower import SideTunedModel, SideTuningClient, load_settings, make_strategy
from mobillm_flower.server import ActivationCache
from mobillm_flower.tasks import load_local_data
from tests.support.local_grid import LocalGrid

NODES = 3


def make_config(folder: Path, **changes: Any) -> dict[str, Any]:
    """Three devices, two layers of MiniLM, a few dozen messages each."""
    return {
        "preset": "pae",
        "backbone.layers": 2,
        "data.label-column": "intent",
        "data.max-samples": 30,
        "task.max-length": 32,
        "side-network.bottleneck": 8,
        "trainer.epochs": 2,
        "trainer.overlap-steps": 2,
        "trainer.num-threads": 1,
        "trainer.validation-split": "seed",
        "rounds.window": 12,
        "rounds.timeout-s": 30.0,
        "run.folder": str(folder),
        **{key.replace("__", ".").replace("_", "-"): value for key, value in changes.items()},
    }


def nodes(count: int = NODES, **extra: Any) -> list[dict[str, Any]]:
    return [{"partition-id": i, "num-partitions": count, **extra} for i in range(count)]


def run(
    config: dict[str, Any], node_configs: list[dict[str, Any]] | None = None, app: Any = None, **grid_options: Any
) -> Any:
    """Run to the end; returns strategy, result, grid and events."""
    grid = LocalGrid(app or SideTuningClient().app, node_configs or nodes(), config, **grid_options)
    strategy = make_strategy(load_settings(config))
    strategy.poll_s = 0.0
    result = strategy.start(grid, ArrayRecord())
    return strategy, result, grid, events_of(config)


def events_of(config: dict[str, Any]) -> list[dict[str, Any]]:
    lines = (Path(config["run.folder"]) / "events.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def cached(config: dict[str, Any]) -> ActivationCache:
    return ActivationCache(Path(config["run.folder"]) / "cache.sqlite")


def measured_again(config: dict[str, Any], devices: Sequence[int] = range(NODES)) -> float:
    """The metric of the saved side network over some devices' test samples."""
    settings = load_settings(config)
    model = SideTunedModel.from_pretrained(Path(config["run.folder"]) / "side_network")
    tests = [load_local_data(settings, partition, NODES).test for partition in devices]
    return sum(model.evaluate(test) * len(test) for test in tests) / sum(map(len, tests))
