"""What report, list of the cache and predictions show of tasks one after another, and the example."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mobillm_flower import SideTunedModel
from mobillm_flower.errors import UnsupportedError
from mobillm_flower.reports.html import write_report
from mobillm_flower.reports.table import results_rows
from mobillm_flower.runs import events
from mobillm_flower.runs.record import read_run
from tests.support.cli import lines, parsed, refused
from tests.support.pages import ROOT
from tests.support.task_runs import SOLVED, TASKS, rows, run
from tests.support.tiny_models import save_tiny


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("backbone"), "bert")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, backbone: Path) -> Path:
    """Two runs, of which the first one's samples are gone; what the machine of a simulation measures stands beside."""
    folder = tmp_path_factory.mktemp("finished")
    way = {**SOLVED, "continual__method": "closed-form", "continual__keep": "sums"}
    run(folder / "mood", backbone, "mood", **way)
    run(folder / "topic", backbone, "topic", continual__after=str(folder / "mood"), **{**way, "continual__keep": "all"})
    references = {"metric": "accuracy", "num_test": 9, "num_train": 72, "tuned": 0.9}
    (folder / "mood" / "results.json").write_text(json.dumps({"references": references}), "utf-8")
    earlier = {"task": "mood", "metric": "accuracy", "num_test": 9, "known": 0.85, "unknown": 0.5}
    references |= {"tuned": 0.7, "task_unknown": 0.6, "tasks": [earlier]}
    (folder / "topic" / "results.json").write_text(json.dumps({"references": references}), "utf-8")
    return folder


def test_the_report_of_the_last_run_shows_the_sequence(finished: Path) -> None:
    page = write_report(finished / "topic").read_text("utf-8")
    shown = page[page.index("Tasks one after another") :]
    for figure in ("0.8500", "0.9000", "-0.0500", "0.7750", "mood 0.0500"):  # a[2,1], a[1,1], BWT, AA, forgetting
        assert figure in shown
    assert "one after another, by closed-form; 5 classes in all" in shown
    assert "Tasks one after another" not in write_report(finished / "mood").read_text("utf-8")
    table = {what: (figure, remark) for what, figure, remark in results_rows(read_run(finished / "topic"), {})}
    assert table["kept for the next task"][0] == "72 samples"
    references = json.loads((finished / "topic" / "results.json").read_text("utf-8"))["references"]
    table = {what: (figure, remark) for what, figure, remark in results_rows(read_run(finished / "topic"), references)}
    assert table["accuracy, task unknown"][0] == "0.6000"
    assert table["accuracy on mood"] == ("0.8500", "task unknown 0.5000; 9 samples; 0.9000 when it was learned")


def test_the_report_says_what_it_cannot_know_when_an_earlier_run_is_gone(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "topic", tmp_path / "topic")
    log = tmp_path / "topic" / "events.jsonl"
    log.write_text(log.read_text("utf-8").replace(str(finished), str(tmp_path)), "utf-8")
    (tmp_path / "topic" / "results.json").unlink()
    page = write_report(tmp_path / "topic").read_text("utf-8")
    assert "Average accuracy and forgetting are not known" in page


def test_the_list_of_the_cache_says_what_was_deleted_of_each_task(finished: Path) -> None:
    said = lines("cache", "ls", finished / "topic")
    assert "task mood: 0 samples; 72 were deleted when it was learned (continual.keep=sums)" in said
    assert "task topic: 72 samples" in said
    listed = parsed("cache", "ls", finished / "topic")
    assert listed["tasks"] == ["mood", "topic"]
    assert listed["deleted"] == {"mood": {"keep": "sums", "deleted": 72}}
    assert {device["task"] for device in listed["devices"]} == {"topic"}


def test_predictions_of_a_named_task_and_of_all(finished: Path) -> None:
    text = rows("mood", 1, 2)[0]["text"]
    known = parsed("predict", finished / "topic", "--task", "mood", "--text", text)
    assert known[0]["label"] in TASKS["mood"]
    together = parsed("predict", finished / "topic", "--text", text)
    task, label = together[0]["label"].split(": ")
    assert label in TASKS[task]
    assert "no task is called 'mod'" in refused("predict", finished / "topic", "--task", "mod", "--text", text)
    assert "give --task, one of mood, topic" in refused("predict", finished / "topic", "--base", "--text", text)


def test_tasks_that_read_texts_differently_must_be_known(tmp_path: Path, backbone: Path) -> None:
    run(tmp_path / "mood", backbone, "mood")
    run(tmp_path / "topic", backbone, "topic", continual__after=str(tmp_path / "mood"), task__max_length=12)
    evaluation = read_run(tmp_path / "topic").last(events.Evaluation)
    assert evaluation is not None
    assert set(evaluation.metrics) == {"accuracy"}
    model = SideTunedModel.from_pretrained(tmp_path / "topic" / "side_network")
    with pytest.raises(UnsupportedError, match="mood, topic read texts in different ways"):
        model.for_task("")
    assert model.for_task("mood").contract.max_length == 16


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_example_learns_three_tasks(tmp_path: Path) -> None:
    """In Flower's simulation, on a few messages; the last report has what was measured after each task."""
    backbone = save_tiny(tmp_path / "backbone", "bert")
    command = [sys.executable, str(ROOT / "examples" / "continual" / "run.py"), "--out", str(tmp_path / "runs")]
    words = [f"backbone.name={backbone}", "data.num-devices=2", "data.max-samples=20", "task.max-length=16"]
    command += [part for word in words for part in ("-c", word)]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600)
    assert made.returncode == 0, made.stderr[-2000:]
    for row in ("accuracy, task unknown", "accuracy on intent", "accuracy on time"):
        assert row in made.stdout
    page = (tmp_path / "runs" / "form" / "report.html").read_text("utf-8")
    assert "average after the last task" in page
    assert "weights equal to centralized" in made.stdout
