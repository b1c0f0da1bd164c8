"""A comparison in one table, with a sentence that recommends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from statistics import mean
from typing import Any

from mobillm_flower.evaluation.compare.cells import CENTRAL_LORA, SIDE_TUNING, larger_is_better
from mobillm_flower.evaluation.compare.cost_to_target import ALL, COLUMNS, Link, figure, partition_tables
from mobillm_flower.evaluation.compare.curves import Plan, TaskCurves
from mobillm_flower.evaluation.plan import Forecast, even_bytes
from mobillm_flower.reports.comparison import Plot, Report, Table

_ALIKE = 0.01
"""Metrics that are nearer than this, or than their spreads, are called alike."""
_CHEAPER = {"wall_seconds": "modelled time", "peak_mb": "memory", "gflops": "computing", "mb_both": "bytes"}


def summary(plan: Plan, drawn: TaskCurves, link: Link, forecast: Forecast | str, *, quick: bool) -> Report:
    """Return a comparison on one task and partition as a report.

    Parameters
    ----------
    plan : Plan
        What was compared.
    drawn : TaskCurves
        What came out.
    link : Link
        The modelled link.
    forecast : Forecast or str
        Where bytes break even; or why that is not known.
    quick : bool
        Whether it was a quick look.

    Returns
    -------
    Report
        `figures`: `quality` and `costs` by method, `target`, `break_even`, `recommended`, `sentence`, all curves.
    """
    (task,) = plan.tasks
    ((partition, methods),) = drawn.partitions.items()
    tables = partition_tables(methods, drawn, link)
    target, quality = tables["targets"][ALL], dict(tables["quality"])
    if drawn.central:
        best = [max(point.metric for point in points) for points in drawn.central]
        quality[CENTRAL_LORA] = {"mean": mean(best), "spread": None}
    recommended, sentence = recommend(quality, target["costs"], metric=drawn.metric)
    if quick:
        sentence += " A quick look: one seed and few rows; leave out --quick before you decide."
    even = forecast if isinstance(forecast, str) else even_bytes(forecast, "LoRA by FedAvg (predicted)")
    figures = {
        "quality": quality,
        "target": target["metric"],
        "costs": target["costs"],
        "break_even": even if isinstance(forecast, str) else {"sentence": even, **forecast.to_dict()},
        "recommended": recommended,
        "sentence": sentence,
        **drawn.to_dict(),
    }
    report = Report("compare", {**plan.to_dict(), "link": asdict(link), "quick": quick}, figures=figures)
    title = (
        f"{task.name}, {partition}, {plan.num_devices} devices: {drawn.metric}, and what a device pays until "
        f"{larger_is_better(drawn.metric, target['metric']):.4f}, which all reach"
    )
    rows = [[name, _quality(quality[name], drawn.metric), *_costs(target["costs"].get(name))] for name in quality]
    report.tables.append(Table(title, ["method", f"best {drawn.metric}", *COLUMNS.values()], rows))
    points = [
        (
            (one.bytes_up + one.bytes_down) / 1e6,
            larger_is_better(drawn.metric, one.metric),
            name if one is seeds[0][-1] else "",
        )
        for name, seeds in methods.items()
        for one in seeds[0]
    ]
    report.plots.append(Plot(title, "MB of a device, both ways", drawn.metric, points))
    report.notes += [sentence, even]
    return report


def recommend(
    quality: Mapping[str, Mapping[str, Any]],
    costs: Mapping[str, Mapping[str, float | None] | None],
    *,
    metric: str = "",
) -> tuple[str, str]:
    """Return the method to take, and why: the better one; of two that are alike the one that costs a device less.

    Parameters
    ----------
    quality : mapping
        By method, `mean` and `spread` of the metric.
    costs : mapping
        By method, what a device pays until the metric that all reach.
    metric : str
        Its name.
    """
    ours = max((name for name in costs if name in SIDE_TUNING), key=lambda name: quality[name]["mean"], default="")
    others = [name for name in costs if name not in SIDE_TUNING and name != "upload-all"]
    other = max(others, key=lambda name: quality[name]["mean"], default="")
    if not ours or not other:
        alone = max(costs, key=lambda name: quality[name]["mean"])
        return alone, f"Recommended: {alone}, the best of what was compared; nothing else was of another kind."
    gap = quality[ours]["mean"] - quality[other]["mean"]
    alike = abs(gap) <= max(_ALIKE, *(quality[name]["spread"] or 0.0 for name in (ours, other)))
    cheaper, dearer = _cheaper(costs[ours], costs[other])
    if alike:
        taken, left = (ours, other) if len(cheaper) >= len(dearer) else (other, ours)
        why = f"as good as {left} ({_both(quality, taken, left, metric)})"
    else:
        taken, left = (ours, other) if gap > 0 else (other, ours)
        why = f"better than {left} ({_both(quality, taken, left, metric)})"
    less, more = (cheaper, dearer) if taken == ours else (dearer, cheaper)
    price = [f"less {' and '.join(less)}"] if less else []
    price += [f"more {' and '.join(more)}"] if more else []
    of_device = f"; a device needs {', but '.join(price)}" if price else ""
    return taken, f"Recommended: {taken}, {why}{of_device}."


def _cheaper(
    ours: Mapping[str, float | None] | None, other: Mapping[str, float | None] | None
) -> tuple[list[str], list[str]]:
    """Return what the first costs less of, and what more, by more than a tenth."""
    less, more = [], []
    for key, name in _CHEAPER.items():
        a, b = _cost(ours, key), _cost(other, key)
        if a is None or b is None:
            continue
        if 1.1 * a < b:
            less.append(name)
        elif a > 1.1 * b:
            more.append(name)
    return less, more


def _cost(costs: Mapping[str, float | None] | None, key: str) -> float | None:
    if costs is None:
        return None
    if key == "mb_both":
        return (costs["mb_up"] or 0.0) + (costs["mb_down"] or 0.0)
    return costs[key]


def _both(quality: Mapping[str, Mapping[str, Any]], first: str, second: str, metric: str) -> str:
    one, other = (larger_is_better(metric, quality[name]["mean"]) for name in (first, second))
    return f"{one:.4f} beside {other:.4f}"


def _quality(value: Mapping[str, Any], metric: str) -> str:
    spread = "" if value["spread"] is None else f" ± {value['spread']:.4f}"
    return f"{larger_is_better(metric, value['mean']):.4f}{spread}"


def _costs(costs: Mapping[str, float | None] | None) -> list[str]:
    return [""] * len(COLUMNS) if costs is None else [figure(costs[key]) for key in COLUMNS]
