"""One table and a sentence of a comparison."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.comparison.tasks import compared_task
from mobillm_flower.evaluation.compare.cells import Point
from mobillm_flower.evaluation.compare.cost_to_target import Link
from mobillm_flower.evaluation.compare.costs import DeviceCost
from mobillm_flower.evaluation.compare.curves import Plan, TaskCurves
from mobillm_flower.evaluation.compare.methods import methods
from mobillm_flower.evaluation.compare.summary import recommend, summary
from mobillm_flower.reports.comparison import comparison_page

OURS = Point(0.80, 1, 1.0, 100.0, 2e9, 1e6, 3e6, [120], [[2e6, 3e6]], 5.0)
LORA = [
    Point(0.60, 1, 1.0, 100.0, 6e9, 1e6, 2e6, [120], [[1e6, 1e6], [0, 1e6]]),
    Point(0.85, 2, 2.0, 200.0, 12e9, 2e6, 3e6, [120, 120], [[1e6, 1e6], [1e6, 1e6], [0, 1e6]]),
]
COSTS = {"pae": DeviceCost(0.01, 10_000_000), "fed-lora": DeviceCost(0.05, 100_000_000)}


def cost(**changes: float) -> dict[str, float | None]:
    return {"wall_seconds": 10.0, "peak_mb": 10.0, "gflops": 10.0, "mb_up": 5.0, "mb_down": 5.0, **changes}


def quality(ours: float, lora: float, spread: float | None = None) -> dict[str, dict[str, float | None]]:
    return {"pae": {"mean": ours, "spread": spread}, "fed-lora": {"mean": lora, "spread": spread}}


def report(tmp_path: Path, curves: TaskCurves, *, quick: bool = False) -> Any:
    plan = Plan([compared_task("phone-messages")], methods(3, list(COSTS)), [0], ["iid"], 2, {}, 1, tmp_path)
    return summary(plan, curves, Link(), "Not known.", quick=quick)


def test_one_table_with_quality_and_costs(tmp_path: Path) -> None:
    central = [[Point(0.9, 1, 1.0)]]
    curves = TaskCurves({}, central, {"iid": {"pae": [[OURS]], "fed-lora": [LORA]}}, COSTS, 0.1, "accuracy")
    found = report(tmp_path, curves, quick=True)
    (table,) = found.tables
    assert table.title.endswith("accuracy, and what a device pays until 0.8000, which all reach")
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["pae"][:4] == ["0.8000", "1", "2", "1"]
    assert rows["fed-lora"][:4] == ["0.8500", "2", "12", "10"]
    assert rows["central-lora"] == ["0.9000", *[""] * 7]
    assert rows["majority class"][0] == "0.1000"
    assert "A quick look" in found.notes[0]
    assert found.notes[1] == "Not known."
    json.dumps(found.to_dict())
    page = comparison_page("mine", found, found.to_dict(), found.notes)
    assert page.index("Recommended: ") < page.index("<table")


def test_a_regression_s_least_reference_is_the_mean(tmp_path: Path) -> None:
    curves = TaskCurves({}, [], {"iid": {"pae": [[OURS]], "fed-lora": [LORA]}}, COSTS, 0.1, "pearson", of_numbers=True)
    rows = {row[0]: row[1:] for row in report(tmp_path, curves).tables[0].rows}
    assert rows["mean of the training values"][0] == "0.1000"
    assert "majority class" not in rows


def test_losses_are_shown_as_they_are(tmp_path: Path) -> None:
    pae = [Point(-3.5, 1, 1.0, 100.0, 2e9, 1e6, 3e6, [120], [[2e6, 3e6]], 5.0)]
    fed = [Point(-3.1, 1, 1.0, 100.0, 2e9, 1e6, 3e6, [120], [[2e6, 3e6]], 5.0)]
    costs = {"pae": DeviceCost(0.01, 1), "fed": DeviceCost(0.01, 1)}
    found = report(tmp_path, TaskCurves({}, [], {"iid": {"pae": [pae], "fed": [fed]}}, costs, None, "cross-entropy"))
    assert [row[:2] for row in found.tables[0].rows] == [["pae", "3.5000"], ["fed", "3.1000"]]
    assert found.figures["recommended"] == "fed"  # the smaller loss


def test_a_correlation_below_0_is_shown_below_0(tmp_path: Path) -> None:
    worse = [replace(OURS, metric=-0.03)]
    found = report(tmp_path, TaskCurves({}, [], {"iid": {"pae": [worse], "fed-lora": [LORA]}}, COSTS, None, "matthews"))
    assert found.tables[0].rows[0][:2] == ["pae", "-0.0300"]
    assert "until -0.0300, which all reach" in found.tables[0].title
    assert "(0.8500 beside -0.0300)" in found.notes[0]
    assert found.plots[0].points[0][1] == -0.03


@pytest.mark.parametrize(
    ("ours", "lora", "spread", "lora_costs", "taken", "words"),
    [
        (0.9, 0.8, None, {"gflops": 100.0}, "pae", "better than fed-lora (0.9000 beside 0.8000); a device needs less"),
        (0.7, 0.8, None, {"gflops": 100.0}, "fed-lora", "a device needs more computing."),
        (0.80, 0.805, None, {"gflops": 100.0}, "pae", "as good as fed-lora"),
        (0.80, 0.85, 0.06, {"gflops": 100.0, "mb_up": 1.0}, "pae", "less computing, but more bytes."),
        (0.80, 0.805, None, {"wall_seconds": 1.0}, "fed-lora", "as good as pae (0.8050 beside 0.8000); a device"),
    ],
)
def test_the_better_or_of_two_alike_the_cheaper_is_recommended(
    ours: float, lora: float, spread: float | None, lora_costs: dict[str, float], taken: str, words: str
) -> None:
    name, sentence = recommend(quality(ours, lora, spread), {"pae": cost(), "fed-lora": cost(**lora_costs)})
    assert name == taken
    assert words in sentence
