"""What the protocols make of curves: targets, costs, budgets, modelled time."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.comparison.commands import app
from benchmarks.comparison.cost_to_target import cost_to_target
from benchmarks.comparison.quality_under_budget import quality_under_budget
from benchmarks.comparison.tasks import METHODS, compared_task
from benchmarks.overhead.network import _table
from mobillm_flower.config import load_settings
from mobillm_flower.evaluation.compare.cells import Cell, Point
from mobillm_flower.evaluation.compare.cost_to_target import BOTH, Link, reached, wall_seconds
from mobillm_flower.evaluation.compare.costs import DeviceCost
from mobillm_flower.evaluation.compare.curves import Plan, TaskCurves, draw_curves
from mobillm_flower.evaluation.compare.methods import methods
from mobillm_flower.evaluation.compare.task import ComparedTask
from mobillm_flower.reports.comparison import comparison_page

OURS = Point(0.8, 1, 1.0, 100.0, 2e9, 1e6, 3e6, [120], [[2e6, 3e6]], 5.0)
LORA = [
    Point(0.5, 1, 1.0, 100.0, 6e9, 1e6, 2e6, [120], [[1e6, 1e6], [0, 1e6]]),
    Point(0.7, 2, 2.0, 200.0, 12e9, 2e6, 3e6, [120, 120], [[1e6, 1e6], [1e6, 1e6], [0, 1e6]]),
    Point(0.9, 3, 3.0, 300.0, 18e9, 3e6, 4e6, [120, 120, 120], [[1e6, 1e6]] * 3 + [[0, 1e6]]),
]
COSTS = {"pae": DeviceCost(0.01, 10_000_000), "fed-lora": DeviceCost(0.05, 100_000_000)}


def plan(tmp_path: Path) -> Plan:
    return Plan([compared_task("phone-messages")], methods(3, ["pae", "fed-lora"]), [0], ["iid"], 2, {}, 1, tmp_path)


def curves(*central: Point) -> dict[str, TaskCurves]:
    return {
        "t": TaskCurves(
            {}, [list(central)] if central else [], {"iid": {"pae": [[OURS]], "fed-lora": [LORA]}}, COSTS, 0.5
        )
    }


@pytest.mark.parametrize(
    ("method", "best_rate", "tried", "chosen"),
    [
        ("additive", 0.002, ["1e-3", "2e-3", "4e-3"], "2e-3"),
        ("additive", 0.016, ["1e-3", "2e-3", "4e-3", "0.008", "0.016", "0.032"], "0.016"),
        ("additive", 0.0005, ["1e-3", "2e-3", "4e-3", "0.0005", "0.00025"], "0.0005"),
        ("additive", 1.0, ["1e-3", "2e-3", "4e-3", "0.008", "0.016", "0.032"], "0.032"),  # six trials at most
        ("fed-lora", 0.016, ["2e-3", "4e-3", "8e-3"], "8e-3"),  # a trial is shorter than a run
        ("fed-lora", 0.001, ["2e-3", "4e-3", "8e-3", "0.001", "0.0005"], "0.001"),
    ],
)
def test_trials_go_on_while_the_best_is_at_the_edge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, best_rate: float, tried: Any, chosen: str
) -> None:
    asked: list[tuple[str, str]] = []

    def run(cell: Cell, *_folders: object) -> list[Point]:
        rate = cell.settings.get("trainer.learning-rate") or cell.settings["peer.learning-rate"]
        asked.append((cell.held_out, rate))
        return [Point(1 - abs(math.log(float(rate) / best_rate)) / 100, 1, 1.0)]

    monkeypatch.setattr(Cell, "run", run)
    monkeypatch.setattr("mobillm_flower.evaluation.compare.curves.device_costs", lambda *_cells, **_turns: COSTS)
    drawn = draw_curves(replace(plan(tmp_path), methods=methods(3, [method])), say=lambda _line: None)["phone-messages"]
    assert [rate for held_out, rate in asked if held_out == "validation"] == tried
    assert [rate for held_out, rate in asked if held_out == "test"] == [chosen]
    assert [list(one["settings"].values()) for one in drawn.trials[method]["iid"]["trials"]] == [
        [rate] for rate in tried
    ]
    assert drawn.majority == pytest.approx(30 / 440)


def test_the_first_point_at_a_target() -> None:
    assert reached(LORA, 0.7) == LORA[1]
    assert reached(LORA, 0.71) == LORA[2]
    assert reached(LORA, 0.91) is None


def test_modelled_seconds_wait_for_the_slowest_of_every_round() -> None:
    link = Link(up_mbit=8.0, down_mbit=16.0, slowdown=2.0)  # a megabyte: 1 s up, 0.5 s down
    assert wall_seconds(OURS, COSTS["pae"], link) == pytest.approx(2 * 0.01 * 120 + 2.0 + 1.5 + 5.0)
    assert wall_seconds(LORA[1], COSTS["fed-lora"], link) == pytest.approx(2 * 0.05 * 240 + 2 * 1.0 + 3 * 0.5)


def test_costs_at_targets(tmp_path: Path) -> None:
    report = cost_to_target(plan(tmp_path), curves(Point(0.9, 1, 1.0)), Link())
    targets = report.figures["tasks"]["t"]["tables"]["iid"]["targets"]
    assert targets[BOTH]["metric"] == 0.8
    assert targets[BOTH]["costs"]["pae"]["gflops"] == 2.0
    assert targets[BOTH]["costs"]["fed-lora"]["passes"] == 3.0
    assert targets[BOTH]["costs"]["fed-lora"]["seconds"] == pytest.approx(15.0)
    central = targets["95% of LoRA in one place"]
    assert central["metric"] == pytest.approx(0.855)
    assert central["costs"]["pae"] is None
    assert central["costs"]["fed-lora"]["peak_mb"] == 100.0
    rows = {table.title: table.rows for table in report.tables}
    assert ["pae", "not reached", *[""] * 6] in rows["t, iid: what 0.8550 (95% of LoRA in one place) costs a device"]
    json.dumps(report.to_dict())


def test_without_a_ceiling_there_is_no_target_of_its_share(tmp_path: Path) -> None:
    report = cost_to_target(plan(tmp_path), curves(), Link())
    assert len(report.figures["tasks"]["t"]["tables"]["iid"]["targets"]) == 2


def test_quality_under_budgets(tmp_path: Path) -> None:
    report = quality_under_budget(plan(tmp_path), curves())
    tables = report.figures["tasks"]["t"]["tables"]["iid"]
    assert tables["megabytes"][1] == {"pae": None, "fed-lora": None}
    assert tables["megabytes"][10] == {"pae": 0.8, "fed-lora": 0.9}
    assert tables["forward_passes"] == {
        1: {"pae": 0.8, "fed-lora": None},
        3: {"pae": 0.8, "fed-lora": 0.5},
        10: {"pae": 0.8, "fed-lora": 0.9},
    }
    assert report.tables[0].rows[0][1] == "nothing"


def test_a_forward_pass_is_each_seeds_own(tmp_path: Path) -> None:
    found = curves()
    seeds: Any = found["t"].partitions["iid"]
    seeds["pae"].append([replace(OURS, flops=1.1 * OURS.flops)])
    seeds["fed-lora"].append(LORA)
    tables = quality_under_budget(plan(tmp_path), found).figures["tasks"]["t"]["tables"]["iid"]
    assert tables["forward_passes"][1] == {"pae": 0.8, "fed-lora": None}


def test_a_page_of_a_protocol(tmp_path: Path) -> None:
    report = cost_to_target(plan(tmp_path), curves(), Link())
    page = comparison_page(report.bench, report, report.to_dict())
    assert page.count("<table") == len(report.tables)
    assert page.count("<svg") == 1
    assert "0.8000" in page
    assert "http" not in page.split("<style>")[1].split("</style>")[1].replace("http://www.w3.org", "")


def test_every_method_with_a_learning_rate_has_as_many_trials() -> None:
    made = {method.name: method for method in methods(9, METHODS)}
    assert list(made) == list(METHODS)
    assert made.pop("pae").trials == [{}]
    assert {len(method.trials) for method in made.values()} == {3}
    assert {len(method.trials) for method in methods(9, METHODS, trials=False)} == {1}


@pytest.mark.parametrize("name", METHODS)
def test_settings_of_a_method_are_settings(tmp_path: Path, name: str) -> None:
    (method,) = methods(9, [name])
    for trial in method.trials:
        words = {**method.settings, **trial}
        cell = Cell(compared_task("phone-messages"), name, "alpha=0.1", 1, 4, "validation", words)
        found = load_settings(overrides=cell.words(tmp_path))
        assert (found.data.num_devices, found.data.alpha, found.run.seed) == (4, 0.1, 1)
        assert found.strategy == {"central-lora": "fed-lora", "upper-layers": "pae", "additive": "pae"}.get(name, name)


def test_a_cell_is_known_by_everything_that_shapes_it() -> None:
    cell = Cell(compared_task("phone-messages"), "pae", "iid", 0, 4, "test", {"a": "1"})
    others = [
        Cell(ComparedTask("phone-messages", {}, 600, 200), "pae", "iid", 0, 4, "test", {"a": "1"}),
        Cell(cell.task, "fed", "iid", 0, 4, "test", {"a": "1"}),
        Cell(cell.task, "pae", "alpha=0.1", 0, 4, "test", {"a": "1"}),
        Cell(cell.task, "pae", "iid", 1, 4, "test", {"a": "1"}),
        Cell(cell.task, "pae", "iid", 0, 5, "test", {"a": "1"}),
        Cell(cell.task, "pae", "iid", 0, 4, "validation", {"a": "1"}),
        Cell(cell.task, "pae", "iid", 0, 4, "test", {"a": "2"}),
    ]
    assert len({cell.key(), *(other.key() for other in others)}) == 8
    assert Cell(cell.task, "pae", "iid", 0, 4, "test", {"a": "1"}).key() == cell.key()


def test_validation_rows_are_not_trained_on(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    task = compared_task("phone-messages")
    folders = {held: task.write(tmp_path, held_out=held) for held in ("validation", "test")}
    rows = {
        held: {split: pq.read_table(folder / f"{split}.parquet").to_pylist() for split in ("train", "test")}
        for held, folder in folders.items()
    }
    texts = {held: {split: {row["text"] for row in found} for split, found in of.items()} for held, of in rows.items()}
    assert len(rows["validation"]["train"]) == task.num_train
    assert len(rows["validation"]["test"]) == task.num_validation
    assert texts["validation"]["train"] == texts["test"]["train"]
    assert not texts["validation"]["train"] & texts["validation"]["test"]
    assert not texts["validation"]["test"] & texts["test"]["test"]


def test_transmission_is_hidden_behind_computing_only_where_it_is_shorter() -> None:
    rows = [{"batch": 16, "bytes": {"all": 1_000_000}, "seconds": {"plain": [1.0], "lora": [4.0]}}]
    found = _table("all", rows, [1, 100], slowdown=1.0).rows[0]
    assert found == ["16", "1,000", "1.00", "4.00", "2", "8.00", "9.00", "1.00", "1.08"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cost-to-target", "--tasks", "sst3"], "'sst3' is none of phone-messages"),
        (["cost-to-target", "--tasks", "mrpc"], "mrpc needs --data"),
        (["quality-under-budget", "--methods", "fedprox"], "'fedprox' is none of pae"),
        (["memory", "--sides", "plain,adapters"], "'adapters' is none of plain, ours"),
        (["memory", "--batches", "1,x"], "'1,x' must be whole numbers"),
    ],
)
def test_bad_words_are_refused(words: list[str], message: str) -> None:
    answer = CliRunner().invoke(app, [*words])
    assert answer.exit_code == 2
    assert message in " ".join(answer.output.replace("│", " ").split())
