"""Two sides measured in turns, and the report of a benchmark.

A shared machine is never as fast twice. Taken in turns (A B A B …) in one process, or in fresh processes one after
another, both sides meet the same load; the ratio of their medians is the result, no absolute time is.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import psutil

import mobillm_flower
from mobillm_flower.errors import RunFailed

Measured = TypeVar("Measured")
_LIBRARIES = ("torch", "transformers", "bitsandbytes", "numpy", "peft")


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


@dataclass(frozen=True)
class Table:
    """A table of words and numbers as text; the first column names the rows."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Plot:
    """Points (x, y, name) of a page's figure."""

    title: str
    x_label: str
    y_label: str
    points: Sequence[tuple[float, float, str]]


@dataclass
class Report:
    """What a benchmark found.

    Parameters
    ----------
    bench : str
        Its name.
    settings : dict
        What was measured, under which settings: threads, dtype, batch, lengths.
    bars, comparisons, figures : dict
        Figures that are held to a bar; sides taken in turns; other figures.
    skipped : dict
        What could not be measured here, and why.
    tables, plots : list
        What is shown of the figures, on a terminal and on a page.
    notes : list of str
        Sentences that stand under the tables.
    """

    bench: str
    settings: dict[str, Any]
    bars: dict[str, Threshold] = field(default_factory=dict)
    comparisons: dict[str, Comparison] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=lambda: {"cores": os.cpu_count(), "load_before": _load()})

    def to_dict(self) -> dict[str, Any]:
        """Return everything, with commit, versions and machine, as plain values."""
        return {
            "bench": self.bench,
            **_commit(),
            "versions": _versions(),
            "machine": {**self.machine, "load_after": _load()},
            "settings": self.settings,
            "bars": {name: bar.to_dict() for name, bar in self.bars.items()},
            "figures": self.figures,
            "comparisons": {name: comparison.to_dict() for name, comparison in self.comparisons.items()},
            "skipped": self.skipped,
            "tables": [asdict(table) for table in self.tables],
        }


def run_fresh(
    module: str, *arguments: object, environment: Mapping[str, str] | None = None, seconds: float | None = None
) -> dict[str, Any]:
    """Run a module in a fresh process and return the JSON of its last line.

    Parameters
    ----------
    module, arguments
        What `python -m` is given.
    environment : mapping, optional
        Variables besides this process's.
    seconds : float or None
        After these it is ended, and all that it started.

    Raises
    ------
    RunFailed
        It ended without one, and its last words are in the message; or it was not done in time.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    started = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    with started as process:
        try:
            output, words = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired as error:
            for one in [*psutil.Process(process.pid).children(recursive=True), process]:
                one.kill()
            raise RunFailed(f"{module} was not done within {seconds:g} s") from error
        except BaseException:
            process.kill()
            raise
    try:
        result = json.loads(output.strip().splitlines()[-1])
    except (IndexError, ValueError) as error:
        words = words.strip()[-300:] or "nothing was said"
        raise RunFailed(f"{module} ended with code {process.returncode} and measured nothing: {words}") from error
    if process.returncode or not isinstance(result, dict):
        raise RunFailed(f"{module} ended with code {process.returncode}: {words.strip()[-300:]}")
    return result


def status_bytes(name: str) -> int:
    """Return a size of this process from Linux's /proc/self/status, e.g. VmHWM (peak resident set) or RssAnon."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) * 1024


def _load() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _versions() -> dict[str, str]:
    result = {"mobillm_flower": mobillm_flower.__version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            result[name] = metadata.version(name)
    return {**result, "sqlite": sqlite3.sqlite_version}


def _commit() -> dict[str, Any]:
    """Return the commit of the package's own checkout, and whether the package differs from it; None elsewhere."""
    package = Path(mobillm_flower.__file__).resolve().parent

    def git(*words: str) -> str:
        answer = subprocess.run(
            ["git", "-C", str(package), *words],  # noqa: S607 - the user's own git
            capture_output=True,
            text=True,
            check=True,
        )
        return answer.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() == package.parent:
            return {"commit": git("rev-parse", "HEAD"), "changed_since": bool(git("status", "--porcelain", "--", "."))}
    except (OSError, subprocess.CalledProcessError):
        pass
    return {"commit": None, "changed_since": None}
