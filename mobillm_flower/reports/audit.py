"""The audit's section of a report, from `audit.json` in a run's folder, and the plot of privacy against accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mobillm_flower.errors import RunFailed
from mobillm_flower.reports.charts import Dot, scatter_chart
from mobillm_flower.reports.markup import Markup, element, join, paragraph, says, table

_FORMAT = 1
_STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#1b2128}.tick,.axis{fill:#56616d}.grid{stroke:#d9dee5}"
    ".zero{stroke:#56616d}.dot{fill:#1f5fd0}.mark{fill:#b3261e}"
)
_CHART_HEIGHT = 230
_LABELS = (
    "label: argmax Δy",
    "label: clusters and class shares",
    "label: clusters and one leaked pair a class",
    "label: rotated Δy, clusters and class shares",
    "label: rotated Δy, one leaked pair a class",
    "label: side network and released label",
)
_WORDS = ("text: words", "text: words, decoder of clean text", "text: words, decoder that knows the noise")


def audit_section(result: Mapping[str, Any]) -> Markup:
    """Return an audit as a section: plain words, the plot, and every attack; empty without an audit.

    Parameters
    ----------
    result : mapping
        `audit.json`, or empty.

    Raises
    ------
    RunFailed
        It is of another format.
    """
    if not result:
        return Markup("")
    if result.get("format") != _FORMAT:
        raise RunFailed(
            f"the run's audit has format {result.get('format')!r}, this version reads {_FORMAT}; audit the run again"
        )
    if "sums" in result:
        return _of_sums(result)
    cells = [cell for cell in result["cells"] if not cell["skipped"]]
    names = list(dict.fromkeys(name for cell in cells for name in cell["attacks"]))
    rows = [_line("task: " + result["metric"], [cell["quality"] for cell in cells])]
    rows += [_line(name, [cell["attacks"].get(name) for cell in cells]) for name in names]
    rows.append(["bytes a sample", *(f"{cell['bytes_a_sample']:,.0f}" for cell in cells)])
    rows.append(["device seconds a sample", *(f"{cell['device_seconds_a_sample']:.4f}" for cell in cells)])
    columns = ["attack", *_numbered(result)]
    listing = table("What each attack reached", columns, rows, numeric=range(1, len(columns)), class_="audit")
    note = (
        "The plots have the columns by their numbers, the audited settings in another colour. Behind each value, after "
        "“/”, stands what is reached without looking at uploads. Each column but the first is of the run's settings "
        f"with another protection. {result['sizes']['seeds']} seeds of {result['attacked'][0]:,} uploads."
    )
    return join(
        says(result["plain_words"]),
        element("div", frontiers(result), class_="charts"),
        listing,
        paragraph(note, class_="note"),
        [paragraph(remark, class_="note") for remark in result["remarks"]],
    )


def _of_sums(result: Mapping[str, Any]) -> Markup:
    """Return the section of an audit of sums: a column for each number of samples."""
    cells = result["sums"]
    rows = [_line(name, [cell["attacks"][name] for cell in cells]) for name in cells[0]["attacks"]]
    remarks = [", noised" if cell.get("noised") else ", refused" if cell["refused"] else "" for cell in cells]
    columns = ["attack", *(f"{cell['samples']:,}{remark}" for cell, remark in zip(cells, remarks, strict=True))]
    return join(
        says(result["plain_words"]),
        table("What sums of so many samples tell", columns, rows, numeric=range(1, len(columns)), class_="audit"),
        paragraph("Behind each value, after “/”, stands what is reached without the sum.", class_="note"),
        [paragraph(remark, class_="note") for remark in result["remarks"]],
    )


def frontiers(result: Mapping[str, Any]) -> list[Markup]:
    """Return privacy against accuracy: the best label attack, and the best word decoder, each against the metric."""
    charts = []
    for names, what in ((_LABELS, "labels inferred (best attack)"), (_WORDS, "words recovered (F1, best decoder)")):
        dots = []
        for number, cell in enumerate((cell for cell in result["cells"] if not cell["skipped"]), start=1):
            reached = max((cell["attacks"][name]["value"] for name in names if name in cell["attacks"]), default=0.0)
            quality = cell["quality"]["value"]
            text = f"{cell['name']}: {what} {reached:.3f}, {result['metric']} {quality:.3f}"
            dots.append(Dot(reached, quality, str(number), text, strong=cell["kind"] in ("as set", "unprotected")))
        if dots:
            summary = f"{result['metric']} against {what}; further left is more private, higher is more accurate"
            charts.append(scatter_chart(dots, x_label=what, y_label=result["metric"], summary=summary))
    return charts


def frontier_file(result: Mapping[str, Any]) -> str:
    """Return the plots with the names of their dots as one SVG file of its own."""
    charts, names = frontiers(result), _numbered(result)
    top = _CHART_HEIGHT * len(charts)
    height = top + 16 * len(names) + 10
    return element(
        "svg",
        element("style", Markup(_STYLE)),
        element("rect", x=0, y=0, width=360, height=height, fill="#fff"),
        [element("svg", chart, y=_CHART_HEIGHT * i, width=360, height=_CHART_HEIGHT) for i, chart in enumerate(charts)],
        [element("text", name, x=52, y=top + 16 * (i + 1)) for i, name in enumerate(names)],
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 360 {height}",
        width=720,
        height=2 * height,
    )


def _numbered(result: Mapping[str, Any]) -> list[str]:
    """Return the cells' names with the numbers that the plots have them by."""
    names = [cell["name"] for cell in result["cells"] if not cell["skipped"]]
    return [f"{number} {name}" for number, name in enumerate(names, start=1)]


def _line(name: str, values: Sequence[Mapping[str, Any] | None]) -> list[str]:
    return [name, *("–" if one is None else f"{one['value']:.3f} / {one['baseline']:.3f}" for one in values)]
