"""Seconds and peak memory of a device's work in a comparison, measured by itself, away from the runs.

A run's own seconds depend on what else its machine does, and devices of a simulation share it. So the work of one
device over its samples is measured in fresh processes, one thread each, in turns.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from mobillm_flower.config import load_settings, to_yaml
from mobillm_flower.evaluation.compare.cells import SIDE_TUNING, Cell
from mobillm_flower.evaluation.device_cost import can_measure, peak_bytes, work_seconds
from mobillm_flower.runs.folder import RunFolder

SIDES: Mapping[str, str] = {
    **dict.fromkeys(SIDE_TUNING, "ours"),
    "fed-lora": "lora",
    "fed-bitfit": "bitfit",
    "fed-kseed": "kseed",
    "split-fed": "split",
}
"""A method's work on a device, by its name in `mobillm_flower.evaluation.device_cost.SIDES`; the others have none."""


@dataclass(frozen=True)
class DeviceCost:
    """What a device's work costs on the machine at hand, with one thread.

    Parameters
    ----------
    seconds_a_sample : float
        Median over the repetitions.
    peak_bytes : int or None
        Above the loaded model, median; None where it cannot be measured.
    seconds, peaks : sequence
        All repetitions, of `num_samples` samples each.
    num_samples : int
        Samples of a repetition.
    """

    seconds_a_sample: float = 0.0
    peak_bytes: int | None = 0
    seconds: Sequence[float] = ()
    peaks: Sequence[int] = ()
    num_samples: int = 0


def device_costs(cells: Mapping[str, Cell], work: Path, *, turns: int) -> dict[str, DeviceCost]:
    """Measure each method's work on a device with its share of the task's rows, unless that was done before.

    Parameters
    ----------
    cells : mapping
        A cell by method, all of one task.
    work : Path
        As in `Cell.run`; what was measured is kept there.
    turns : int
        Repetitions; the methods take turns.
    """
    result = {name: DeviceCost() for name in cells if name not in SIDES}
    folders: dict[str, Path] = {}
    for name, cell in cells.items():
        if name in SIDES:
            text = to_yaml(load_settings(overrides=cell.words(work)))
            folders[name] = work / "costs" / hashlib.sha256(f"{text}{turns}".encode()).hexdigest()[:16]
            folders[name].mkdir(parents=True, exist_ok=True)
            RunFolder(folders[name]).settings.write_text(text, "utf-8")
    missing = {name: folder for name, folder in folders.items() if not (folder / "cost.json").exists()}
    seconds: dict[str, list[float]] = {name: [] for name in missing}
    peaks: dict[str, list[int]] = {name: [] for name in missing}
    for _ in range(turns):
        for name, folder in missing.items():
            rows = _share(cells[name])
            seconds[name].append(work_seconds(folder, SIDES[name], num_samples=rows, num_threads=1))
            if can_measure():
                peaks[name].append(peak_bytes(folder, SIDES[name], num_samples=rows, num_threads=1))
    for name, folder in missing.items():
        rows = _share(cells[name])
        peak = int(median(peaks[name])) if peaks[name] else None
        cost = DeviceCost(median(seconds[name]) / rows, peak, seconds[name], peaks[name], rows)
        (folder / "cost.json").write_text(json.dumps(asdict(cost)), "utf-8")
    for name, folder in folders.items():
        result[name] = DeviceCost(**json.loads((folder / "cost.json").read_text("utf-8")))
    return result


def _share(cell: Cell) -> int:
    most = int(cell.task.settings.get("data.max-samples", "0"))
    share = max(1, cell.task.num_train // cell.num_devices)
    return min(share, most) if most else share
