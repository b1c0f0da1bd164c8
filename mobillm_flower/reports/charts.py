"""Charts as inline SVG: pure functions of numbers and words.

A chart is 360 units wide, which is about its width in pixels both on a phone and in a column of a wide page, so that
its text keeps a readable size. Colours are CSS classes of the page.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mobillm_flower.reports.markup import Markup, element

_WIDTH, _HEIGHT = 360.0, 220.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 12.0, 24.0, 44.0
_TICKS = 5
_MOST_LETTERS = 46  # of a text in a chart, so that it stays within
_Scale = Callable[[float], float]


@dataclass(frozen=True)
class Bar:
    """One bar: its name, its value, the value as text, and whether it is the one that matters."""

    name: str
    value: float
    text: str
    strong: bool = False


@dataclass(frozen=True)
class Point:
    """One point of a line: where it is, and what it says when it is pointed at."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Dot:
    """One dot of a scatter: where it is, its name beside it, what it says when pointed at, and whether to mark it."""

    x: float
    y: float
    name: str
    text: str
    strong: bool = False


def ticks(low: float, high: float, *, least_step: float = 0.0) -> list[float]:
    """Return about five round numbers from at or below `low` to at or above `high`."""
    span = high - low if high > low else abs(high) or 1.0
    step = 10.0 ** math.floor(math.log10(span / _TICKS))
    step *= next((factor for factor in (1, 2, 2.5, 5) if span / (step * factor) <= _TICKS), 10)
    step = max(step, least_step)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{step * i:.10g}") for i in range(first, max(last, first + 1) + 1)]


def line_chart(
    points: Sequence[Point], *, x_label: str, y_label: str, summary: str, marked: int | None = None
) -> Markup:
    """Return a line through points, interrupted where a value is not finite.

    Parameters
    ----------
    points : sequence of Point
        In order of x, which are whole numbers; at least one y is finite.
    x_label, y_label : str
        Names of the axes with their units.
    summary : str
        The text alternative.
    marked : int, optional
        Index of the point to mark.
    """
    finite = [point for point in points if math.isfinite(point.y)]
    x_ticks = [x for x in ticks(points[0].x, points[-1].x, least_step=1.0) if x == int(x)]
    y_ticks = ticks(min(point.y for point in finite), max(point.y for point in finite))
    across = _scale(min(points[0].x, x_ticks[0]), max(points[-1].x, x_ticks[-1]), _LEFT, _WIDTH - _RIGHT)
    up = _scale(y_ticks[0], y_ticks[-1], _HEIGHT - _BOTTOM, _TOP)
    path, pen = [], "M"
    for point in points:
        if math.isfinite(point.y):
            path.append(f"{pen}{across(point.x):.1f} {up(point.y):.1f}")
        pen = "L" if math.isfinite(point.y) else "M"
    dots = [
        element(
            "circle",
            element("title", point.text),
            cx=across(point.x),
            cy=up(point.y),
            r=5 if i == marked else 2.5,
            class_="mark" if i == marked else "dot",
        )
        for i, point in enumerate(points)
        if math.isfinite(point.y)
    ]
    line = element("path", d="".join(path), class_="line")
    return _svg(summary, _HEIGHT, _grid(y_ticks, up, y_label), _x_axis(x_ticks, across, x_label), [line], dots)


def scatter_chart(dots: Sequence[Dot], *, x_label: str, y_label: str, summary: str) -> Markup:
    """Return dots over two numeric axes, each with its (short) name beside it; at least one dot."""
    x_ticks = ticks(min(dot.x for dot in dots), max(dot.x for dot in dots))
    y_ticks = ticks(min(dot.y for dot in dots), max(dot.y for dot in dots))
    across = _scale(x_ticks[0], x_ticks[-1], _LEFT, _WIDTH - _RIGHT - 12)
    up = _scale(y_ticks[0], y_ticks[-1], _HEIGHT - _BOTTOM, _TOP)
    marks, names = [], []
    taken: list[tuple[float, float]] = []
    for dot in sorted(dots, key=lambda dot: dot.strong):  # what matters is drawn last, over the others
        x, y = across(dot.x), up(dot.y)
        class_ = "mark" if dot.strong else "dot"
        marks.append(element("circle", element("title", dot.text), cx=x, cy=y, r=3, class_=class_))
        free = ((u, v) for u, v in _beside(x, y) if all(abs(u - a) > 13 or abs(v - b) > 9 for a, b in taken))
        at = next(free, (x + 5, y + 4))
        taken.append(at)
        names.append(_text(*at, dot.name, "start"))
    return _svg(summary, _HEIGHT, _grid(y_ticks, up, y_label), _x_axis(x_ticks, across, x_label), marks, names)


def _beside(x: float, y: float) -> Iterator[tuple[float, float]]:
    """Yield places for a dot's name, the nearest first."""
    for away in range(20):
        for side in (5.0 + 10 * away, -17.0 - 10 * away):
            for lift in range(away + 1) if _LEFT - 10 <= x + side <= _WIDTH - 15 else ():
                yield x + side, y + 4 - 10 * lift
                yield x + side, y + 4 + 10 * lift


def column_chart(bars: Sequence[Bar], *, x_label: str, y_label: str, summary: str) -> Markup:
    """Return upright bars side by side, without names; each says its name and value when it is pointed at."""
    y_ticks = ticks(0.0, max(bar.value for bar in bars))
    up = _scale(0.0, y_ticks[-1], _HEIGHT - _BOTTOM, _TOP)
    wide = min(48.0, (_WIDTH - _LEFT - _RIGHT) / len(bars))
    gap = min(2.0, wide / 4)
    columns = [
        element(
            "rect",
            element("title", f"{bar.name}: {bar.text}"),
            x=_LEFT + i * wide + gap / 2,
            y=up(bar.value),
            width=wide - gap,
            height=up(0.0) - up(bar.value),
            class_="bar strong" if bar.strong else "bar",
        )
        for i, bar in enumerate(bars)
    ]
    name = _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - _BOTTOM + 20, x_label, "middle", "axis")
    return _svg(summary, _HEIGHT - 16, _grid(y_ticks, up, y_label), columns, [name])


def bar_chart(bars: Sequence[Bar], *, x_label: str, summary: str, most: float | None = None) -> Markup:
    """Return lying bars under their names, from zero; `most` is where the axis ends at the least."""
    values = [bar.value for bar in bars]
    marks = ticks(min(0.0, *values), max(most or 0.0, *values))
    across = _scale(marks[0], marks[-1], 8.0, _WIDTH - 12.0)
    row, top = 34.0, 4.0
    bottom = top + row * len(bars)
    parts: list[Markup] = []
    for i, bar in enumerate(bars):
        y = top + i * row
        left, right = sorted((across(0.0), across(bar.value)))
        parts += [
            _text(12, y + 13, bar.name, "start", "name strong" if bar.strong else "name"),
            _text(_WIDTH - 12, y + 13, bar.text, "end", "name strong" if bar.strong else "name"),
            element(
                "rect",
                x=left,
                y=y + 18,
                width=max(right - left, 0.5),
                height=10,
                class_="bar strong" if bar.strong else "bar",
            ),
        ]
    lines = [
        element("line", x1=across(x), x2=across(x), y1=top, y2=bottom, class_="zero" if x == 0 else "grid")
        for x in marks
    ]
    numbers = [
        _text(across(x), bottom + 14, f"{x:g}", "end" if i == len(marks) - 1 else "middle" if i else "start")
        for i, x in enumerate(marks)
    ]
    name = _text(_WIDTH / 2, bottom + 32, x_label, "middle", "axis")
    return _svg(summary, bottom + 40, lines, parts, numbers, [name])


def heat_map(shares: Sequence[Sequence[float]], *, x_label: str, y_label: str, summary: str) -> Markup:
    """Return a square of cells, darker for a larger share (0 to 1); cells of share 0 are left out.

    A path for each of four shades, not a rectangle for each cell, keeps the page small at many classes.
    """
    size = len(shares)
    cell = (_WIDTH - 32.0) / size
    shades: list[list[str]] = [[] for _ in SHADES]
    for row, line in enumerate(shares):
        for column, share in enumerate(line):
            if share > 0:
                level = sum(share > bound for bound in SHADES[:-1])
                shades[level].append(f"M{column} {row}h1v1h-1z")
    paths = [element("path", d="".join(steps), class_=f"shade-{level}") for level, steps in enumerate(shades) if steps]
    edge = size * cell
    frame = element("rect", x=24, y=4, width=edge, height=edge, class_="frame")
    cells = element("g", paths, transform=f"translate(24 4) scale({cell:.5f})")
    across = _text(24 + edge / 2, edge + 22, x_label, "middle", "axis")
    down = element(
        "text", y_label, transform=f"translate(14 {4 + edge / 2:.1f}) rotate(-90)", text_anchor="middle", class_="axis"
    )
    return _svg(summary, edge + 30, [frame, cells, across, down])


SHADES = (0.05, 0.2, 0.5, 1.0)
"""Upper bounds of a heat map's shades."""


def _svg(summary: str, height: float, *parts: Sequence[Markup]) -> Markup:
    return element("svg", *parts, viewBox=f"0 0 {_WIDTH:g} {height:g}", role="img", aria_label=summary, class_="chart")


def _scale(low: float, high: float, start: float, end: float) -> _Scale:
    """Return the function that maps low..high to start..end."""
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _grid(marks: Sequence[float], up: _Scale, label: str) -> list[Markup]:
    """Return horizontal lines with their numbers, and the axis' name above them."""
    parts = [_text(4, 13, label, "start", "axis")]
    for mark in marks:
        y = up(mark)
        parts.append(element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, class_="grid" if mark else "zero"))
        parts.append(_text(_LEFT - 6, y + 4, f"{mark:,.10g}", "end"))
    return parts


def _x_axis(marks: Sequence[float], across: _Scale, label: str) -> list[Markup]:
    """Return numbers below a chart, and the axis' name below them."""
    numbers = [_text(across(x), _HEIGHT - _BOTTOM + 16, f"{x:g}", "middle") for x in marks]
    return [*numbers, _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8, label, "middle", "axis")]


def _text(x: float, y: float, text: str, anchor: str, class_: str = "tick") -> Markup:
    text = text if len(text) <= _MOST_LETTERS else f"{text[: _MOST_LETTERS - 1]}…"
    return element("text", text, x=x, y=y, text_anchor=anchor, class_=class_)
