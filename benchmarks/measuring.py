"""Two sides measured in turns, and the report of a benchmark.

A shared machine is never as fast twice. Taken in turns (A B A B …) in one process, or in fresh processes one after
another, both sides meet the same load; the ratio of their medians is the result, no absolute time is.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from mobillm_flower.reports.comparison import Report

Measured = TypeVar("Measured")


def take_turns(
    sides: Mapping[str, Callable[[], Measured]], pairs: int, *, say: Callable[[str], None] = lambda _text: None
) -> dict[str, list[Measured]]:
    """Call each side once, then again, `pairs` times; returns each side's measurements in order.

    Every other turn goes backwards: what is called first finds the other's data not yet in a cache.
    """
    result: dict[str, list[Measured]] = {name: [] for name in sides}
    for turn in range(pairs):
        for name in list(sides)[:: -1 if turn % 2 else 1]:
            result[name].append(sides[name]())
        say(f"turn {turn + 1} of {pairs}")
    return result


@dataclass(frozen=True)
class Seconds:
    """How long a call took: on the wall's clock, and on the processor's, which other processes do not share."""

    wall: float
    cpu: float


def timed(call: Callable[[], object]) -> Callable[[], Seconds]:
    """Return a side that measures one call."""

    def side() -> Seconds:
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        return Seconds(time.perf_counter() - wall, time.process_time() - cpu)

    return side


@dataclass(frozen=True)
class Comparison:
    """Ours beside another side, from repetitions taken in turns.

    Parameters
    ----------
    unit : str
        Of the repetitions.
    ours, other : sequence of float
        Repetitions, the same number on both sides.
    other_name : str
        What the other side is.
    """

    unit: str
    ours: Sequence[float]
    other: Sequence[float]
    other_name: str

    @property
    def ratio(self) -> float:
        """Median of ours over median of the other."""
        return statistics.median(self.ours) / statistics.median(self.other)

    @property
    def pair_ratios(self) -> list[float]:
        """Ours over the other, turn by turn."""
        return [a / b for a, b in zip(self.ours, self.other, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """Return medians, ratio, its spread (quartiles and range of the turns' ratios), and every repetition."""
        ratios = self.pair_ratios
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        return {
            "unit": self.unit,
            "ours_median": statistics.median(self.ours),
            "other_median": statistics.median(self.other),
            "other_name": self.other_name,
            "ratio": self.ratio,
            "ratio_quartiles": [low, high],
            "ratio_range": [min(ratios), max(ratios)],
            "pairs": len(ratios),
            "ours": list(self.ours),
            "other": list(self.other),
        }


def compare_seconds(ours: Sequence[Seconds], other: Sequence[Seconds], other_name: str) -> dict[str, Comparison]:
    """Return comparisons of the wall's and of the processor's seconds, by the ending of their names."""
    return {
        "": Comparison("s", [s.wall for s in ours], [s.wall for s in other], other_name),
        "_cpu": Comparison("cpu s", [s.cpu for s in ours], [s.cpu for s in other], other_name),
    }


@dataclass(frozen=True)
class Threshold:
    """A figure and the bar that it is held to."""

    value: float
    bar: float
    at_most: bool

    @property
    def holds(self) -> bool:
        """Whether it does."""
        return self.value <= self.bar if self.at_most else self.value >= self.bar

    def to_dict(self) -> dict[str, Any]:
        """Return value, bar, its direction, and whether it holds."""
        rule = "at most" if self.at_most else "at least"
        return {"value": self.value, "rule": rule, "bar": self.bar, "holds": self.holds}


@dataclass
class BenchReport(Report):
    """What a benchmark found, beside the figures, tables and notes of a report.

    Parameters
    ----------
    bars, comparisons : dict
        Figures that are held to a bar; sides taken in turns.
    skipped : dict
        What could not be measured here, and why.
    """

    bars: dict[str, Threshold] = field(default_factory=dict)
    comparisons: dict[str, Comparison] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return everything, with commit, versions and machine, as plain values."""
        return super().to_dict() | {
            "bars": {name: bar.to_dict() for name, bar in self.bars.items()},
            "comparisons": {name: comparison.to_dict() for name, comparison in self.comparisons.items()},
            "skipped": self.skipped,
        }
