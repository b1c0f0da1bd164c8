"""Which classes a run takes for which."""

from __future__ import annotations

from collections.abc import Sequence

from mobillm_flower.reports.charts import SHADES, heat_map
from mobillm_flower.reports.markup import Markup, element, join, matrix, paragraph, table
from mobillm_flower.reports.source import ReportSource

MOST_NAMED = 20
"""Up to so many classes the matrix is a table with names; above, a heat map beside the most confused pairs."""
_MOST_PAIRS = 25
_MOST_CELLS = 200  # a side of the heat map; more classes are added up in blocks

Counts = Sequence[Sequence[int]]


def confusion(source: ReportSource) -> Markup | None:
    """Return the confusion matrix; None for regression, and where the run is not completed."""
    if source.is_regression or source.run.outcome != "completed":
        return None
    counts: Counts = source.references.get("confusion") or []
    names = source.labels or list(source.references.get("labels") or [])
    if not counts or len(names) != len(counts):
        return paragraph("The confusion matrix was not measured: it needs all texts in one place.")
    right, total = sum(counts[i][i] for i in range(len(counts))), sum(map(sum, counts))
    each = ", each counted once for every backbone type," if "types" in source.references else ""
    intro = paragraph(f"{right:,} of {total:,} test samples{each} are on the diagonal: predicted as what they are.")
    shown = [_matrix(counts, names)] if len(counts) <= MOST_NAMED else _large(counts, names)
    return join(intro, shown)


def _matrix(counts: Counts, names: Sequence[str]) -> Markup:
    caption = "Confusion matrix: rows are true classes, columns predicted ones"
    rows = [
        [_cell(count, count / max(1, sum(line)), right=names[i] == name) for i, count in enumerate(line)]
        for name, line in zip(names, counts, strict=True)
    ]
    return matrix(caption, ("true ↓", "predicted →"), names, rows)


def _cell(count: int, share: float, *, right: bool) -> Markup:
    style = f"--share:{share:.2f}" if count else None
    return element("td", f"{count:,}" if count else "·", class_="right" if right else "wrong", style=style)


def _large(counts: Counts, names: Sequence[str]) -> list[Markup]:
    size = len(counts)
    pairs = sorted(
        ((count, i, j) for i, line in enumerate(counts) for j, count in enumerate(line) if count and i != j),
        key=lambda pair: (-pair[0], pair[1], pair[2]),
    )
    rows = [(names[i], names[j], f"{count:,}", f"{count / sum(counts[i]):.0%}") for count, i, j in pairs[:_MOST_PAIRS]]
    wrong = sum(count for count, _, _ in pairs)
    block = -(-size // _MOST_CELLS)
    summary = (
        f"Confusion matrix of {size} classes, rows true, columns predicted: {wrong:,} samples off the diagonal in "
        f"{len(pairs):,} pairs of classes"
    )
    chart = heat_map(
        _shares(counts, block), x_label=f"predicted class, {size} in order", y_label="true class", summary=summary
    )
    bounds = ["0", *(f"{bound:.0%}" for bound in SHADES)]
    legend = element(
        "p",
        "Share of the true class: ",
        [element("span", f"{bounds[i]} to {bounds[i + 1]}", class_=f"key shade-{i}") for i in range(len(SHADES))],
        f" One cell stands for {block}×{block} classes." if block > 1 else None,
        class_="legend",
    )
    most = f"The {len(rows)} most confused pairs of {len(pairs):,}" if len(rows) < len(pairs) else "Confused pairs"
    listed = table(most, ("true class", "predicted as", "samples", "share"), rows, numeric=[2, 3])
    return [element("div", element("div", chart, legend), listed, class_="beside")] if rows else [chart, legend]


def _shares(counts: Counts, block: int) -> list[list[float]]:
    """Return each cell's share of its row, cells added up in blocks where there are too many to draw."""
    size = -(-len(counts) // block)
    sums = [[0] * size for _ in range(size)]
    for i, line in enumerate(counts):
        for j, count in enumerate(line):
            sums[i // block][j // block] += count
    return [[cell / max(1, sum(line)) for cell in line] for line in sums]
