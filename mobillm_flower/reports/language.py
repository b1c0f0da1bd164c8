"""What a language model responds, and how well it predicts each speaker."""

from __future__ import annotations

from typing import Any

from mobillm_flower.reports.markup import Markup, element, join, paragraph, says, table
from mobillm_flower.reports.source import ReportSource

ROUGE_NAMES = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}


def responses(source: ReportSource) -> Markup | None:
    """Return ROUGE before and after, and the texts that the run was asked to show; None where none was measured."""
    measured: dict[str, Any] = source.references.get("responses") or {}
    if not measured:
        return None
    rows = [
        (title, f"{measured['base'][name]:.4f}", f"{measured['tuned'][name]:.4f}")
        for name, title in ROUGE_NAMES.items()
    ]
    parts = [
        table(f"Responses to {measured['num']} test prompts", ("F-measure", "before", "after"), rows, numeric=[1, 2]),
    ]
    for i, shown in enumerate(measured.get("shown", ()), start=1):
        texts = [("prompt", "prompt"), ("reference", "reference"), ("base", "before"), ("tuned", "after")]
        said = says((title, shown[key] or "(nothing)") for key, title in texts)
        parts.append(element("details", element("summary", f"Response {i}"), said))
    return join(*parts)


def speakers(source: ReportSource) -> Markup | None:
    """Return the metric on each speaker's texts, before and after; None where it was not measured."""
    measured: dict[str, Any] = source.references.get("speakers") or {}
    if not measured:
        return None
    metric = str(source.references.get("metric", "metric"))
    of_each: dict[str, dict[str, list[float]]] = {metric: {row[0]: row[2:] for row in measured["rows"]}}
    of_each |= measured.get("metrics", {})
    unseen = set(measured.get("unseen", ()))
    rows = [
        (
            f"{name} (unseen)" if name in unseen else name,
            f"{count:,}",
            *(f"{value:.4f}" for values in of_each.values() for value in values[name]),
        )
        for name, count, *_ in measured["rows"]
    ]
    heading = [
        measured["column"],
        "test texts",
        *(f"{name}, {when}" for name in of_each for when in ("before", "after")),
    ]
    return join(
        table("Each one's texts", heading, rows, numeric=list(range(1, len(heading)))),
        paragraph(
            "Of each one's own test texts; those with most of them. Smaller is better of cross-entropy and perplexity; "
            "next-word-top-k is the share of words among the first k suggestions."
        ),
    )
