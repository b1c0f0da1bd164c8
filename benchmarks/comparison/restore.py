"""Finished runs out of a results file, so that a comparison that gains a method does not repeat the others."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mobillm_flower.evaluation.compare.cells import CENTRAL_LORA, Cell, Point
from mobillm_flower.evaluation.compare.curves import PARTITION_FREE, Method, Plan
from mobillm_flower.evaluation.compare.task import IID, ComparedTask


def restore(result: Mapping[str, Any], plan: Plan) -> dict[str, list[str]]:
    """Put a file's runs where `plan` looks for them, and return by task the methods that were there.

    A method whose settings, trials or common settings differ from the file's is left out, and so run anew. Costs of a
    device's work are not taken over: they compare methods only when measured in turns.

    Parameters
    ----------
    result : mapping
        What `cost-to-target` wrote with ``--json``.
    plan : Plan
        What is to be compared.
    """
    before = result["settings"]
    if (dict(plan.common), plan.num_devices) != (before["common"], before["num_devices"]):
        return {}
    known = {method["name"]: method for method in before["methods"]}
    found: dict[str, list[str]] = {}
    for task in plan.tasks:
        curves = result["figures"]["tasks"].get(task.name)
        like = next((one for one in before["tasks"] if one["name"] == task.name), None)
        if curves is None or like is None or task.to_dict() != like:
            continue
        for method in plan.methods:
            if known.get(method.name) == asdict(method):
                _restore(method, task, plan, curves)
                found.setdefault(task.name, []).append(method.name)
    return found


def _restore(method: Method, task: ComparedTask, plan: Plan, curves: Mapping[str, Any]) -> None:
    common = {**plan.common, **method.settings_for(task)}

    def put(partition: str, seed: int, held_out: str, settings: Mapping[str, str], points: Sequence[Any]) -> None:
        words = {**common, **settings}
        cell = Cell(task, method.name, partition, seed, plan.num_devices, held_out, words)
        folder = cell.folder(plan.work)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "points.json").write_text(json.dumps({"cell": asdict(cell), "points": points}), "utf-8")

    if method.name == CENTRAL_LORA:
        runs = {IID: curves["central"]}
    else:
        runs = {name: methods[method.name] for name, methods in curves["partitions"].items() if method.name in methods}
    for partition, tried in curves["trials"][method.name].items():
        for trial in tried["trials"]:
            point = asdict(Point(trial["validation"], 0, 0.0))
            put(partition, plan.seeds[0], "validation", {**trial["settings"], **method.trial_settings}, [point])
    for partition, seeds in runs.items():
        chosen = curves["trials"][method.name]
        settings = chosen[partition if partition in chosen else next(iter(chosen))]["settings"]
        assert partition in chosen or method.name in PARTITION_FREE
        for seed, points in zip(plan.seeds, seeds, strict=False):
            put(partition, seed, "test", settings, points)
