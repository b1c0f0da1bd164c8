"""How well a run learned: its metric beside its references, the learning curve, memory, gates."""

from __future__ import annotations

import math
from typing import Any

from mobillm_flower.reports.charts import Bar, Point, bar_chart, line_chart
from mobillm_flower.reports.markup import Markup, element, join, paragraph, table
from mobillm_flower.reports.source import ReportSource
from mobillm_flower.reports.table import results_rows
from mobillm_flower.reports.units import bytes_text

_REFERENCES = (
    ("tuned", "side-tuned"),
    ("centralized", "centralized side-tuning"),
    ("logistic_regression", "logistic regression"),
    ("base", "backbone alone"),
    ("majority", "majority class"),
)


def results(source: ReportSource) -> Markup:
    """Return the metric beside its references, and the table that the command prints."""
    rows = results_rows(source.run, source.references)
    return element(
        "div",
        element("div", _references(source)),
        table("Results", ("what", "figure", "remark"), rows, numeric=[1]),
        class_="beside",
    )


def _references(source: ReportSource) -> list[Markup]:
    metric = str(source.references.get("metric", "metric"))
    bars = [
        Bar(name, value, f"{value:.4f}", strong=key == "tuned")
        for key, name in _REFERENCES
        if (value := source.reference(key)) is not None
    ]
    if not bars:
        reason = "they need all texts in one place" if source.run.outcome == "completed" else "the run is not completed"
        return [paragraph(f"Metric and references were not measured: {reason}.")]
    note = None
    if "identical" in source.references:
        same = "equal" if source.references["identical"] else "do NOT equal"
        note = paragraph(f"The run's weights {same} those of centralized training from the same cache, bit by bit.")
    return [
        bar_chart(bars, x_label=f"{metric}, test split", summary=f"{metric}: {_listed(bars)}", most=1.0),
        note or Markup(),
    ]


def learning(source: ReportSource) -> Markup:
    """Return loss and accuracy on the server's validation share, by epoch."""
    epochs = {event["epoch"]: event for event in source.run.all("epoch")}  # a resumed run may repeat one
    measured = [event for _, event in sorted(epochs.items()) if "validation_loss" in event]
    parts: list[Markup] = []
    if not measured:
        reason = "it has trained no epoch yet" if not epochs else "trainer.validation-share is 0"
        parts.append(paragraph(f"The run measured nothing on a validation share: {reason}."))
    else:
        losses = [event["validation_loss"] for event in measured]
        finite = [i for i, loss in enumerate(losses) if math.isfinite(loss)]
        best = min(finite, key=losses.__getitem__) if finite else None
        charts = [_curve(measured, "validation_loss", "validation loss", best)]
        if all("validation_accuracy" in event for event in measured):
            charts.append(_curve(measured, "validation_accuracy", "validation accuracy", best))
        parts.append(element("div", charts, class_="charts"))
        if best is not None:
            text = f"The weights of epoch {measured[best]['epoch']} have the lowest validation loss (the large dot)"
            stopped = source.run.session.last("stopped").get("reason")
            if stopped:
                text += f". Training was stopped before its end, and the last weights were kept: {stopped}."
            else:
                text += " and were kept." if source.run.session.last("trained") else " so far."
            parts.append(paragraph(text))
        parts.append(_epochs(measured))
    parts += [*_types(source), *_evaluations(source)]
    return join(parts)


def _curve(events: list[dict[str, Any]], key: str, name: str, best: int | None) -> Markup:
    points = [
        Point(event["epoch"], event[key], f"epoch {event['epoch']}, step {event['step']:,}: {event[key]:.4f}")
        for event in events
    ]
    finite = [point.y for point in points if math.isfinite(point.y)]
    if not finite:
        return paragraph(f"No {name} is a finite number: training diverged. Lower trainer.learning-rate.")
    summary = (
        f"{name} by epoch: {finite[0]:.4f} at first, {finite[-1]:.4f} at last, "
        f"between {min(finite):.4f} and {max(finite):.4f}"
    )
    return line_chart(points, x_label="epoch from the cache", y_label=name, summary=summary, marked=best)


def _epochs(events: list[dict[str, Any]]) -> Markup:
    rows = [
        (
            str(event["epoch"]),
            f"{event['step']:,}",
            f"{event['validation_loss']:.4f}",
            f"{event['validation_accuracy']:.4f}" if "validation_accuracy" in event else "–",
        )
        for event in events
    ]
    columns = ("epoch", "optimizer step", "validation loss", "validation accuracy")
    return element(
        "details",
        element("summary", "The curve in figures"),
        table("Learning curve in figures", columns, rows, numeric=range(4)),
    )


def _types(source: ReportSource) -> list[Markup]:
    """Return the last evaluation of each backbone type, where a fleet has several."""
    types = {event["type"]: event for event in source.run.all("evaluation-of-type")}
    if len(types) < 2:
        return []
    rows = [
        (
            f"{event['backbone']}, {event['layers']} layers, width {event['width']}",
            _measured(event),
            f"{event['num-examples']:,}",
            f"{event['devices']:,}",
            "yes" if event["trained"] else "no: it sent no samples",
        )
        for event in types.values()
    ]
    columns = ("backbone", "measured on its devices", "test samples", "devices", "trained")
    return [element("h3", "Backbone types"), table("Backbone types", columns, rows, numeric=[2, 3])]


def _measured(event: dict[str, Any]) -> str:
    """Return the metrics of an evaluation event: whatever is none of its counts and names."""
    names = ("time", "event", "round", "type", "backbone", "layers", "width", "trained", "devices", "num-examples")
    found = {key: value for key, value in event.items() if key not in names and isinstance(value, int | float)}
    return ", ".join(f"{key} {value:.4f}" for key, value in found.items())


def _evaluations(source: ReportSource) -> list[Markup]:
    """Return what devices and the server's own function measured by round, where that happened more than once."""
    events = [event for event in source.run.events if event["event"] in ("evaluation", "server-evaluation")]
    if len(events) < 2:
        return []
    rows = []
    for event in events:
        where = f"{event['devices']} devices" if event["event"] == "evaluation" else "server"
        rows.append((str(event["round"]), where, _measured(event)))
    return [
        element(
            "details",
            element("summary", f"{len(events)} evaluations by round"),
            table("Evaluations by round", ("round", "where", "measured"), rows, numeric=[0]),
        )
    ]


def memory(source: ReportSource) -> Markup | None:
    """Return a device's peak memory beside plain inference; None where the run is not completed."""
    if source.run.outcome != "completed":
        return None
    found = source.references.get("memory") or {}
    if not found:
        return paragraph("Memory was not measured for this run.")
    ours, plain = found["ours_bytes"], found["plain_bytes"]
    bars = [
        Bar("a device's window", ours / 1e6, bytes_text(ours), strong=True),
        Bar("plain inference", plain / 1e6, bytes_text(plain)),
    ]
    label = "MB above the loaded, idle model, at the peak"
    return join(
        bar_chart(bars, x_label=label, summary=f"peak memory in {label}: {_listed(bars)}"),
        paragraph(
            f"Extracting and packing a window of {found['num_samples']} samples takes {found['ratio']:.2f} times the "
            "memory of plain inference with the same backbone on the same batches. Both were measured after the run, "
            "each in a process of its own."
        ),
    )


def gates(source: ReportSource) -> Markup | None:
    """Return μ of each block; None where the run did not save any."""
    values = [value for value in source.run.last("gates").get("mu", []) if math.isfinite(value)]
    if not values:
        return None
    bars = [Bar(f"block {i}", value, f"{value:.4f}") for i, value in enumerate(values, start=2)]
    return join(
        bar_chart(bars, x_label="gate μ, no unit", summary=f"gate μ by block: {_listed(bars)}", most=1.0),
        paragraph(
            "μ is the share that a block takes from the block before it; 1 − μ is the share of the backbone's own "
            "activation at that layer. Training starts from 0.5; the first block has no gate."
        ),
    )


def _listed(bars: list[Bar]) -> str:
    return ", ".join(f"{bar.name} {bar.text}" for bar in bars)
