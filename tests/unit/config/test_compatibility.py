"""Which settings go together: what is refused when settings are loaded, and what only data, backbone and fleet tell."""

from __future__ import annotations

from typing import Any

import pytest

from mobillm_flower.config import load_settings
from mobillm_flower.config.compatibility import check_engine, settings_of
from mobillm_flower.config.run_compatibility import (
    check_difference_strategy,
    check_label_strategy,
    check_labels,
    check_pair_column,
    check_pivot,
    check_rounds,
    check_training,
)
from mobillm_flower.core.side_networks import Needs, needs_of
from mobillm_flower.errors import ArgumentError, SettingsError, UnsupportedError

PAIRS = ["activations.bi-encoder=true", "data.pair-column=other"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["side-network.name=upper-layers", "activations.num-blocks=2"], "asks for several layers"),
        (["side-network.name=upper-layers", "backbone.engine=onnx"], "choose torch"),
        (["side-network.name=upper-layers", "activations.projection=8"], "activations.projection=8 changes them"),
        (["side-network.name=upper-layers", "activations.standardise=true"], "noise-sigma change them"),
        (["side-network.name=upper-layers", "privacy.mixing=abc"], "privacy.mixing=abc changes them"),
        (["side-network.name=discriminant"], "choose loss.name=logit"),
        (["activations.bi-encoder=true"], "data.pair-column is empty"),
        ([*PAIRS, "task.prompt={text}"], "makes one text of both"),
        ([*PAIRS, "activations.standardise=true"], "fit public texts, not pairs"),
        ([*PAIRS, "activations.projection=8"], "activations.projection=8 fits public texts"),
        (["backbone.engine=onnx", "backbone.memory-budget-mib=500"], "must be 0 with backbone.engine=onnx"),
    ],
)
def test_loading_refuses_what_settings_alone_tell(words: list[str], reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        load_settings(overrides=words)


@pytest.mark.parametrize(
    ("words", "pivot", "every_token", "predicts_tokens", "reason"),
    [
        (["activations.projection=8"], "all", True, False, "activations.pivot=all gives one a token"),
        ([], "mean", False, True, "takes every token in the loss"),
        (["activations.keep=0.5"], "all", True, True, "activations.keep=0.5 cannot be used with language modelling"),
        (PAIRS, "all", True, False, "two texts have not as many"),
        (["side-network.name=upper-layers"], "mean", False, False, "makes a few vectors of a text: choose all"),
        (
            ["side-network.name=upper-layers"],
            "all",
            True,
            True,
            "needs the last layer's states on the device",
        ),
    ],
)
def test_a_pivot_that_does_not_go_with_the_rest_is_refused(
    words: list[str], pivot: str, every_token: bool, predicts_tokens: bool, reason: str
) -> None:
    settings = load_settings(overrides=words)
    with pytest.raises(SettingsError, match=reason):
        check_pivot(settings, pivot, every_token=every_token, predicts_tokens=predicts_tokens)
    check_pivot(load_settings(), pivot, every_token=every_token, predicts_tokens=every_token and predicts_tokens)


@pytest.mark.parametrize(
    ("words", "changes", "reason"),
    [
        ([], {"num_types": 2, "predicts_tokens": True}, "takes one backbone type, and there are 2"),
        (
            ["side-network.name=discriminant", "loss.name=logit"],
            {"predicts_tokens": True},
            "side-network.name=discriminant",
        ),
        (["side-network.name=upper-layers"], {"num_types": 3}, "and there are 3"),
        (["side-network.name=causal"], {}, "activations.pivot=mean sends a few vectors a text"),
    ],
)
def test_training_that_no_side_network_does_is_refused(words: list[str], changes: dict[str, Any], reason: str) -> None:
    told: dict[str, Any] = {"num_types": 1, "pivot": "mean", "every_token": False}
    told |= {"predicts_tokens": False, "predicts_numbers": False, "num_vectors": 1}
    settings = load_settings(overrides=words)
    with pytest.raises(UnsupportedError, match=reason):
        check_training(settings, needs=needs_of(settings.side_network.name), **{**told, **changes})
    check_training(load_settings(), needs=Needs(), **told)


def test_several_vectors_are_refused_where_one_is_taken() -> None:
    told: dict[str, Any] = {"num_types": 1, "pivot": "mean", "every_token": False}
    told |= {"predicts_tokens": False, "predicts_numbers": False, "needs": Needs(one_vector=True)}
    check_training(load_settings(), num_vectors=1, **told)
    with pytest.raises(SettingsError, match="takes one vector a sample, and 6 are sent"):
        check_training(load_settings(), num_vectors=6, **told)


@pytest.mark.parametrize("objective", ["difference", "label"])
def test_the_logit_loss_of_numbers_is_refused_where_differences_are_learned(objective: str) -> None:
    settings = load_settings({"loss.name": "logit", "loss.objective": objective})
    told: dict[str, Any] = {"num_types": 1, "pivot": "mean", "every_token": False, "predicts_tokens": False}
    told |= {"needs": Needs(), "num_vectors": 1}
    check_training(settings, **told, predicts_numbers=objective == "label")
    if objective == "difference":
        with pytest.raises(SettingsError, match=r"loss\.name=logit needs classes"):
            check_training(settings, **told, predicts_numbers=True)


def test_strategies_need_their_objective_and_pivot() -> None:
    differences, labels = load_settings(), load_settings({"preset": "mobillm"})
    check_difference_strategy(differences)
    check_label_strategy(labels, every_token=True)
    with pytest.raises(SettingsError, match=r"set loss\.objective=difference"):
        check_difference_strategy(labels)
    with pytest.raises(SettingsError, match=r"set loss\.objective=label"):
        check_label_strategy(differences, every_token=True)
    with pytest.raises(SettingsError, match=r"set activations\.pivot=all instead of 'all'"):
        check_label_strategy(labels, every_token=False)


def test_columns_words_and_prompts_fit_the_task() -> None:
    settings = load_settings({"task.label-words": "good,bad"})
    check_labels(settings, ["yes", "no"], predicts_tokens=False, pair_in_prompt=True)
    with pytest.raises(SettingsError, match=r"task\.label-words has 2 words for 3 labels"):
        check_labels(settings, ["yes", "no", "maybe"], predicts_tokens=False, pair_in_prompt=False)
    of_two = load_settings({"task.metric": "f1"})
    check_labels(of_two, ["yes", "no"], predicts_tokens=False, pair_in_prompt=False)
    with pytest.raises(SettingsError, match=r"task\.metric=f1 .* there are 3; choose macro-f1"):
        check_labels(of_two, ["yes", "no", "maybe"], predicts_tokens=False, pair_in_prompt=False)
    with pytest.raises(SettingsError, match=r"must not hold \{text_pair\}"):
        check_labels(load_settings(), [], predicts_tokens=True, pair_in_prompt=True)
    check_pair_column(load_settings({"data.pair-column": "other"}), needs_pair=True, needs_response=True)
    with pytest.raises(SettingsError, match=r"task\.kind=pairs needs data\.pair-column"):
        check_pair_column(load_settings(), needs_pair=True, needs_response=False)
    with pytest.raises(SettingsError, match="the column of responses"):
        check_pair_column(load_settings(), needs_pair=False, needs_response=True)
    check_rounds("fed-lora", 1)
    with pytest.raises(SettingsError, match=r"strategy=fed-lora trains for rounds\.num-rounds rounds"):
        check_rounds("fed-lora", 0)


def test_the_torch_engine_takes_all_that_onnx_does_not() -> None:
    check_engine("torch", precision="nf4", device="cuda", memory_budget=True, whole_words=True)
    check_engine("onnx", precision="int8", device="cpu", memory_budget=False, whole_words=False)
    with pytest.raises(SettingsError, match=r"backbone\.device='cuda' must be auto or cpu"):
        check_engine("onnx", precision="int8", device="cuda", memory_budget=False, whole_words=False)


def test_what_is_said_of_an_argument_is_said_of_its_setting() -> None:
    with (
        pytest.raises(SettingsError, match=r"^activations\.layers=\[3\] must be one layer$"),
        settings_of(layers="activations.layers"),
    ):
        raise ArgumentError("layers", [3], "must be one layer")
    with pytest.raises(ArgumentError, match=r"^depth=3 is odd$"), settings_of(layers="activations.layers"):
        raise ArgumentError("depth", 3, "is odd")
