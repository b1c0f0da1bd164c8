"""Markup and charts: escaping, round axes, values that are not finite."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest

from mobillm_flower.reports.charts import Bar, Point, bar_chart, column_chart, heat_map, line_chart, ticks
from mobillm_flower.reports.markup import Markup, element, join, table


def parsed(chart: str) -> ET.Element:
    root = ET.fromstring(chart)
    assert root.tag == "svg"
    assert root.get("role") == "img"
    return root


def test_every_string_is_escaped_unless_it_is_markup() -> None:
    made = element("p", "<b>&", Markup("<i>kept</i>"), None, ["'x'", '"y"'], class_="a", aria_label='"><script>')
    assert made == (
        '<p class="a" aria-label="&quot;&gt;&lt;script&gt;">&lt;b&gt;&amp;<i>kept</i>&#x27;x&#x27;&quot;y&quot;</p>'
    )
    assert isinstance(made, Markup)
    assert join(made, "<") == made + "&lt;"


def test_characters_that_no_page_may_hold_are_replaced() -> None:
    made = element("p", "a\x00b\x1bc\ud800d\uffffe\n\tä🙂")
    assert made == "<p>a\ufffdb\ufffdc\ufffdd\ufffde\n\tä🙂</p>"
    made.encode("utf-8")


def test_attributes_may_be_left_out_or_have_no_value() -> None:
    made = element("details", open=True, hidden=False, title=None, x=1.23456, y=2.0, n=3)
    assert made == '<details open x="1.23" y="2" n="3"></details>'
    assert element("meta", charset="utf-8") == '<meta charset="utf-8">'


def test_a_table_names_its_columns_rows_and_box() -> None:
    made = ET.fromstring(table("Fruit <1>", ("name", "count"), [("pear", "3")], numeric=[1], total=("all", "3")))
    assert made.get("aria-label") == "Fruit <1>"
    assert [cell.get("scope") for cell in made.iter("th")] == ["col", "col", "row", "row"]
    assert [cell.text for cell in made.iter("td")] == ["3", "3"]
    assert made.findtext("table/caption") == "Fruit <1>"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (4.52, 7.93, [4, 5, 6, 7, 8]),
        (0, 151.6, [0, 50, 100, 150, 200]),
        (-0.5, 0.3, [-0.6, -0.4, -0.2, 0, 0.2, 0.4]),
        (3, 3, [3, 4]),
    ],
)
def test_ticks_are_round_and_enclose_the_values(low: Any, high: float, expected: Any) -> None:
    assert ticks(low, high) == expected


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e30, -7.0])
def test_ticks_of_a_single_value_are_different(value: Any) -> None:
    found = ticks(value, value)
    assert len(set(found)) == len(found) >= 2
    assert found[0] <= value <= found[-1]


def test_a_line_is_interrupted_where_a_value_is_not_finite() -> None:
    values = [3.0, float("nan"), 2.0, 1.0, float("inf")]
    points = [Point(i + 1, value, f"epoch {i + 1}") for i, value in enumerate(values)]
    root = parsed(line_chart(points, x_label="epoch", y_label="loss", summary="a curve", marked=3))
    assert root.get("aria-label") == "a curve"
    path = next(item.attrib["d"] for item in root.iter("path"))
    assert path.count("M") == 2
    assert path.count("L") == 1
    dots = list(root.iter("circle"))
    assert [dot.findtext("title") for dot in dots] == ["epoch 1", "epoch 3", "epoch 4"]
    assert [dot.get("class") for dot in dots] == ["dot", "dot", "mark"]
    assert {"epoch", "loss", "1", "5"} <= {text.text for text in root.iter("text")}


def test_bars_are_as_long_as_their_values() -> None:
    bars = [Bar("one", 0.25, "0.25"), Bar("two", 0.5, "0.50", strong=True), Bar("three", -0.25, "-0.25")]
    root = parsed(bar_chart(bars, x_label="share", summary="bars", most=0.5))
    lengths = [float(bar.attrib["width"]) for bar in root.iter("rect")]
    assert lengths[1] == pytest.approx(2 * lengths[0], abs=0.02)
    assert lengths[2] == pytest.approx(lengths[0], abs=0.02)
    lefts = [float(bar.attrib["x"]) for bar in root.iter("rect")]
    assert lefts[0] == lefts[1] == pytest.approx(lefts[2] + lengths[2], abs=0.02)
    assert [bar.get("class") for bar in root.iter("rect")] == ["bar", "bar strong", "bar"]


def test_columns_are_as_high_as_their_values_and_say_them() -> None:
    root = parsed(column_chart([Bar("a", 4.0, "4 s"), Bar("b", 1.0, "1 s")], x_label="x", y_label="y", summary="s"))
    heights = [float(bar.attrib["height"]) for bar in root.iter("rect")]
    assert heights[0] == pytest.approx(4 * heights[1], abs=0.05)
    assert [bar.findtext("title") for bar in root.iter("rect")] == ["a: 4 s", "b: 1 s"]


def test_a_heat_map_draws_each_cell_once_in_its_shade() -> None:
    shares = [[1.0, 0.0, 0.0], [0.05, 0.35, 0.6], [0.1, 0.0, 0.9]]
    root = parsed(heat_map(shares, x_label="predicted", y_label="true", summary="map"))
    paths = {path.get("class"): path.get("d") for path in root.iter("path")}
    assert paths == {
        "shade-0": "M0 1h1v1h-1z",
        "shade-1": "M0 2h1v1h-1z",
        "shade-2": "M1 1h1v1h-1z",
        "shade-3": "M0 0h1v1h-1zM2 1h1v1h-1zM2 2h1v1h-1z",
    }
