"""What a device pays until a target is reached, as tables and a figure, from curves that were drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mobillm_flower.evaluation.compare.cost_to_target import COLUMNS, SHARE, Link, figure, partition_tables
from mobillm_flower.evaluation.compare.curves import Plan, TaskCurves
from mobillm_flower.reports.comparison import Plot, Report, Table


def cost_to_target(plan: Plan, curves: Mapping[str, TaskCurves], link: Link) -> Report:
    """Return the costs at the targets, from curves that were drawn.

    Figures: by task, `tables` by partition with `quality` (best metric by method) and `targets` (costs by method, means
    over the seeds; None where a seed does not reach it), and everything that they were made from.
    """
    by_task = {}
    for task, drawn in curves.items():
        tables = {name: partition_tables(methods, drawn, link) for name, methods in drawn.partitions.items()}
        by_task[task] = {"tables": tables, **drawn.to_dict()}
    settings = {**plan.to_dict(), "link": asdict(link), "share": SHARE}
    report = Report("cost-to-target", settings, figures={"tasks": by_task})
    for task, result in by_task.items():
        for partition, tables in result["tables"].items():
            report.tables += [_quality_table(f"{task}, {partition}", tables["quality"])]
            for target, row in tables["targets"].items():
                title = f"{task}, {partition}: what {row['metric']:.4f} ({target}) costs a device"
                report.tables.append(_cost_table(title, row["costs"]))
            report.plots.append(_plot(f"{task}, {partition}", result["partitions"][partition]))
    return report


def _quality_table(title: str, quality: Mapping[str, Any]) -> Table:
    rows = []
    for name, value in quality.items():
        spread = "" if value["spread"] is None else f" ± {value['spread']:.4f}"
        rows.append([name, f"{value['mean']:.4f}{spread}"])
    return Table(f"{title}: best metric", ["method", "mean ± standard deviation over seeds"], rows)


def _cost_table(title: str, costs: Mapping[str, Mapping[str, float | None] | None]) -> Table:
    rows = []
    for name, cost in costs.items():
        values = ["not reached"] + [""] * (len(COLUMNS) - 1) if cost is None else [figure(cost[key]) for key in COLUMNS]
        rows.append([name, *values])
    return Table(title, ["method", *COLUMNS.values()], rows)


def _plot(title: str, methods: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]) -> Plot:
    """Return metric against bytes, of the first seed."""
    points = []
    for name, seeds in methods.items():
        for point in seeds[0]:
            megabytes = (point["bytes_up"] + point["bytes_down"]) / 1e6
            points.append((megabytes, point["metric"], name if point is seeds[0][-1] else ""))
    return Plot(title, "MB of a device, both ways", "metric", points)
