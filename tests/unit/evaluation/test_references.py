"""References of a run that need no run to be checked."""

from __future__ import annotations

import json
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from mobillm_flower import load_settings
from mobillm_flower.cli.watch import Watcher
from mobillm_flower.evaluation import device_cost, references, responses
from mobillm_flower.evaluation.references import confusion, reference_seconds
from mobillm_flower.reports import quality
from mobillm_flower.reports.source import ReportSource
from mobillm_flower.reports.table import results_rows
from mobillm_flower.runs import device_events, events
from mobillm_flower.runs.folder import RunFolder
from mobillm_flower.runs.record import RunRecord
from mobillm_flower.tasks import make_contract
from mobillm_flower.wire.contract import TaskContract
from tests.support.caches import CONTRACT


def test_confusion_counts_true_classes_in_rows_and_predicted_ones_in_columns() -> None:
    predicted = torch.tensor([0, 0, 1, 3, 3, 3])
    scores = torch.nn.functional.one_hot(predicted, 4).float()
    labels = torch.tensor([0, 2, 1, 3, 0, 3])
    assert confusion(scores, labels, CONTRACT) == [[1, 0, 0, 1], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 2]]


def trained_run(path: Path, contract: TaskContract | None = None) -> RunRecord:
    """A run of two windows, whose devices took 3 s, and whose server trained for 100 s in its last session."""
    window: dict[str, Any] = {"window": 4, "samples": 4, "new": 4, "remaining": 0, "refused": 0, "bytes": 9}
    log: list[events.Event] = [
        events.Started("PaeMobiLLM"),
        device_events.Window(1, "a", **window, forward_seconds=1.0),
        device_events.Window(1, "b", **window, forward_seconds=2.0),
        events.Started("PaeMobiLLM"),  # it was interrupted, and went on
        events.Ingested(8, 20, time=1000.0),
        events.Trained(20, 20, time=1100.0),
    ]
    run = RunFolder(path)
    run.side_network.mkdir(parents=True)
    saved = {"format": 1, "contract": json.loads((contract or CONTRACT).to_json())}
    (run.side_network / "config.json").write_text(json.dumps(saved), "utf-8")
    return RunRecord(run, log)


def test_references_are_estimated_from_the_times_of_the_run_itself(tmp_path: Path) -> None:
    run = trained_run(tmp_path)
    assert reference_seconds(run) == {"logistic_regression": 3.0, "centralized": 100.0}
    unfinished = RunRecord(run.folder, run.events[:3])
    assert reference_seconds(unfinished) == {"logistic_regression": 3.0}


@pytest.mark.parametrize(("at_most", "left_out"), [(99.0, {"centralized"}), (100.0, set()), (1.0, None)])
def test_a_reference_that_takes_longer_than_it_may_is_left_out_and_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    at_most: float,
    left_out: set[str] | None,
) -> None:
    passed: dict[str, Any] = {}
    monkeypatch.setattr(references, "measure_references", lambda _path, **given: passed.update(given) or {"tuned": 1.0})
    monkeypatch.setattr(device_cost, "measure_memory", lambda _path: None)
    monkeypatch.setattr(responses, "measure_language", lambda _path, _overrides: {})
    command = import_module("mobillm_flower.cli.run")  # its package names the function the same
    command._references(trained_run(tmp_path), Watcher(quiet=False), nullcontext([]), at_most=at_most)
    assert set(passed["left_out"]) == ({"logistic_regression", "centralized"} if left_out is None else left_out)
    said = capsys.readouterr().err
    assert ("logistic regression (about 3 s)" in said) == (left_out is not None)
    assert ("centralized side-tuning (about 100 s)" in said) == (left_out == set())


def test_references_of_a_regression_are_not_called_those_of_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither while they are measured, nor in a run's table or report, nor beside other methods."""
    numbers = make_contract(load_settings({"task.kind": "regression"}), [])
    monkeypatch.setattr(references, "measure_references", lambda *_, **__: {})
    command = import_module("mobillm_flower.cli.run")
    said = []
    for name, contract in (("a", numbers), ("b", CONTRACT)):
        command._references(trained_run(tmp_path / name, contract), Watcher(quiet=False), nullcontext([]), at_most=9e9)
        said.append(capsys.readouterr().err)
    measured = {
        "metric": "pearson",
        "majority": 0.0,
        "logistic_regression": 0.5,
        "left_out": {"logistic_regression": 9},
    }
    for labels in ({}, {"labels": ["a", "b"]}):
        source = ReportSource(RunRecord(RunFolder(tmp_path / "a"), []), [], {}, {**measured, **labels}, {})
        said.append(str(results_rows(source.run, source.references)) + str(quality.results(source)))
    for words, others in zip(said[::2], said[1::2], strict=True):
        assert ("ridge regression" in words, "logistic" in words) == (True, False)
        assert ("ridge" in others, "logistic regression" in others) == (False, True)
    assert ("mean of the training values" in said[2], "majority" in said[2]) == (True, False)
    assert ("mean of" in said[3], "majority class" in said[3]) == (False, True)


def test_an_epoch_is_shown_with_what_was_measured_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    watcher = Watcher(quiet=False)
    watcher.event(events.Epoch(3, 9, 0.5, 0.75))
    watcher.event(events.Epoch(4, 12))
    said = capsys.readouterr().err
    assert said == "epoch 3: validation loss 0.5000, validation accuracy 0.7500\nepoch 4\n"
