"""A run's events as metrics in TensorBoard, in MLflow's file store, and in a tracker of one's own."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mobillm_flower.config import load_settings
from mobillm_flower.errors import SettingsError, UnsupportedError
from mobillm_flower.runs import events
from mobillm_flower.strategies import PaeMobiLLM
from mobillm_flower.strategies.lifecycle import running
from mobillm_flower.strategies.trackers import TRACKERS, values_of

GRID: Any = SimpleNamespace(run=SimpleNamespace(run_id=7))
FOLLOWED = [
    events.Round(1, num_examples=8, num_held=8, cache_bytes=64, metrics={"seconds": 1.5, "note": "a word"}),
    events.Epoch(1, 10, validation_loss=0.5, validation_accuracy=None),
    events.Evaluation(1, 12, 2, {"accuracy": 0.25}),
    events.Evaluation(2, 12, 2, {"accuracy": 0.75}),
]


def follow(folder: Path, trackers: str) -> None:
    with running(load_settings({"run.trackers": trackers}), folder, GRID, strategy="Own") as started:
        for event in FOLLOWED:
            started.folder.append(event)


def test_tensorboard_has_every_curve(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    follow(tmp_path, "tensorboard")
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert [(one.step, one.value) for one in read.Scalars("devices/accuracy")] == [(1, 0.25), (2, 0.75)]
    assert [(one.step, one.value) for one in read.Scalars("validation/loss")] == [(10, 0.5)]
    assert set(read.Tags()["scalars"]) == {
        "devices/accuracy",
        "validation/loss",
        "server/samples-held",
        "server/cache-bytes",
        "server/seconds",
    }


def test_mlflow_s_file_store_has_every_curve_and_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    follow(tmp_path / "run", "mlflow")
    client = mlflow.MlflowClient(str(tmp_path / "run" / "mlruns"))
    (run,) = client.search_runs([client.get_experiment_by_name("mobillm-flower").experiment_id])
    assert (run.info.status, run.data.params["trainer.epochs"]) == ("FINISHED", "20")
    history = client.get_metric_history(run.info.run_id, "devices/accuracy")
    assert [(one.step, one.value) for one in history] == [(1, 0.25), (2, 0.75)]


def test_wandb_gets_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[Any] = []
    made = SimpleNamespace(log=got.append, finish=lambda: got.append("finished"))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **options: got.append(options) or made))  # type: ignore[func-returns-value]
    follow(tmp_path / "run", "wandb")
    assert (got[0]["name"], got[0]["config"]["trainer.epochs"], got[-1]) == ("run", 20, "finished")
    assert got[-2] == {"devices/accuracy": 0.75, "step": 2}


class _Failing:
    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None: ...

    def log(self, values: Mapping[str, float], step: int) -> None:
        raise ConnectionError("of the far side")

    def close(self) -> None:
        raise AssertionError("it was left out")


def test_one_that_fails_is_left_out_and_the_run_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    if "failing" not in TRACKERS:
        TRACKERS.add("failing", _Failing)
    logging.getLogger("flwr").addHandler(caplog.handler)
    follow(tmp_path, "failing")
    logging.getLogger("flwr").removeHandler(caplog.handler)
    said = {text for text in caplog.messages if text.startswith("run.trackers")}
    assert said == {"run.trackers: failing is left out from here on (ConnectionError)"}


def test_what_is_unknown_or_not_installed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="unknown tracker 'tensorbord'; did you mean 'tensorboard'"):
        PaeMobiLLM(load_settings({"run.trackers": "tensorbord"}))
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UnsupportedError, match=r"run\.trackers=wandb needs the extra `wandb`: pip install"):
        follow(tmp_path, "wandb")


def test_events_without_a_number_have_no_metrics() -> None:
    assert values_of(events.Started("Own")) is None
    assert values_of(events.Epoch(1, 10)) is None
