"""A measured comparison replayed on fleets of a simulated clock: time to a target, bytes. All of it is modelled."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.comparison.fleet_clock import Outcome, Recorded, make_fleet, simulate
from benchmarks.comparison.fleet_profiles import World
from mobillm_flower.errors import DataError
from mobillm_flower.evaluation.compare.cells import SIDE_TUNING
from mobillm_flower.evaluation.compare.cost_to_target import BOTH
from mobillm_flower.reports.comparison import Plot, Report, Table

_BATCH = 16  # samples of a step of SplitFed: `peer.batch-size`


def read_curves(file: Path, task: str, partition: str) -> tuple[list[list[Recorded]], float]:
    """Read what was measured, of each method a run a seed, and the best that side-tuning and FedLoRA both reach.

    Parameters
    ----------
    file : Path
        What `python -m benchmarks cost-to-target --json` wrote.
    task, partition : str
        Which of its tasks and partitions; empty: the first.

    Raises
    ------
    DataError
        The file holds no such curves.
    """
    result = json.loads(file.read_text("utf-8"))
    if result.get("bench") != "cost-to-target":
        raise DataError(f"{file} is not what `python -m benchmarks cost-to-target --json` writes")
    tasks = result["figures"]["tasks"]
    task = task or next(iter(tasks))
    if task not in tasks:
        raise DataError(f"{file} has no task {task!r}; give one of {', '.join(tasks)}")
    partitions = tasks[task]["partitions"]
    partition = partition or next(iter(partitions))
    if partition not in partitions:
        raise DataError(f"{file} has no partition {partition!r} of {task}; give one of {', '.join(partitions)}")
    devices, costs = result["settings"]["num_devices"], tasks[task]["costs"]
    recorded = [
        [_recorded(name, curve, costs[name], devices) for curve in curves]
        for name, curves in partitions[partition].items()
        if costs[name]["seconds_a_sample"]
    ]
    return recorded, float(tasks[task]["tables"][partition]["targets"][BOTH]["metric"])


def _recorded(name: str, curve: Sequence[Mapping[str, Any]], cost: Mapping[str, Any], devices: int) -> Recorded:
    """Return a run of a method."""
    end = curve[-1]
    asynchronous = name in SIDE_TUNING  # its rounds are windows: all samples count as one
    rounds = 1 if asynchronous else end["rounds"]
    last = end["slowest_bytes"][-1][1]
    samples = end["samples"] / rounds
    return Recorded(
        name=name,
        metrics={1 if asynchronous else point["rounds"]: point["metric"] for point in curve},
        devices=devices,
        samples=samples,
        bytes_up=end["bytes_up"] / rounds,
        bytes_down=0.0 if asynchronous else (end["bytes_down"] - last) / rounds,
        last_down=last,
        seconds_a_sample=cost["seconds_a_sample"],
        peak_bytes=cost["peak_bytes"] or 0.0,
        server_seconds=end["server_seconds"] / rounds,
        messages=1 + math.ceil(samples / _BATCH) if name == "split-fed" else 1,
    )


def bench_fleet(
    file: Path,
    *,
    sizes: Sequence[int],
    world: World,
    seeds: Sequence[int],
    task: str = "",
    partition: str = "",
    target: float = 0.0,
    say: Callable[[str], None] = lambda _text: None,
) -> Report:
    """Simulate every method of a measured comparison on fleets.

    Parameters
    ----------
    file : Path
        What `python -m benchmarks cost-to-target --json` wrote.
    sizes : sequence of int
        Devices of the fleets.
    world : World
        What is modelled.
    seeds : sequence of int
        Of the fleets.
    task, partition : str
        Which of the file's; empty: the first.
    target : float
        Metric; 0: the best that side-tuning and FedLoRA both reach.

    Returns
    -------
    Report
        `figures["fleets"]`: by size and method, an outcome a seed; `["recorded"]`: what was replayed, the first
        measured run in the first seed's fleet and so on, from the first again where there are fewer.
    """
    recorded, both = read_curves(file, task, partition)
    target = target or both
    fleets: dict[str, dict[str, list[Outcome]]] = {}
    for size in sizes:
        row = fleets.setdefault(str(size), {runs[0].name: [] for runs in recorded})
        for runs in recorded:
            outcomes = row[runs[0].name]
            for i, seed in enumerate(seeds):
                run, devices = runs[i % len(runs)], make_fleet(size, world, seed)
                outcomes.append(simulate(run, devices, world, target=target, seed=seed))
            say(f"{size:,} devices, {runs[0].name}: {_time(outcomes)}")
    settings = {"curves": file.name, "target": target, "seeds": list(seeds), "world": asdict(world)}
    figures = {
        "modelled": True,
        "recorded": {runs[0].name: [asdict(one) for one in runs] for runs in recorded},
        "fleets": {
            size: {name: [asdict(one) for one in outcomes] for name, outcomes in row.items()}
            for size, row in fleets.items()
        },
    }
    report = Report("fleet", settings, figures=figures)
    columns = ["method", "time to target", "GB up", "GB down", "rounds", "answers used", "answers lost"]
    for fleet_size, row in fleets.items():
        title = f"{int(fleet_size):,} devices, target {target:.4f} (modelled)"
        rows = [_row(name, outcomes) for name, outcomes in row.items()]
        report.tables.append(Table(title, columns, rows))
    report.plots += [_plot(size, row) for size, row in fleets.items() if any(_reached(one) for one in row.values())]
    return report


def _reached(outcomes: Sequence[Outcome]) -> list[float]:
    """Return the seconds of all seeds, or nothing where one does not reach the target."""
    seconds = [outcome.seconds for outcome in outcomes if outcome.seconds is not None]
    return seconds if len(seconds) == len(outcomes) else []


def _row(name: str, outcomes: Sequence[Outcome]) -> list[str]:
    if not _reached(outcomes):
        return [name, "not reached", *[""] * 5]
    gigabytes = [mean(getattr(one, way) for one in outcomes) / 1e9 for way in ("bytes_up", "bytes_down")]
    counts = [mean(getattr(one, what) for one in outcomes) for what in ("rounds", "answers", "lost")]
    return [name, _time(outcomes), *(f"{value:,.3g}" for value in gigabytes), *(f"{value:,.0f}" for value in counts)]


def _time(outcomes: Sequence[Outcome]) -> str:
    seconds = _reached(outcomes)
    if not seconds:
        return "not reached"
    spread = f" ({_span(min(seconds))} to {_span(max(seconds))})" if len(seconds) > 1 else ""
    return _span(mean(seconds)) + spread


def _span(seconds: float) -> str:
    return (
        f"{seconds:,.0f} s"
        if seconds < 600
        else f"{seconds / 60:,.0f} min"
        if seconds < 36000
        else f"{seconds / 3600:,.1f} h"
    )


def _plot(size: str, row: Mapping[str, Sequence[Outcome]]) -> Plot:
    points = [
        (mean(_reached(outcomes)) / 60, mean(one.bytes_up + one.bytes_down for one in outcomes) / 1e9, name)
        for name, outcomes in row.items()
        if _reached(outcomes)
    ]
    return Plot(f"{int(size):,} devices (modelled)", "minutes to the target", "GB of the fleet", points)
