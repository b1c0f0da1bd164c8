"""What a language model responds, and how well it predicts each speaker."""

from __future__ import annotations

from typing import Any

from mobillm_flower.reports.markup import Markup, element, join, paragraph, table
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
        items = [join(element("dt", title), element("dd", shown[key] or "(nothing)")) for key, title in texts]
        parts.append(element("details", element("summary", f"Response {i}"), element("dl", items, class_="says")))
    return join(*parts)


def speakers(source: ReportSource) -> Markup | None:
    """Return the metric on each speaker's texts, before and after; None where it was not measured."""
    measured: dict[str, Any] = source.references.get("speakers") or {}
    if not measured:
        return None
    rows = [(name, f"{count:,}", f"{base:.4f}", f"{tuned:.4f}") for name, count, base, tuned in measured["rows"]]
    metric = str(source.references.get("metric", "metric"))
    return join(
        table(metric, (measured["column"], "test texts", "before", "after"), rows, numeric=[1, 2, 3]),
        paragraph(f"{metric} of next tokens on each one's own test texts, smaller is better; those with most of them."),
    )
