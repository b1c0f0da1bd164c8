"""How well a run learned: its metric beside its references, the learning curve, memory, gates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mobillm_flower.reports.charts import Bar, Point, bar_chart, line_chart
from mobillm_flower.reports.markup import Markup, element, join, paragraph, table
from mobillm_flower.reports.source import ReportSource
from mobillm_flower.reports.table import has_numbers, reference_names, results_rows
from mobillm_flower.reports.units import bytes_text
from mobillm_flower.runs.events import (
    Epoch,
    Evaluation,
    Gates,
    HeldOut,
    ServerEvaluation,
    Stopped,
    Trained,
    TypeEvaluation,
    figures,
)

_REFERENCES = ("tuned", "centralized", "logistic_regression", "base", "majority")


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
    names = reference_names(numbers=has_numbers(source.references))
    bars = [
        Bar(names[key], value, f"{value:.4f}", strong=key == "tuned")
        for key in _REFERENCES
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
    epochs = {event.epoch: event for event in source.run.all(Epoch)}  # a resumed run may repeat one
    measured = [event for _, event in sorted(epochs.items()) if event.validation_loss is not None]
    parts: list[Markup] = []
    trained = source.run.session.last(Trained)
    solved = trained is not None and trained.solved
    held = source.run.session.last(HeldOut)
    if held is not None:
        parts.append(
            paragraph(
                f"On {held.samples:,} samples that {held.devices} devices left out of their sums: "
                f"{_measured(held.metrics)}. Devices count right and wrong predictions, and the counts are added up as "
                "the sums are."
            )
        )
    elif not measured and solved:
        parts.append(paragraph("The side network was solved in closed form, and its quality was not measured there."))
    elif not measured:
        reason = "it has trained no epoch yet" if not epochs else "trainer.validation-share is 0"
        parts.append(paragraph(f"The run measured nothing on a validation share: {reason}."))
    else:
        losses = [event.validation_loss or 0.0 for event in measured]
        accuracies = [event.validation_accuracy for event in measured if event.validation_accuracy is not None]
        finite = [i for i, loss in enumerate(losses) if math.isfinite(loss)]
        best = min(finite, key=losses.__getitem__) if finite else None
        best = len(losses) - 1 if solved else best  # it is of all samples
        charts = [_curve(measured, losses, "validation loss", best)]
        if len(accuracies) == len(measured):
            charts.append(_curve(measured, accuracies, "validation accuracy", best))
        parts.append(element("div", charts, class_="charts"))
        if solved:
            text = "The side network was solved in closed form each time that many more samples were held. The last "
            text += "solution was kept. Each loss and accuracy is that of samples that were left out of the solution."
            parts.append(paragraph(text))
        elif best is not None:
            text = f"The weights of epoch {measured[best].epoch} have the lowest validation loss (the large dot)"
            stopped = source.run.session.last(Stopped)
            if stopped:
                text += f". Training was stopped before its end, and the last weights were kept: {stopped.reason}."
            else:
                text += " and were kept." if trained else " so far."
            parts.append(paragraph(text))
        parts.append(_epochs(measured))
    parts += [*_types(source), *_evaluations(source)]
    return join(parts)


def _curve(epochs: list[Epoch], values: list[float], name: str, best: int | None) -> Markup:
    points = [
        Point(one.epoch, value, f"epoch {one.epoch}, step {one.step:,}: {value:.4f}")
        for one, value in zip(epochs, values, strict=True)
    ]
    finite = [point.y for point in points if math.isfinite(point.y)]
    if not finite:
        return paragraph(f"No {name} is a finite number: training diverged. Lower trainer.learning-rate.")
    summary = (
        f"{name} by epoch: {finite[0]:.4f} at first, {finite[-1]:.4f} at last, "
        f"between {min(finite):.4f} and {max(finite):.4f}"
    )
    return line_chart(points, x_label="epoch from the cache", y_label=name, summary=summary, marked=best)


def _epochs(epochs: list[Epoch]) -> Markup:
    rows = [
        (
            str(one.epoch),
            f"{one.step:,}",
            f"{one.validation_loss:.4f}",
            "–" if one.validation_accuracy is None else f"{one.validation_accuracy:.4f}",
        )
        for one in epochs
    ]
    columns = ("epoch", "optimizer step", "validation loss", "validation accuracy")
    return element(
        "details",
        element("summary", "The curve in figures"),
        table("Learning curve in figures", columns, rows, numeric=range(4)),
    )


def _types(source: ReportSource) -> list[Markup]:
    """Return the last evaluation of each backbone type, where a fleet has several."""
    types = {event.type: event for event in source.run.all(TypeEvaluation)}
    if len(types) < 2:
        return []
    rows = [
        (
            f"{event.backbone}, {event.layers} layers, width {event.width}",
            _measured(event.metrics),
            f"{event.num_examples:,}",
            f"{event.devices:,}",
            "yes" if event.trained else "no: it sent no samples",
        )
        for event in types.values()
    ]
    columns = ("backbone", "measured on its devices", "test samples", "devices", "trained")
    return [element("h3", "Backbone types"), table("Backbone types", columns, rows, numeric=[2, 3])]


def _measured(metrics: Mapping[str, Any]) -> str:
    """Return an evaluation's metrics in words."""
    return ", ".join(f"{key} {value:.4f}" for key, value in figures(metrics).items())


def _evaluations(source: ReportSource) -> list[Markup]:
    """Return what devices and the server's own function measured by round, where that happened more than once."""
    events = [event for event in source.run.events if isinstance(event, Evaluation | ServerEvaluation)]
    if len(events) < 2:
        return []
    rows = []
    for event in events:
        where = f"{event.devices} devices" if isinstance(event, Evaluation) else "server"
        rows.append((str(event.round), where, _measured(event.metrics)))
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
    measured = source.references.get("memory") or {}
    if not measured:
        return paragraph("Memory was not measured for this run.")
    ours, plain = measured["ours_bytes"], measured["plain_bytes"]
    bars = [
        Bar("a device's window", ours / 1e6, bytes_text(ours), strong=True),
        Bar("plain inference", plain / 1e6, bytes_text(plain)),
    ]
    label = "MB above the loaded, idle model, at the peak"
    return join(
        bar_chart(bars, x_label=label, summary=f"peak memory in {label}: {_listed(bars)}"),
        paragraph(
            f"Extracting and packing a window of {measured['num_samples']} samples takes {measured['ratio']:.2f} times "
            "the memory of plain inference with the same backbone on the same batches. Both were measured after the "
            "run, each in a process of its own."
        ),
    )


def gates(source: ReportSource) -> Markup | None:
    """Return μ of each block; None where the run did not save any."""
    saved = source.run.last(Gates)
    values = [value for value in saved.mu if math.isfinite(value)] if saved else []
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
