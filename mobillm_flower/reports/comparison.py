"""What a comparison or a benchmark found, under which settings it was made, and its page."""

from __future__ import annotations

import contextlib
import os
import platform
import sqlite3
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import mobillm_flower
from mobillm_flower.reports.charts import Dot, scatter_chart
from mobillm_flower.reports.markup import Markup, document, element, paragraph, table

_LIBRARIES = ("torch", "transformers", "bitsandbytes", "numpy", "peft")


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
    """What a comparison or a benchmark found.

    Parameters
    ----------
    bench : str
        Its name.
    settings : dict
        What was measured, under which settings.
    figures : dict
        What came out.
    tables, plots : list
        What is shown of the figures, on a terminal and on a page.
    notes : list of str
        Sentences that stand under the tables.
    """

    bench: str
    settings: dict[str, Any]
    figures: dict[str, Any] = field(default_factory=dict)
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
            "bars": {},  # these three are a benchmark's
            "figures": self.figures,
            "comparisons": {},
            "skipped": {},
            "tables": [asdict(table) for table in self.tables],
        }


def comparison_page(title: str, report: Report, result: Mapping[str, Any], notes: Sequence[str] = ()) -> str:
    """Return a self-contained page.

    Parameters
    ----------
    title : str
        What was compared or measured.
    report : Report
        Whose tables and plots it shows.
    result : mapping
        The report as plain values, with commit and versions.
    notes : sequence of str
        Sentences that stand first.
    """
    made = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    parts: list[Markup] = [element("h1", title), paragraph(f"Commit {result['commit'] or '–'}; {made}.")]
    parts += map(paragraph, notes)
    for one in report.tables:
        numeric = range(1, len(one.columns))
        parts += [element("h2", one.title), table(one.title, one.columns, one.rows, numeric=numeric)]
    for plot in report.plots:
        dots = [Dot(x, y, name, f"{name} {x:,.4g}, {y:,.4g}") for x, y, name in plot.points]
        drawn = scatter_chart(dots, x_label=plot.x_label, y_label=plot.y_label, summary=plot.title)
        parts.append(element("figure", element("figcaption", plot.title), drawn))
    return document(title, element("main", parts))


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
