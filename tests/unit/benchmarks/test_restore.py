"""Runs of a results file are taken over where nothing that shapes them differs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.comparison.cost_to_target import cost_to_target
from benchmarks.comparison.restore import restore
from benchmarks.comparison.tasks import compared_task
from mobillm_flower.evaluation.compare.cells import Cell, Point
from mobillm_flower.evaluation.compare.cost_to_target import Link
from mobillm_flower.evaluation.compare.costs import DeviceCost
from mobillm_flower.evaluation.compare.curves import Plan, draw_curves
from mobillm_flower.evaluation.compare.methods import methods

NAMES = ["additive", "fed-lora", "central-lora"]
LIKE: dict[str, Any] = {"seeds": [0, 1], "partitions": ["iid", "alpha=0.1"], "num_devices": 2, "turns": 1}


def plan(work: Path) -> Plan:
    return Plan(
        [compared_task("phone-messages")], methods(3, NAMES), **LIKE, common={"backbone.layers": "2"}, work=work
    )


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Titles of the cells that are run; each has the points of its title's length."""
    titles: list[str] = []

    def launch(cell: Cell, work: Path) -> list[Point]:
        if (cell.folder(work) / "points.json").exists():
            return run(cell, work)
        titles.append(cell.title)
        return [Point(len(cell.title) / 1000, 1, 1.0), Point(len(cell.title) / 500, 2, 2.0)]

    run = Cell.run
    monkeypatch.setattr(Cell, "run", launch)
    costs = {name: DeviceCost() for name in NAMES}
    monkeypatch.setattr("mobillm_flower.evaluation.compare.curves.device_costs", lambda *_cells, **_turns: costs)
    return titles


def figures(plan: Plan) -> dict[str, Any]:
    report = cost_to_target(plan, draw_curves(plan, say=lambda _line: None), Link())
    made: dict[str, Any] = json.loads(json.dumps(report.to_dict()))
    return made


def test_a_comparison_is_made_again_from_its_file_without_a_run(tmp_path: Path, asked: list[str]) -> None:
    before = figures(plan(tmp_path / "a"))
    asked.clear()
    again = plan(tmp_path / "b")
    assert restore(before, again) == {"phone-messages": NAMES}
    assert figures(again)["figures"] == before["figures"]
    assert asked == []


def test_results_do_not_tell_where_a_data_set_lies(tmp_path: Path) -> None:
    tasks = [compared_task("sst2_sentences", tmp_path / one) for one in ("here", "there")]
    assert tasks[0].to_dict() == tasks[1].to_dict()
    assert str(tmp_path) not in json.dumps(replace(plan(tmp_path), tasks=tasks).to_dict())


@pytest.mark.parametrize(
    "change",
    [
        {"common": {"backbone.layers": "3"}},
        {"num_devices": 3},
        {"tasks": [replace(compared_task("phone-messages"), num_train=10)]},
        {"methods": [replace(one, settings={**one.settings, "rounds.seed": "1"}) for one in methods(3, NAMES)]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_was_run_otherwise_is_not_taken_over(tmp_path: Path, asked: list[str], change: dict[str, Any]) -> None:
    before = figures(plan(tmp_path / "a"))
    assert asked
    assert restore(before, replace(plan(tmp_path / "b"), **change)) == {}
