"""What a report is made from: the files of a run's folder, and nothing else."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mobillm_flower.config import flat
from mobillm_flower.config.describe import describe_settings
from mobillm_flower.errors import RunFailed
from mobillm_flower.runs.devices import DeviceRecord, device_records
from mobillm_flower.runs.record import RunRecord, read_run


@dataclass(frozen=True)
class ReportSource:
    """A run's folder as it was read.

    Parameters
    ----------
    run : RunRecord
        events.jsonl.
    devices : list of DeviceRecord
        Added up from the events.
    settings : dict
        settings.yaml by dotted key in kebab-case; empty where it is not there.
    references : dict
        What `measure_references` measured, from the results.json of a completed run; may be empty.
    side_network : dict
        side_network/config.json of a completed run; may be empty.
    audit : dict
        audit.json, which `mobillm audit` wrote; may be empty.
    """

    run: RunRecord
    devices: list[DeviceRecord]
    settings: dict[str, Any]
    references: dict[str, Any]
    side_network: dict[str, Any]
    audit: dict[str, Any] = field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        """Class names of the task contract; empty for regression, and while they are not known."""
        return list(self.side_network.get("contract", {}).get("labels") or self.setting("task.labels") or [])

    @property
    def is_regression(self) -> bool:
        """Whether the target is a number."""
        if "contract" in self.side_network:
            return not self.side_network["contract"]["labels"] and not self.predicts_tokens
        return bool(self.setting("task.kind") == "regression")

    @property
    def predicts_tokens(self) -> bool:
        """Whether the task is language modelling."""
        if "contract" in self.side_network:
            return bool(self.side_network["contract"].get("per_token"))
        return bool(self.setting("task.kind") == "language-modelling")

    def setting(self, key: str) -> Any:
        """Return a setting of the run, or its default where settings.yaml does not say."""
        if key in self.settings:
            return self.settings[key]
        return next((known.default for known in describe_settings() if known.key == key), None)

    def reference(self, name: str) -> float | None:
        """Return a measured figure, or None where it was not measured or is no number."""
        value = self.references.get(name)
        return value if isinstance(value, int | float) and math.isfinite(value) else None


def read_source(path: str | Path) -> ReportSource:
    """Read a run's folder.

    What an earlier session of the same folder measured or saved is left aside while a run is not completed.

    Raises
    ------
    RunFailed
        The folder holds no events, or one of its files is damaged.
    """
    run = read_run(path)
    completed = run.outcome == "completed"
    results = _json(run.folder.results) if completed else {}
    return ReportSource(
        run=run,
        devices=device_records(run),
        settings=_settings(run.folder.settings),
        references=results.get("references") or {},
        side_network=_json(run.folder.side_config) if completed else {},
        audit=_json(run.folder.audit),
    )


def _settings(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        nested = OmegaConf.to_container(OmegaConf.load(file))
        return {key.replace("_", "-"): value for key, value in flat(nested if isinstance(nested, dict) else {}).items()}
    except Exception as error:  # yaml's own errors have no base that omegaconf exports
        raise RunFailed(f"{file} is no readable YAML; put the run's own file back, or move it away") from error


def _json(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        values = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise RunFailed(f"{file} is no readable JSON; move it away to make the report without it") from error
    if not isinstance(values, dict):
        raise RunFailed(f"{file} holds no JSON object; move it away to make the report without it")
    return values
