"""Runs of two small tasks, one after another, on three devices of one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord

from mobillm_flower import SideTuningClient, load_settings, make_strategy
from tests.support.local_grid import LocalGrid
from tests.support.runs import tiny_config
from tests.support.tiny_models import WORDS

DEVICES = 3
TASKS = {"mood": ("bad", "good"), "topic": ("home", "work", "sport")}


def rows(task: str, start: int, end: int) -> list[dict[str, str]]:
    """Texts of which the first word tells the mood and the second one the topic."""
    labels = TASKS[task]
    place = 0 if task == "mood" else 1
    made = []
    for i in range(start, end):
        words = [WORDS[(7 * i + 3 * k + i // 20) % 20] for k in range(4)]
        words[place] = WORDS[(1, 7, 13)[i % len(labels)]]
        made.append({"text": " ".join(words), "label": labels[i % len(labels)]})
    return made


def config_of(folder: Path, backbone: Path, task: str, **changes: Any) -> dict[str, Any]:
    config = tiny_config(folder, backbone, data__label_column="label", **{"continual__task": task, **changes})
    config["task.labels"] = changes.get("task__labels") or ",".join(TASKS[task])
    for key, value in list(config.items()):
        if value is None:
            del config[key]
    return config


def run(
    folder: Path,
    backbone: Path,
    task: str,
    *,
    nodes: Sequence[int] = range(DEVICES),
    train: Callable[[str, int], list[dict[str, str]]] | None = None,
    **changes: Any,
) -> Any:
    """Run one task on some of the devices; `train` gives the rows of a device that learns from others."""
    config = config_of(folder, backbone, task, **changes)

    def load(context: Any) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
        number = int(str(context.node_config["partition-id"]))
        learned = train(task, number) if train else rows(task, 100 * number, 100 * number + 24)
        return learned, rows(task, 100 * number + 50, 100 * number + 60)

    configs = [{"partition-id": i, "num-partitions": DEVICES} for i in nodes]
    strategy = make_strategy(load_settings(config))
    strategy.poll_s = 0.0
    strategy.start(LocalGrid(SideTuningClient(load).app, configs, config), ArrayRecord())
    return strategy


SOLVED: dict[str, Any] = {"side_network__bottleneck": None}
STEPS: dict[str, Any] = {"trainer__epochs": 60, "trainer__weight_decay": 0.01, "trainer__batch_size": 8}
