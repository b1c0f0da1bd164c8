"""A benchmark's page: its tables and figures, and under which settings they were made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mobillm_flower.reports.charts import Dot, scatter_chart
from mobillm_flower.reports.markup import Markup, element, join, paragraph, table


class _Table(Protocol):
    @property
    def title(self) -> str: ...
    @property
    def columns(self) -> Sequence[str]: ...
    @property
    def rows(self) -> Sequence[Sequence[str]]: ...


class _Plot(Protocol):
    @property
    def title(self) -> str: ...
    @property
    def x_label(self) -> str: ...
    @property
    def y_label(self) -> str: ...
    @property
    def points(self) -> Sequence[tuple[float, float, str]]: ...


def comparison_page(
    title: str,
    tables: Sequence[_Table],
    plots: Sequence[_Plot],
    result: Mapping[str, Any],
    notes: Sequence[str] = (),
) -> str:
    """Return a self-contained page.

    Parameters
    ----------
    title : str
        What was compared or measured.
    tables, plots : sequence
        What it shows.
    result : mapping
        Its report as plain values: commit, versions, machine, settings.
    notes : sequence of str
        Sentences that stand first.
    """
    style = Path(__file__).with_name("page.css").read_text("utf-8")
    made = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    parts: list[Markup] = [element("h1", title), paragraph(f"Commit {result['commit'] or '–'}; {made}.")]
    parts += map(paragraph, notes)
    for one in tables:
        numeric = range(1, len(one.columns))
        parts += [element("h2", one.title), table(one.title, one.columns, one.rows, numeric=numeric)]
    for plot in plots:
        dots = [Dot(x, y, name, f"{name} {x:,.4g}, {y:,.4g}") for x, y, name in plot.points]
        drawn = scatter_chart(dots, x_label=plot.x_label, y_label=plot.y_label, summary=plot.title)
        parts.append(element("figure", element("figcaption", plot.title), drawn))
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Markup(style)),
    )
    body = element("body", element("main", join(*parts)))
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"
