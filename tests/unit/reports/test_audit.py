"""The audit's section of a report and its plot, from JSON alone."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from mobillm_flower.errors import RunFailed
from mobillm_flower.reports.audit import audit_section, frontier_file
from mobillm_flower.reports.charts import Dot, scatter_chart
from mobillm_flower.reports.html import write_report
from tests.support.run_folders import write_run


def finding(value: float, baseline: float) -> dict[str, Any]:
    return {"value": value, "low": value - 0.05, "high": value + 0.05, "baseline": baseline, "seeds": [value]}


def cell(name: str, kind: str, quality: float, attacks: dict[str, dict[str, Any]]) -> dict[str, Any]:
    figures = {"quality": finding(quality, 0.5), "bytes_a_sample": 118.4, "device_seconds_a_sample": 0.0123}
    return {"name": name, "kind": kind, "skipped": "", "attacks": attacks, "layers": [], **figures}


def audited(**changes: Any) -> dict[str, Any]:
    plain = {"label: argmax Δy": finding(1.0, 0.25), "text: words": finding(0.5, 0.2)}
    private = {"label: argmax Δy": finding(0.75, 0.25), "text: words, decoder of clean text": finding(0.21, 0.2)}
    return {
        "format": 1,
        "metric": "accuracy",
        "cells": [
            cell("as set", "as set", 0.8, plain),
            cell("text & label", "joint", 0.6, private),
            {"name": "broken", "kind": "labels", "skipped": "no such setting"},
        ],
        "plain_words": [["What this server could learn", "labels <all> of them."]],
        "remarks": ["A remark."],
        "sizes": {"seeds": 3},
        "attacked": [1200, 1200, 1200],
        **changes,
    }


def test_the_section_has_words_every_attack_and_the_plots() -> None:
    section = audit_section(audited())
    assert "labels &lt;all&gt; of them." in section
    assert "1.000 / 0.250" in section
    assert "0.210 / 0.200" in section
    assert "–" in section  # an attack that a column lacks
    assert "broken" not in section
    assert "text &amp; label" in section
    assert "A remark." in section
    assert section.count("<svg") == 2
    assert audit_section({}) == ""


def test_the_report_has_it_where_the_run_was_audited(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert 'id="audit"' not in write_report(run).read_text("utf-8")
    (run / "audit.json").write_text(json.dumps(audited()), "utf-8")
    assert 'id="audit"' in write_report(run).read_text("utf-8")


def test_a_file_from_before_findings_had_numbers_of_leaked_samples_reads_as_one_from_after() -> None:
    after = audited()
    for one in after["cells"]:
        for attack in one.get("attacks", {}).values():
            attack["leaked"] = None
    assert audit_section(audited()) == audit_section(after)


def test_another_format_is_refused() -> None:
    with pytest.raises(RunFailed, match=r"audit has format 2, this version reads 1"):
        audit_section(audited(format=2))


def test_the_plot_is_one_well_formed_file() -> None:
    root = ElementTree.fromstring(frontier_file(audited()))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    names = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"1 as set", "2 text & label"} <= set(names)
    assert names.count("1") >= 2  # a dot in each of the plots


def test_names_of_dots_in_one_place_do_not_cover_each_other() -> None:
    dots = [Dot(0.5, 0.5, str(i), "") for i in range(12)]
    root = ElementTree.fromstring(scatter_chart(dots, x_label="x", y_label="y", summary="s"))
    names = {str(i) for i in range(12)}
    places = [(float(t.get("x", "")), float(t.get("y", ""))) for t in root.iter("text") if t.text in names][-12:]
    assert all(abs(x - u) > 13 or abs(y - v) > 9 for i, (x, y) in enumerate(places) for u, v in places[:i])


def test_a_dot_further_right_is_drawn_further_right() -> None:
    dots = [Dot(0.1, 0.9, "a", "a"), Dot(0.8, 0.2, "b", "b", strong=True)]
    root = ElementTree.fromstring(scatter_chart(dots, x_label="x", y_label="y", summary="s"))
    first, second = root.iter("circle")
    assert float(first.get("cx", "")) < float(second.get("cx", ""))
    assert float(first.get("cy", "")) < float(second.get("cy", ""))  # higher up
    assert (first.get("class"), second.get("class")) == ("dot", "mark")
