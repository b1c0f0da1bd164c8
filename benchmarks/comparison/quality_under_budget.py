"""The best that each method reaches within so many bytes, or so much computing, of a device (after EdgeFlowerTune)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Any

from mobillm_flower.evaluation.compare.cells import SIDE_TUNING, Point
from mobillm_flower.evaluation.compare.curves import Plan, TaskCurves
from mobillm_flower.reports.comparison import Report, Table

MEGABYTES = (1, 10, 100)
"""Budgets of a device, both ways together."""
FORWARD_PASSES = (1, 3, 10)
"""Budgets of computing: multiples of the operations of one forward pass over a device's samples, seed by seed."""


def quality_under_budget(plan: Plan, curves: Mapping[str, TaskCurves]) -> Report:
    """Return each method's best metric within the budgets, means over the seeds, from curves that were drawn.

    Figures: by task and partition, `megabytes` and `forward_passes`, each by budget and method; None where a seed has
    nothing within the budget.
    """
    by_task: dict[str, Any] = {}
    for task, drawn in curves.items():
        by_task[task] = {"tables": {name: _tables(methods) for name, methods in drawn.partitions.items()}}
    settings = {**plan.to_dict(), "megabytes": MEGABYTES, "forward_passes": FORWARD_PASSES}
    report = Report("quality-under-budget", settings, figures={"tasks": by_task})
    for task, result in by_task.items():
        for partition, tables in result["tables"].items():
            names = list(tables["megabytes"][MEGABYTES[0]])
            columns = [f"{size} MB" for size in MEGABYTES] + [f"{times} × forward" for times in FORWARD_PASSES]
            budgets = [*tables["megabytes"].values(), *tables["forward_passes"].values()]
            rows = [[name, *(_text(budget[name]) for budget in budgets)] for name in names]
            report.tables.append(Table(f"{task}, {partition}: best metric within", ["method", *columns], rows))
    return report


def _text(value: float | None) -> str:
    return "nothing" if value is None else f"{value:.4f}"


def _tables(methods: Mapping[str, Sequence[Sequence[Point]]]) -> dict[str, Any]:
    forward = next([points[0].flops for points in seeds] for name, seeds in methods.items() if name in SIDE_TUNING)

    def best(spent: Callable[[Point], float], budgets: Sequence[float]) -> dict[str, float | None]:
        """Return the means of what each seed reaches within its budget."""
        values = {
            name: [
                max((p.metric for p in points if spent(p) <= budget), default=None)
                for points, budget in zip(seeds, budgets, strict=True)
            ]
            for name, seeds in methods.items()
        }
        return {
            name: None if None in metrics else mean(metric for metric in metrics if metric is not None)
            for name, metrics in values.items()
        }

    both_ways = {
        size: best(lambda point: point.bytes_up + point.bytes_down, [1e6 * size] * len(forward)) for size in MEGABYTES
    }
    passes = {
        times: best(lambda point: point.flops, [1.001 * one * times for one in forward]) for times in FORWARD_PASSES
    }
    return {"megabytes": both_ways, "forward_passes": passes}
