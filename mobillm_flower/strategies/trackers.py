"""Metrics where people look: a run's events as curves in TensorBoard, MLflow, Weights & Biases."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from mobillm_flower.config import Settings
from mobillm_flower.config.describe import setting_values
from mobillm_flower.core.registry import Registry
from mobillm_flower.errors import UnsupportedError
from mobillm_flower.runs import events
from mobillm_flower.runs.folder import RunFolder

logger = logging.getLogger("flwr")


class Tracker(Protocol):
    """Where metrics go; made with the run's folder and its settings by dotted key."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None: ...

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take metrics of a round or of a training step."""

    def close(self) -> None:
        """End: the run is over."""


TRACKERS: Registry[type[Tracker]] = Registry("tracker")
"""Trackers by the names that `run.trackers` may hold."""


@TRACKERS.register("tensorboard")
class TensorBoard:
    """Event files in the run's folder, under tensorboard/."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        with _extra("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter
        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))
        self._writer.add_text("settings", "  \n".join(f"{key}: {value}" for key, value in settings.items()))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See `Tracker`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """See `Tracker`."""
        self._writer.close()


@TRACKERS.register("mlflow")
class MLflow:
    """A run of MLflow's experiment mobillm-flower, at MLFLOW_TRACKING_URI or in the run's folder under mlruns/."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        with _extra("mlflow"):
            import mlflow
        import os

        if not os.environ.get("MLFLOW_TRACKING_URI"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # it asks for a database otherwise
        self._client: Any = mlflow.MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or f"{folder / 'mlruns'}")
        named = self._client.get_experiment_by_name("mobillm-flower")
        experiment = named.experiment_id if named else self._client.create_experiment("mobillm-flower")
        self._run = self._client.create_run(experiment, run_name=folder.name).info.run_id
        for key, value in settings.items():
            self._client.log_param(self._run, key, str(value)[:500])

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See `Tracker`."""
        for name, value in values.items():
            self._client.log_metric(self._run, name, value, step=step)

    def close(self) -> None:
        """See `Tracker`."""
        self._client.set_terminated(self._run)


@TRACKERS.register("wandb")
class WeightsAndBiases:
    """A run of the project mobillm-flower; WANDB_MODE and its other variables hold."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        with _extra("wandb"):
            import wandb
        self._run: Any = wandb.init(
            project="mobillm-flower", name=folder.name, dir=str(folder), config=dict(settings), reinit=True
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See `Tracker`: epochs count steps, all else rounds, and W&B has one axis; so each value goes with its own."""
        self._run.log({**values, "step": step})

    def close(self) -> None:
        """See `Tracker`."""
        self._run.finish()


def values_of(event: events.Event) -> tuple[dict[str, float], int] | None:
    """Return an event's metrics by name, and its round or step; None where it has none."""
    values: dict[str, Any]
    match event:
        case events.Round():
            values = {"samples-held": event.num_held, "cache-bytes": event.cache_bytes, **event.metrics}
            step, prefix = event.round, "server"
        case events.Epoch():
            values = {"loss": event.validation_loss, "accuracy": event.validation_accuracy}
            step, prefix = event.step, "validation"
        case events.Evaluation():
            values, step, prefix = dict(event.metrics), event.round, "devices"
        case events.ServerEvaluation():
            values, step, prefix = dict(event.metrics), event.round, "server-evaluation"
        case events.Work():
            values, step, prefix = {"loss": event.loss, "seconds": event.seconds}, event.round, "device-work"
        case _:
            return None
    numbers = {f"{prefix}/{name}": float(value) for name, value in events.figures(values).items()}
    return (numbers, step) if numbers else None


@contextlib.contextmanager
def tracked(folder: RunFolder, settings: Settings) -> Iterator[None]:
    """Hand each event's metrics inside to the trackers of `run.trackers`; one that fails is left out.

    Raises
    ------
    SettingsError, UnsupportedError
        A tracker is unknown, or its package is not installed.
    """
    values = setting_values(settings)
    open_: dict[str, Tracker] = {name: TRACKERS[name](folder.path, values) for name in settings.run.trackers}

    def tell(event: events.Event) -> None:
        found = values_of(event)
        if found is None:
            return
        for name in list(open_):
            with _survived(name, open_):
                open_[name].log(*found)

    folder.on_event = tell if open_ else None
    try:
        yield
    finally:
        folder.on_event = None
        for name in list(open_):
            with _survived(name, open_):
                open_[name].close()


@contextlib.contextmanager
def _survived(name: str, trackers: dict[str, Tracker]) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        trackers.pop(name, None)
        logger.warning("run.trackers: %s is left out from here on (%s)", name, type(error).__name__)


@contextlib.contextmanager
def _extra(name: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise UnsupportedError(
            f"run.trackers={name} needs the extra `{name}`: pip install 'mobillm-flower[{name}]'"
        ) from error
