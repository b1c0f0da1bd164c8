"""Whole runs on a tiny random backbone, in this process: a run folder as `mobillm run` leaves it, in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord

from mobillm_flower import SideTuningClient, load_settings, make_strategy
from tests.support.local_grid import LocalGrid
from tests.support.tiny_models import save_tiny

NUM_DEVICES, NUM_SAMPLES = 3, 20


def tiny_config(folder: Path, backbone: Path, **changes: Any) -> dict[str, Any]:
    """A run config of three devices with 20 phone messages each; `data__max_samples=5` changes a setting."""
    return {
        "backbone.name": str(backbone),
        "backbone.device": "cpu",
        "data.label-column": "intent",
        "data.max-samples": NUM_SAMPLES,
        "task.max-length": 16,
        "side-network.bottleneck": 4,
        "trainer.epochs": 2,
        "trainer.overlap-steps": 2,
        "trainer.num-threads": 1,
        "trainer.validation-split": "seed",
        "rounds.window": 12,
        "run.folder": str(folder),
        **{key.replace("__", ".").replace("_", "-"): value for key, value in changes.items()},
    }


def run(config: dict[str, Any], *, app: Any = None, **grid_options: Any) -> Any:
    """Run to the end, devices and all, of this ClientApp or the usual one; returns the strategy."""
    nodes = [{"partition-id": i, "num-partitions": NUM_DEVICES} for i in range(NUM_DEVICES)]
    strategy = make_strategy(load_settings(config))
    strategy.poll_s = 0.0
    strategy.start(LocalGrid(app or SideTuningClient().app, nodes, config, **grid_options), ArrayRecord())
    return strategy


def tiny_run(parent: Path, *, family: str = "bert", **changes: Any) -> Path:
    """Save a tiny backbone and run on it; returns the run's folder."""
    backbone = save_tiny(parent / "backbone", family)
    config = tiny_config(parent / "run", backbone, **changes)
    run(config)
    return parent / "run"
