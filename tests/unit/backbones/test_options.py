"""Options that a backbone is loaded with: from settings, for a task, hashable."""

from __future__ import annotations

import inspect
from dataclasses import fields, replace

import pytest

from mobillm_flower import load_settings
from mobillm_flower.backbones import load_backbone
from mobillm_flower.backbones.options import LoadOptions
from mobillm_flower.wire.contract import TaskContract
from tests.support.tiny_models import streaming


def test_settings_give_every_option_that_they_hold_and_what_is_given_wins() -> None:
    settings = load_settings(
        {
            "backbone.name": "somebody/something",
            "backbone.revision": "v2",
            "backbone.layers": 3,
            "backbone.precision": "int8",
            "backbone.engine": "onnx",
            "backbone.device": "cpu",
            "backbone.token-budget": 99,
        }
    ).backbone
    options = LoadOptions.of(settings, layers=2)
    assert options == LoadOptions(
        "somebody/something", "v2", layers=2, precision="int8", device="cpu", token_budget=99, engine="onnx"
    )
    assert type(options.precision) is str
    assert type(options.engine) is str


def test_a_misspelt_option_is_refused() -> None:
    with pytest.raises(TypeError, match="token_bugdet"):
        LoadOptions.of(load_settings({}).backbone, token_bugdet=3)


def test_a_task_says_what_the_backbone_predicts() -> None:
    contract = TaskContract(
        kind="classification",
        labels=("a", "b", "c"),
        prompt="{text}",
        label_words=("x", "y", "z"),
        max_length=8,
        label_range=(),
        metric="accuracy",
    )
    options = LoadOptions("minilm", layers=2).for_task(contract)
    expected = LoadOptions("minilm", layers=2, num_labels=3, labels=contract.labels, label_words=("x", "y", "z"))
    assert options == expected
    assert hash(options) == hash(replace(options))  # devices of a process share what was loaded by it


def test_layers_are_streamed_where_the_plan_says_so() -> None:
    assert not LoadOptions("minilm").streamed
    assert LoadOptions("minilm", plan=streaming()).streamed
    assert not LoadOptions("minilm", plan=replace(streaming(), streamed=False)).streamed


def test_the_public_face_has_the_same_options_and_defaults() -> None:
    public = inspect.signature(load_backbone).parameters
    assert set(public) == {item.name for item in fields(LoadOptions)}
    defaults = {item.name: item.default for item in fields(LoadOptions) if item.name != "name"}
    assert {name: public[name].default for name in defaults} == defaults
