"""Settings in words."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from mobillm_flower.config import Settings, load_settings, setting_keys, to_yaml
from mobillm_flower.config.describe import (
    describe_settings,
    parameters,
    part_summaries,
    setting_values,
    value_text,
)

BY_KEY = {setting.key: setting for setting in describe_settings()}


def test_every_setting_is_described_once_in_order() -> None:
    assert [setting.key for setting in describe_settings()] == setting_keys()
    assert not [setting.key for setting in describe_settings() if not setting.meaning]


def test_every_part_has_a_summary() -> None:
    assert set(part_summaries()) == {setting.part for setting in describe_settings()} - {""}
    assert all(part_summaries().values())


@pytest.mark.parametrize(
    ("key", "kind", "default", "allowed"),
    [
        ("trainer.epochs", "whole number", 20, "at least 1"),
        ("trainer.dropout", "number", 0.1, "at least 0, below 1"),
        ("loss.send-base", "true or false", True, ""),
        ("loss.objective", "one of difference, label", "difference", ""),
        ("loss.name", "text", "square", "square or logit"),
        ("task.labels", "list of text", [], ""),
        ("activations.layers", "list of numbers", [], ""),
    ],
)
def test_type_default_and_range_are_those_of_the_dataclass(key: str, kind: str, default: Any, allowed: str) -> None:
    setting = BY_KEY[key]
    assert (setting.type, setting.default, setting.allowed) == (kind, default, allowed)
    assert type(setting.default) is type(default)


def test_presets_are_named_where_they_differ_from_the_default() -> None:
    assert BY_KEY["activations.pivot"].presets == {"mobillm": "all"}
    assert BY_KEY["strategy"].presets == {"mobillm": "mobillm", "fed": "fed", "analytic": "analytic"}
    assert BY_KEY["trainer.epochs"].presets == {"upper-layers": 6}
    assert BY_KEY["trainer.patience"].presets == {}


def test_values_are_those_in_force_and_can_be_written_back() -> None:
    words = ["loss.objective=label", "task.labels=no,yes", "trainer.epochs=3", "loss.send-base=false"]
    settings = load_settings(overrides=words)
    values = setting_values(settings)
    assert {key: values[key] for key in ("loss.objective", "task.labels", "trainer.epochs", "loss.send-base")} == {
        "loss.objective": "label",
        "task.labels": ["no", "yes"],
        "trainer.epochs": 3,
        "loss.send-base": False,
    }
    again = load_settings(overrides=[f"{key}={value_text(value)}" for key, value in values.items()])
    assert to_yaml(again) == to_yaml(settings)


def test_values_leave_the_settings_alone() -> None:
    settings = Settings()
    before = dataclasses.asdict(settings)
    setting_values(settings)
    assert dataclasses.asdict(settings) == before


def test_the_parameters_of_a_docstring_are_read() -> None:
    doc = """Do.

    Parameters
    ----------
    depth, width : int
        L and
        d_b.
    name
        A name.

    Returns
    -------
    int
    """
    assert parameters(doc) == {"depth": "L and d_b.", "width": "L and d_b.", "name": "A name."}
    assert parameters("Do nothing.") == {}
