"""Side-tuning and its peers on the same tasks, partitions and seeds: settings chosen on validation rows, then curves.

A curve is a run's points: its metric after so much work of a device. The protocols read their figures from curves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mobillm_flower.config import load_settings
from mobillm_flower.evaluation.compare.cells import CENTRAL_LORA, SIDE_TUNING, Cell, Point
from mobillm_flower.evaluation.compare.costs import DeviceCost, device_costs
from mobillm_flower.evaluation.compare.task import IID, ComparedTask
from mobillm_flower.evaluation.references import majority
from mobillm_flower.tasks import load_central_data

MORE_TRIALS = 3
"""Trials that a method may have beyond its own, so that the best is not at the edge of what was tried."""
PARTITION_FREE = (*SIDE_TUNING, "upload-all")
"""Methods that train in one place on what all devices sent, so that one partition's trials serve for all."""


@dataclass(frozen=True)
class Method:
    """A method of the comparison.

    Parameters
    ----------
    name : str
        A strategy, or `central-lora`.
    settings : mapping
        Its own, the same in every trial.
    trials : sequence of mapping
        Settings of which one is chosen on validation rows; every method has as many. Several have one setting each, a
        number, ascending: where the best is the first, half of it is tried too, and where it is the last, twice of it
        (`MORE_TRIALS`); not twice where trials are shorter than runs, since these favour rates that are too large.
    trial_settings : mapping
        What differs in a trial: fewer rounds.
    of_pairs : mapping
        What its settings add where samples are pairs of texts.
    """

    name: str
    settings: Mapping[str, str]
    trials: Sequence[Mapping[str, str]]
    trial_settings: Mapping[str, str]
    of_pairs: Mapping[str, str] = field(default_factory=dict)

    def settings_for(self, task: ComparedTask) -> dict[str, str]:
        """Return its settings on a task."""
        return {**self.settings, **(self.of_pairs if task.has_pairs else {})}


@dataclass(frozen=True)
class Plan:
    """What is compared, and where it is kept.

    Parameters
    ----------
    tasks, methods : sequence
        What is compared, on what.
    seeds, partitions : sequence
        Seeds, and partitions by name: "iid", "natural", "alpha=0.1".
    num_devices : int
        Devices of the fleet.
    common : mapping
        Settings of all runs.
    turns : int
        Repetitions of what a device's work costs.
    work : Path
        Where finished runs are kept.
    """

    tasks: Sequence[ComparedTask]
    methods: Sequence[Method]
    seeds: Sequence[int]
    partitions: Sequence[str]
    num_devices: int
    common: Mapping[str, str]
    turns: int
    work: Path

    def to_dict(self) -> dict[str, Any]:
        """Return what shapes the results, as plain values."""
        return {
            "tasks": [task.to_dict() for task in self.tasks],
            "methods": [asdict(method) for method in self.methods],
            "seeds": list(self.seeds),
            "partitions": list(self.partitions),
            "num_devices": self.num_devices,
            "common": dict(self.common),
            "turns": self.turns,
        }


@dataclass(frozen=True)
class TaskCurves:
    """What came out on one task.

    Parameters
    ----------
    trials : mapping
        By method and partition its trials with their metric on validation rows, and the settings that were chosen; of a
        method in `PARTITION_FREE` one partition's.
    central : sequence
        Curves of LoRA in one place, one a seed.
    partitions : mapping
        By partition ("iid", "alpha=0.1") and method, curves, one a seed.
    costs : mapping
        What a method's work costs a device.
    majority : float or None
        The test metric of the most frequent label, or of the mean; None: of language modelling there is none.
    metric : str
        Its name.
    of_numbers : bool
        Whether the task is a regression.
    """

    trials: Mapping[str, Any]
    central: Sequence[Sequence[Point]]
    partitions: Mapping[str, Mapping[str, Sequence[Sequence[Point]]]]
    costs: Mapping[str, DeviceCost]
    majority: float | None
    metric: str = ""
    of_numbers: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


def draw_curves(plan: Plan, *, say: Callable[[str], None]) -> dict[str, TaskCurves]:
    """Run everything that is not yet there; returns the curves by task. `say` gets a line for each run."""
    return {task.name: _task_curves(task, plan, say) for task in plan.tasks}


def _task_curves(task: ComparedTask, plan: Plan, say: Callable[[str], None]) -> TaskCurves:
    def curve(method: Method, partition: str, seed: int, settings: Mapping[str, str], held: str) -> list[Point]:
        words = {**plan.common, **method.settings_for(task), **settings}
        cell = Cell(task, method.name, partition, seed, plan.num_devices, held, words)
        points = cell.run(plan.work)
        say(f"{cell.title}: best {max(point.metric for point in points):.4f}")
        return points

    def choose(method: Method, partition: str) -> Mapping[str, str]:
        """Return the settings of the best trial on validation rows, and remember all trials."""

        def tried(trial: Mapping[str, str]) -> dict[str, Any]:
            points = curve(method, partition, plan.seeds[0], {**trial, **method.trial_settings}, "validation")
            return {"settings": dict(trial), "validation": max(point.metric for point in points)}

        best: Mapping[str, str] = dict(method.trials[0])
        result = [tried(trial) for trial in method.trials] if len(method.trials) > 1 else []
        if result:
            while (beyond := _beyond(result, upwards=not method.trial_settings)) and len(result) < len(
                method.trials
            ) + MORE_TRIALS:
                result.append(tried(beyond))
            best = _best(result)["settings"]
        trials.setdefault(method.name, {})[partition] = {"settings": best, "trials": result}
        return best

    trials: dict[str, Any] = {}
    partitions: dict[str, dict[str, list[list[Point]]]] = {}
    central: list[list[Point]] = []
    cells: dict[str, Cell] = {}
    for method in plan.methods:
        if method.name == CENTRAL_LORA:
            chosen = choose(method, IID)
            central = [curve(method, IID, seed, chosen, "test") for seed in plan.seeds]
            continue
        once = choose(method, plan.partitions[0]) if method.name in PARTITION_FREE else None
        for partition in plan.partitions:
            chosen = once or choose(method, partition)
            curves = [curve(method, partition, seed, chosen, "test") for seed in plan.seeds]
            partitions.setdefault(partition, {})[method.name] = curves
            words = {**plan.common, **method.settings_for(task), **chosen}
            cells.setdefault(method.name, Cell(task, method.name, IID, plan.seeds[0], plan.num_devices, "test", words))
    say(f"{task.name}: what a device's work costs")
    costs = device_costs(cells, plan.work, turns=plan.turns)
    any_cell = next(iter(cells.values()))
    data = load_central_data(load_settings(overrides=any_cell.words(plan.work)))
    least = None if data.contract.per_token else majority(data)
    return TaskCurves(
        trials, central, partitions, costs, least, data.contract.metric, of_numbers=data.contract.is_regression
    )


def _best(result: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    return max(result, key=lambda one: one["validation"])


def _beyond(result: Sequence[Mapping[str, Any]], *, upwards: bool) -> dict[str, str]:
    """Return the trial next to the best one where that is the least, or `upwards` the largest; else nothing."""
    ((name, value),) = _best(result)["settings"].items()
    values = [float(one["settings"][name]) for one in result]
    if float(value) == min(values):
        return {name: f"{float(value) / 2:g}"}
    return {name: f"{float(value) * 2:g}"} if upwards and float(value) == max(values) else {}
