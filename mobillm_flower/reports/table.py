"""The results table of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mobillm_flower.reports.tasks import task_rows
from mobillm_flower.reports.units import bytes_text
from mobillm_flower.runs import device_events, events
from mobillm_flower.runs.devices import DeviceRecord, device_records
from mobillm_flower.runs.record import RunRecord
from mobillm_flower.tasks.metrics import SMALLER_IS_BETTER
from mobillm_flower.wire.left_out import left_out_text

Row = tuple[str, str, str]
_MAX_REMARK = 300  # characters of what devices say

_ON_THE_WHOLE = {"tuned": "side-tuned", "centralized": "centralized", "logistic_regression": "", "base": "alone"}


def reference_names(*, numbers: bool) -> dict[str, str]:
    """Return what is measured of a run, by its key in the results, as it is called; `numbers`: of a regression."""
    return {
        "tuned": "side-tuned",
        "base": "backbone alone",
        "majority": "mean of the training values" if numbers else "majority class",
        "logistic_regression": "ridge regression" if numbers else "logistic regression",
        "centralized": "centralized side-tuning",
    }


def has_numbers(references: Mapping[str, Any]) -> bool:
    """Whether references are those of a regression; they name no classes then."""
    return "labels" not in references


def results_rows(run: RunRecord, references: dict[str, Any]) -> list[Row]:
    """Return (what, figure, remark) rows: the metric beside its references, bytes, seconds, memory.

    Parameters
    ----------
    run : RunRecord
        The run.
    references : dict
        From `mobillm_flower.evaluation.references.measure_references`; may lack entries that were not measured.
    """
    rows = _reference_rows(references)

    def add(what: str, figure: str, remark: str = "") -> None:
        rows.append((what, figure, remark))

    evaluation = run.last(events.Evaluation)
    if evaluation:
        on = f"{evaluation.num_examples} samples, {evaluation.devices} devices"
        for name, value in events.figures(evaluation.metrics).items():
            add(f"{name}, on the devices", f"{value:.4f}", on)
    held = run.session.last(events.HeldOut)
    if held:
        for name, value in held.metrics.items():
            add(f"{name}, held out", f"{value:.4f}", f"{held.samples:,} samples that {held.devices} devices left out")
    rows += _type_rows(run, references)
    rows += task_rows(run, references)
    prepared = run.last(events.Prepared)
    guarantee = prepared.guarantee if prepared else {}
    if guarantee and (guarantee["epsilon"] is not None or guarantee["parts"]):
        add("privacy of a sample", *_privacy(guarantee))
    devices = device_records(run)
    rows += _cost_rows(run, devices, references)
    trained, finished = run.last(events.Trained), run.session.last(events.Finished)
    if trained and trained.solved:
        add(
            "side network",
            "solved",
            "in closed form" + (f", {trained.epochs} times as samples came" if trained.epochs > 1 else ""),
        )
    elif trained:
        add("server steps", f"{trained.steps:,}", f"{trained.epochs} epochs from the cache")
    if finished:
        add("run", f"{finished.seconds:.0f} s", finished.outcome)
    if again := run.session.all(events.StartedAgain):
        add("started again", again[-1].what, str(again[-1]))
    rows += _left_out_rows(run)
    troubled = [device for device in devices if device.troubled]
    if troubled:
        add("devices with trouble", str(len(troubled)), f"see {run.folder.events.name}")
    return rows


def _reference_rows(references: dict[str, Any]) -> list[Row]:
    """Return the metric of the side network and of what it is measured beside."""
    metric = references.get("metric", "metric")
    rows: list[Row] = []

    def add(what: str, figure: str, remark: str = "") -> None:
        rows.append((what, figure, remark))

    gathered = f"last layer's mean, {references.get('num_train', 0):,} texts in one place"
    held_out = f"{references['num_test']:,} held-out samples" if "num_test" in references else ""
    if "types" in references:  # each on all held-out samples
        held_out += f"; here and below, the mean of {len(references['types'])} backbone types"
    remarks = {
        "tuned": held_out,
        "base": "before training: its own prediction, or a constant",
        "logistic_regression": gathered,
        "centralized": "same cache and schedule, no Flower",
    }
    names = reference_names(numbers=has_numbers(references))
    for key, what in names.items():
        if references.get(key) is not None:
            add(f"{metric}, {what}", f"{references[key]:.4f}", remarks.get(key, ""))
    for key, seconds in references.get("left_out", {}).items():
        add(
            names.get(key, key),
            "left out",
            f"about {seconds:.0f} s, longer than the run; mobillm run --references measures it",
        )
    if "identical" in references:
        add("weights equal to centralized", "yes" if references["identical"] else "NO", "compared bit by bit")
    rows += _language_rows(references)
    return rows


def _cost_rows(run: RunRecord, devices: Sequence[DeviceRecord], references: dict[str, Any]) -> list[Row]:
    """Return bytes, seconds and memory of the devices."""
    windows = run.all(device_events.Window)
    samples, count = sum(window.new for window in windows), max(1, len(devices))
    rows: list[Row] = []

    def add(what: str, figure: str, remark: str = "") -> None:
        rows.append((what, figure, remark))

    up = sum(window.bytes for window in windows)
    down = [device.bytes_down for device in devices if device.bytes_down is not None]  # known when a run has ended
    started = run.last(events.Started)
    only_sums = started is not None and started.strategy == "AnalyticMobiLLM"
    sent = "sums of each device's samples, sent once" if only_sums else "each sample uploaded once"
    add("devices, samples", f"{len(devices)}, {samples:,}", sent)
    add("bytes up, a device", bytes_text(up / count), f"{bytes_text(up / max(1, samples))} a sample")
    if down:
        add("bytes down, a device", bytes_text(sum(down) / count), "requests, and the side network to evaluate")
    seconds = sum(window.forward_seconds for window in windows)
    add(
        "device seconds",
        f"{seconds / count:.2f} s",
        f"forward pass, {1000 * seconds / max(1, samples):.1f} ms a sample",
    )
    memory = references.get("memory") or {}
    if memory:
        add(
            "device memory, peak",
            bytes_text(memory["ours_bytes"]),
            f"above the loaded model; plain inference {bytes_text(memory['plain_bytes'])}, ratio {memory['ratio']:.2f}",
        )
    return rows


def not_used(run: RunRecord) -> dict[str, str]:
    """Return nodes that the run's last session met and did not use, with the reason."""
    return {event.node: event.reason for event in run.session.all(device_events.NodeRefused)}


def _left_out_rows(run: RunRecord) -> list[Row]:
    """Return how many nodes and rows took no part, and why."""
    rows: list[Row] = []
    if refused := not_used(run):
        reasons = Counter(refused.values()).most_common(3)
        remark = "; ".join(f"{reason} ({count})" if count > 1 else reason for reason, count in reasons)
        remark = "".join(character if character.isprintable() else " " for character in remark)
        rows.append(("devices not used", str(len(refused)), remark[:_MAX_REMARK]))
    met = {event.device: event.left_out for event in run.all(device_events.DeviceMet)}
    counts: Counter[str] = Counter()
    for left_out in met.values():
        counts.update(left_out)
    if counts:
        rows.append(("rows left out", f"{counts.total():,}", left_out_text(counts)))
    return rows


def _type_rows(run: RunRecord, references: dict[str, Any]) -> list[Row]:
    """Return a row for each backbone type of a mixed fleet: as its devices measured it at last, references beside."""
    types = {event.type: event for event in run.all(events.TypeEvaluation)}
    if len(types) < 2:
        return []
    rows: list[Row] = []
    fitted = reference_names(numbers=has_numbers(references))["logistic_regression"]
    for name, event in sorted(types.items(), key=lambda item: (item[1].backbone, item[1].layers, item[0])):
        metric = str(references.get("metric") or next(iter(event.metrics)))
        remark = f"{event.num_examples:,} samples, {event.devices} devices"
        remark += "" if event.trained else "; not trained: it sent no sample"
        measured = references.get("types", {}).get(name, {})
        whole = [
            f"{what or fitted} {measured[key]:.4f}"
            for key, what in _ON_THE_WHOLE.items()
            if measured.get(key) is not None
        ]
        remark += f"; whole test split: {', '.join(whole)}" if whole else ""
        rows.append((f"{metric}, {event.backbone} with {event.layers} layers", f"{event.metrics[metric]:.4f}", remark))
    return rows


def _language_rows(references: dict[str, Any]) -> list[Row]:
    """Return ROUGE of responses, and how many speakers are predicted better than before."""
    rows: list[Row] = []
    if responses := references.get("responses"):
        before, after = (responses[name]["rougeL"] for name in ("base", "tuned"))
        rows.append(("ROUGE-L of responses", f"{after:.4f}", f"{before:.4f} before; {responses['num']} test prompts"))
    if speakers := references.get("speakers"):
        metric = references.get("metric", "metric")
        sign = -1 if metric in SMALLER_IS_BETTER else 1
        changes = [tuned - base for _, _, base, tuned in speakers["rows"]]
        remark = f"of {len(changes)}; {metric} changed by {min(changes):+.4f} to {max(changes):+.4f}"
        rows.append((f"better, by {speakers['column']}", str(sum(sign * change > 0 for change in changes)), remark))
        rows += _speaker_rows(speakers)
    return rows


def _speaker_rows(speakers: dict[str, Any]) -> list[Row]:
    """Return the mean metrics of speakers with and without train texts, before and after, weighted by their texts."""
    rows: list[Row] = []
    unseen = set(speakers.get("unseen", ()))
    for kind in ("seen", "unseen"):
        counts = {name: count for name, count, *_ in speakers["rows"] if (name in unseen) is (kind == "unseen")}
        for metric, values in speakers.get("metrics", {}).items():
            if counts:
                pairs = [(values[name], count) for name, count in counts.items()]
                before, after = (sum(pair[i] * n for pair, n in pairs) / sum(counts.values()) for i in (0, 1))
                label = f"{metric}, {len(counts)} {kind} by {speakers['column']}"
                rows.append((label, f"{after:.4f}", f"{before:.4f} before"))
    return rows


def _privacy(guarantee: Mapping[str, Any]) -> tuple[str, str]:
    """Return ε of one release, and what it covers or lacks."""
    parts = ", ".join(f"{name} ε = {part[0]:.3g}" for name, part in guarantee["parts"].items())
    if guarantee["epsilon"] is None:
        return "no ε", f"{parts}; {guarantee['reason']}"
    trusted = any(name.endswith("all but the server") for name in guarantee["parts"])
    kind = "the server is trusted" if trusted else "local, one release"
    return f"ε = {guarantee['epsilon']:.3g}", f"δ = {guarantee['delta']:g}, {kind}; {parts}"
