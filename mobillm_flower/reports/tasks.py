"""Tasks one after another: what a sequence of runs learned, forgot and kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mobillm_flower.core.task_sequence import SequenceMeasures
from mobillm_flower.reports.markup import Markup, element, join, matrix, paragraph, table
from mobillm_flower.reports.source import ReportSource
from mobillm_flower.reports.units import bytes_text
from mobillm_flower.runs.devices import device_records
from mobillm_flower.runs.events import Evaluation, Prepared, TaskBegun, TaskKept
from mobillm_flower.runs.record import RunRecord
from mobillm_flower.runs.sequence import runs_before

_NONE = "–"
Accuracies = dict[str, tuple[float | None, float | None]]
"""By task: with the task known, and with it unknown."""


def tasks(source: ReportSource) -> Markup | None:
    """Return the sequence of runs that this one goes on with; None where it goes on with none."""
    begun = source.run.last(TaskBegun)
    if begun is None:
        return None
    runs = [*runs_before(source.run), (begun.task, source.run)]
    names = [name for name, _ in runs]
    measured = [_accuracies(name, run, source.references if run is source.run else None) for name, run in runs]
    parts = [
        paragraph(
            f"The side network learned {len(runs)} tasks, one after another, by {begun.method}; "
            f"{begun.classes:,} classes in all."
        ),
        _matrix(names, measured, known=True),
        _matrix(names, measured, known=False),
        _summary(measured, names),
        _costs(runs),
        _ranks(names, source.run),
    ]
    return join(*[part for part in parts if part])


def task_rows(run: RunRecord, references: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return rows of the results table: this run's task with the task unknown, and each earlier task now."""
    rows = []
    if references.get("task_unknown") is not None:
        rows.append(("accuracy, task unknown", f"{references['task_unknown']:.4f}", "among the classes of all tasks"))
    before = dict(runs_before(run))
    for task in references.get("tasks", []):
        unknown = "" if task["unknown"] is None else f"task unknown {task['unknown']:.4f}; "
        earlier = before.get(task["task"])
        then = _accuracies(task["task"], earlier, None).get(task["task"], (None, None))[0] if earlier else None
        remark = f"{unknown}{task['num_test']:,} samples"
        remark += "" if then is None else f"; {then:.4f} when it was learned"
        rows.append((f"{task['metric']} on {task['task']}", f"{task['known']:.4f}", remark))
    kept = run.last(TaskKept)
    if kept:
        remark = f"{bytes_text(kept.bytes)} ({kept.keep}); {kept.deleted:,} samples of the task are deleted"
        rows.append(("kept for the next task", f"{kept.samples:,} samples", remark))
    return rows


def _accuracies(name: str, run: RunRecord | None, references: Mapping[str, Any] | None) -> Accuracies:
    """Return what was measured after a run, on its own task and on those before; what is not known is left out."""
    if run is None:
        return {}
    if references is None:
        references = _references(run)
    known, unknown = references.get("tuned"), references.get("task_unknown")
    evaluation = run.last(Evaluation)
    if known is None and evaluation:  # on the devices' own test samples
        metrics = dict(evaluation.metrics)
        unknown = metrics.pop("accuracy-task-unknown", None)
        known = next(iter(metrics.values()), None)
    earlier = {task["task"]: (task["known"], task["unknown"]) for task in references.get("tasks", [])}
    return {**earlier, name: (known, unknown)}


def _references(run: RunRecord) -> Mapping[str, Any]:
    try:
        values = json.loads(run.folder.results.read_text("utf-8"))
        return values["references"] if isinstance(values["references"], dict) else {}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def _matrix(names: list[str], measured: list[Accuracies], *, known: bool) -> Markup:
    """Return what was measured after each task on each task."""
    what = "the task of each text known" if known else "its task unknown: the classes of all tasks so far together"
    place = 0 if known else 1
    values = [[row.get(name, (None, None))[place] for name in names] for row in measured]
    if not any(value is not None for line in values for value in line):
        return Markup()
    caption = f"Metric on held-out samples, {what}: after the row's task, on the column's"
    return matrix(caption, ("after ↓", "on →"), names, [map(_cell, line) for line in values])


def _cell(value: float | None) -> Markup:
    if value is None:
        return element("td", _NONE, class_="right")
    return element("td", f"{value:.4f}", class_="right", style=f"--share:{min(1.0, max(0.0, value)):.2f}")


def _summary(measured: list[Accuracies], names: list[str]) -> Markup:
    """Return average accuracy, backward transfer and forgetting, where every task was measured after every run."""
    rows = []
    for what, place in (("task known", 0), ("task unknown", 1)):
        values = [[row.get(name, (None, None))[place] for name in names[: i + 1]] for i, row in enumerate(measured)]
        numbers = [[value for value in line if value is not None] for line in values]
        if any(len(line) != i + 1 for i, line in enumerate(numbers)):
            continue
        sums = SequenceMeasures.of(numbers)
        forgot = ", ".join(f"{name} {value:.4f}" for name, value in zip(names, sums.forgetting, strict=False))
        rows.append((what, f"{sums.average:.4f}", f"{sums.backward_transfer:+.4f}", forgot or _NONE))
    if not rows:
        return paragraph(
            "Average accuracy and forgetting are not known: earlier tasks are measured again where all texts are on "
            "this machine and the folders of the earlier runs are there."
        )
    heads = ("", "average after the last task", "backward transfer", "forgetting, by task")
    return table("What is left of all tasks", heads, rows, numeric=(1, 2))


def _costs(runs: list[tuple[str, RunRecord | None]]) -> Markup:
    """Return what each task cost and left."""
    rows = []
    for name, run in runs:
        if run is None:
            rows.append((name, *[_NONE] * 5))
            continue
        prepared, kept, devices = run.last(Prepared), run.last(TaskKept), device_records(run)
        down = [device.bytes_down for device in devices if device.bytes_down is not None]
        rows.append(
            (
                name,
                f"{len(devices):,}",
                f"{prepared.parameters:,}" if prepared else _NONE,
                bytes_text(sum(down) / len(down)) if down else _NONE,
                kept.keep if kept else "all",
                f"{kept.deleted:,}" if kept else "0",
            )
        )
    heads = ("task", "devices", "trained parameters", "bytes down, a device", "kept", "samples deleted")
    return table("What each task cost, and what was kept of it", heads, rows, numeric=(1, 2, 3, 5))


def _ranks(names: list[str], run: RunRecord) -> Markup:
    """Return how many dimensions of each task's adapters act in each block; nothing where tasks have no adapters."""
    kept = run.last(TaskKept)
    if kept is None or not kept.ranks:
        return Markup()
    heads = ("adapters of", *(f"block {number + 1}" for number in range(len(kept.ranks[0]))))
    rows = [(name, *map(str, ranks)) for name, ranks in zip(names, kept.ranks, strict=False)]
    return table("Effective ranks: dimensions that act", heads, rows, numeric=tuple(range(1, len(heads))))
