"""What a device pays until a target is reached: side-tuning beside its peers (after EdgeFlowerTune, 2605.08636).

Targets: a share of what LoRA reaches on all rows in one place, and the best that all methods, or these two, reach.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from mobillm_flower.evaluation.compare.cells import SIDE_TUNING, Point
from mobillm_flower.evaluation.compare.costs import DeviceCost
from mobillm_flower.evaluation.compare.curves import TaskCurves

SHARE = 0.95
"""Target: this share of the metric of LoRA on all rows in one place."""
ALL = "best that all reach"
BOTH = "best that side-tuning and fed-lora reach"
MAJORITY, MEAN = "majority class", "mean of the training values"
COLUMNS = {
    "passes": "passes",
    "gflops": "GFLOP",
    "seconds": "seconds",
    "peak_mb": "peak MB",
    "mb_up": "MB up",
    "mb_down": "MB down",
    "wall_seconds": "wall s (modelled)",
}
"""Costs of a device, by their names in tables."""


@dataclass(frozen=True)
class Link:
    """The modelled device and link of `wall_seconds`.

    Parameters
    ----------
    up_mbit, down_mbit : float
        Megabits a second.
    slowdown : float
        How many times as long as on the machine at hand a device computes.
    """

    up_mbit: float = 10.0
    down_mbit: float = 50.0
    slowdown: float = 1.0

    def seconds(self, up: float, down: float) -> float:
        """Return the seconds that so many bytes take, one way after the other."""
        return 8e-6 * (up / self.up_mbit + down / self.down_mbit)


def wall_seconds(point: Point, cost: DeviceCost, link: Link) -> float:
    """Return modelled seconds from the start to a point: rounds wait for their slowest device, the server adds its own.

    Measured: samples, bytes, seconds a sample, the server's seconds. Modelled: the link, the devices' slowdown, and
    that devices work side by side.
    """
    computing = link.slowdown * cost.seconds_a_sample * sum(point.slowest_samples)
    return computing + sum(link.seconds(up, down) for up, down in point.slowest_bytes) + point.server_seconds


def reached(points: Sequence[Point], target: float) -> Point | None:
    """Return the first point at or above a target, or None."""
    return next((point for point in points if point.metric >= target), None)


def figure(value: float | None) -> str:
    """Return a figure as it stands in tables."""
    return "–" if value is None else f"{value:,.3g}" if value < 100 else f"{value:,.0f}"


def partition_tables(methods: Mapping[str, Sequence[Sequence[Point]]], drawn: TaskCurves, link: Link) -> dict[str, Any]:
    """Return of one partition the best metric by method, and by target the costs of each."""
    best = {name: [max(point.metric for point in points) for points in seeds] for name, seeds in methods.items()}
    pair = [values for name, values in best.items() if name in (*SIDE_TUNING, "fed-lora")]
    targets = {ALL: min(min(values) for values in best.values()), BOTH: min(min(values) for values in pair)}
    if drawn.central:
        lora = mean(max(point.metric for point in points) for points in drawn.central)
        targets[f"{SHARE:.0%} of LoRA in one place"] = SHARE * lora
    rows = {}
    for target, value in targets.items():
        costs: dict[str, dict[str, float | None] | None] = {}
        for name, seeds in methods.items():
            points = [point for point in (reached(seed, value) for seed in seeds) if point is not None]
            costs[name] = _cost(points, drawn.costs[name], link) if len(points) == len(seeds) else None
        rows[target] = {"metric": value, "costs": costs}
    quality = {name: {"mean": mean(v), "spread": stdev(v) if len(v) > 1 else None} for name, v in best.items()}
    if drawn.majority is not None:
        quality[MEAN if drawn.of_numbers else MAJORITY] = {"mean": drawn.majority, "spread": None}
    return {"quality": quality, "targets": rows}


def _cost(points: Sequence[Point], cost: DeviceCost, link: Link) -> dict[str, float | None]:
    """Return means over seeds, of a device."""
    return {
        "passes": mean(point.passes for point in points),
        "gflops": mean(point.flops for point in points) / 1e9,
        "seconds": cost.seconds_a_sample * mean(point.samples for point in points),
        "peak_mb": None if cost.peak_bytes is None else cost.peak_bytes / 1e6,
        "mb_up": mean(point.bytes_up for point in points) / 1e6,
        "mb_down": mean(point.bytes_down for point in points) / 1e6,
        "wall_seconds": mean(wall_seconds(point, cost, link) for point in points),
    }
