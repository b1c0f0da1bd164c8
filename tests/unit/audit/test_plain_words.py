"""The audit's grid, and what it says in plain words."""

from __future__ import annotations

from typing import Any

import pytest

from mobillm_flower.audit.grid import grid
from mobillm_flower.audit.plain_words import plain_words
from mobillm_flower.config import load_settings


def attack(value: float, baseline: float, leaked: int | None = None) -> dict[str, Any]:
    return {"value": value, "low": value - 0.02, "high": value + 0.02, "baseline": baseline, "leaked": leaked}


def result(**changes: Any) -> dict[str, Any]:
    attacks = {
        "label: argmax Δy": attack(1.0, 0.25),
        "text: words": attack(0.21, 0.2),
        "label: trained side network": attack(0.75, 0.25),
    }
    epsilon = {"total": None, "delta": 0.0, "reason": "labels are sent unprotected"}
    return {"cells": [{"skipped": "", "attacks": attacks, "epsilon": epsilon}], "retention_days": 0.0, **changes}


def test_an_attack_above_its_baseline_is_learned_and_one_within_the_interval_is_not() -> None:
    said = dict(plain_words(result()))
    assert "labels, from the targets alone (1.00; without uploads 0.25)" in said["What this server could learn"]
    assert "words of a text (0.21; without uploads 0.20)" in said["What it could not"]
    assert "75%" in said["The floor"]


def test_a_guarantee_is_named_or_why_there_is_none() -> None:
    assert "no ε can be named, because labels are sent unprotected" in dict(plain_words(result()))["The guarantee"]
    private = result()
    private["cells"][0]["epsilon"] = {"total": 8.0, "delta": 0.0, "reason": ""}
    assert dict(plain_words(private))["The guarantee"].startswith("ε = 8, δ = 0 for one sample")


def test_a_rotation_is_said_to_hide_little_and_when_it_is_broken() -> None:
    assert not [title for title, _ in plain_words(result()) if "rotation" in title]
    rotated = {
        "label: argmax Δy": attack(0.1, 0.25),
        "label: trained side network": attack(0.1, 0.25),
        "label: trained side network, one leaked pair a class": attack(0.7, 0.25),
        "label: rotated Δy, one leaked pair a class": attack(0.98, 0.25),
        "key: texts looked up, aligned to public text": attack(0.01, 0.0),
        "key: of 16 samples": attack(0.6, 0.0, 16),
        "key: of 32 samples": attack(0.95, 0.0, 32),
        "key: of 64 samples": attack(1.0, 0.0, 64),
    }
    asked = result()
    asked["cells"].append({"skipped": "", "attacks": rotated, "epsilon": asked["cells"][0]["epsilon"]})
    said = dict(plain_words(asked))["A secret rotation (privacy.mixing)"]
    assert "argmax Δy names 10% of the labels under it, one leaked pair a class 98%" in said
    assert "recovered from 32 leaked samples, 95% of the other texts" in said
    assert "75%" in dict(plain_words(asked))["The floor"]
    asked["cells"] = asked["cells"][1:]
    assert "70%" in dict(plain_words(asked))["The floor"]


def test_how_long_it_is_kept_is_the_runs_own() -> None:
    assert "cache.retention-days = 0" in dict(plain_words(result()))["How long it is kept"]
    assert "older than 30 days" in dict(plain_words(result(retention_days=30.0)))["How long it is kept"]


@pytest.mark.parametrize(
    "words",
    [(), ("privacy.joint-epsilon=8", "activations.projection=32"), ("activations.keep=0.5",), ("preset=mobillm",)],
)
def test_every_cell_of_the_grid_is_a_valid_setting(words: tuple[str, ...]) -> None:
    cells = list(grid(load_settings(overrides=words)))
    assert cells[0].name == "as set"
    assert len({cell.name for cell in cells}) == len(cells)
    assert ("unprotected" in {cell.kind for cell in cells}) == bool(words and words[0] != "preset=mobillm")
    for cell in cells:
        load_settings(overrides=[*words, *cell.words])
