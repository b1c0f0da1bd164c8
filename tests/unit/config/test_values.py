"""Values of settings: their types, how strings are read, and their ranges."""

import json
import re
from typing import Any

import pytest

from mobillm_flower.config import (
    Objective,
    Partition,
    Precision,
    load_settings,
    setting_keys,
)
from mobillm_flower.errors import SettingsError
from tests.support.settings import setting


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trainer.epochs", "many"),
        ("trainer.epochs", "5.5"),
        ("trainer.epochs", 5.0),
        ("trainer.epochs", True),
        ("trainer.learning-rate", "fast"),
        ("trainer.learning-rate", True),
        ("activations.standardise", "maybe"),
        ("activations.layers", "1,two"),
        ("activations.layers", 5),
        ("task.label-range", "low,high"),
        ("task.kind", 5),
        ("task.prompt", True),
        ("backbone.precision", "int4"),
        ("backbone.precision", 8),
        ("data.partition", "random"),
        ("loss.objective", "logits"),
    ],
)
def test_an_ill_typed_value_stops_and_names_its_key(key: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=f"^{key}="):
        load_settings({key: value})


@pytest.mark.parametrize(
    "value", ["few", "", "1,two", "[", "${x}", "${oc.env:HOME}", "???", 7, 2.5, True, None, [1], {}]
)
@pytest.mark.parametrize("way", ["run config", "file", "word"])
def test_what_is_wrong_with_any_setting_is_said_in_our_words(write: Any, way: str, value: Any) -> None:
    """Whatever OmegaConf says of it: the key, the value, and what it takes."""
    for key in [*setting_keys(), "data", "trainer.epoch"]:
        part, _, name = key.rpartition(".")
        try:
            if way == "run config":
                load_settings({key: value})
            elif way == "word":
                load_settings(overrides=[f"{key}={value}"])
            else:
                load_settings(file=write(json.dumps({part: {name: value}} if part else {name: value})))
        except SettingsError as error:
            said = str(error)
            assert key in said or "preset" in key or "unknown setting" in said, (key, said)
            foreign = r"could not be|converted|Optional|ListConfig|Invalid|nterpolation|OmegaConf|NoneType|of type '"
            assert not re.search(foreign, said), said


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("trainer:\n  epochs: null\n", "trainer.epochs"),
        ("trainer:\n  epochs: 2.5\n", "trainer.epochs"),
        ("trainer:\n  epochs: [1]\n", "trainer.epochs"),
        ("task:\n  labels: null\n", "task.labels"),
        ("task:\n  labels: [ham, null]\n", "task.labels"),
        ("task:\n  label-range: [low, high]\n", "task.label-range"),
        ("backbone:\n  name: 5\n", "backbone.name"),
    ],
)
def test_an_ill_typed_value_in_a_file_stops(text: str, key: str, write: Any) -> None:
    with pytest.raises(SettingsError, match=f"^{key}="):
        load_settings(file=write(text))


def test_yes_and_no_as_label_words_stay_words_or_stop(write: Any) -> None:
    """YAML reads them as booleans; the words True and False are not what was written."""
    path = write("task:\n  label-words: [yes, no]\n")
    try:
        words = load_settings(file=path).task.label_words
    except SettingsError as error:
        assert "task.label-words" in str(error)  # noqa: PT017 - either outcome is right
    else:
        assert words == ["yes", "no"]


@pytest.mark.parametrize("prompt", ["${text}", "???"])
def test_text_with_a_meaning_to_the_settings_library_is_kept_or_stops(prompt: str) -> None:
    try:
        kept = load_settings({"task.prompt": prompt}).task.prompt
    except SettingsError as error:
        assert "task.prompt" in str(error)  # noqa: PT017 - either outcome is right
    else:
        assert kept == prompt


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("activations.layers", "3,6,12", [3, 6, 12]),
        ("activations.layers", "[3, 6, 12]", [3, 6, 12]),
        ("activations.layers", "12", [12]),
        ("activations.layers", "", []),
        ("activations.layers", "[]", []),
        ("task.labels", "ham, spam", ["ham", "spam"]),
        ("task.labels", "['ham', 'spam']", ["ham", "spam"]),
        ("task.label-words", "[yes, no]", ["yes", "no"]),
        ("task.label-range", "0,5", [0.0, 5.0]),
    ],
)
def test_a_list_is_read_from_a_string(key: str, text: str, expected: Any) -> None:
    assert setting(load_settings({key: text}), key) == expected
    assert setting(load_settings(overrides=[f"{key}={text}"]), key) == expected


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("trainer.epochs", "3", 3),
        ("trainer.learning-rate", "1e-3", 1e-3),
        ("trainer.learning-rate", "1", 1.0),
        ("activations.standardise", "true", True),
        ("activations.standardise", "false", False),
        ("backbone.precision", "nf4", Precision.nf4),
        ("data.partition", "dirichlet", Partition.dirichlet),
        ("loss.objective", "label", Objective.label),
    ],
)
def test_a_value_is_read_from_a_string(key: str, text: str, expected: Any) -> None:
    value = setting(load_settings(overrides=[f"{key}={text}"]), key)
    assert value == expected
    assert type(value) is type(expected)


def _at_least(least: Any) -> Any:
    return [least - 1, -(10**6)], [least, 10**6]


RANGES = {
    "backbone.name": ([""], ["gpt2"]),
    "backbone.choices": (["minilm@", "@2", "minilm@0", "minilm@-1", "minilm,a@two"], ["", "minilm@2,minilm", "a@b@3"]),
    "backbone.memory-mib": _at_least(0),
    "backbone.memory-budget-mib": _at_least(0),
    "backbone.layers": _at_least(0),
    "backbone.token-budget": _at_least(1),
    "data.alpha": ([0.0, -1.0, "nan"], [1e-3, 100.0]),
    "data.num-devices": _at_least(1),
    "data.max-samples": _at_least(0),
    "task.max-length": _at_least(4),
    "task.label-range": (["1,0", "1,1", "0", "0,1,2", "", "nan,1"], ["-1,1", "0,5"]),
    "activations.num-blocks": _at_least(0),
    "activations.sampling": (["bottom-heavy", ""], ["uniform", "top-heavy"]),
    "activations.keep": ([0.0, -0.5, 1.01, "nan"], [0.01, 1.0]),
    "activations.clip-norm": ([-1.0, "nan"], [0.0, 5.0]),
    "activations.noise-sigma": ([-1.0, "nan"], [0.0]),
    "loss.name": (["cross-entropy", ""], ["square", "logit"]),
    "loss.scale": ([-1.0, "nan"], [0.0, 10.0]),
    "side-network.width": _at_least(0),
    "side-network.bottleneck": _at_least(1),
    "trainer.epochs": _at_least(1),
    "trainer.batch-size": _at_least(0),
    "trainer.learning-rate": ([0.0, -1e-3, "nan"], [1e-6, 1.0]),
    "trainer.weight-decay": ([-0.1, "nan"], [0.0, 0.5]),
    "trainer.warmup": ([-0.1, 1.0, "nan"], [0.0, 0.99]),
    "trainer.grad-clip": ([0.0, -1.0, "nan"], [0.1]),
    "trainer.validation-share": ([-0.1, 1.0, "nan"], [0.0, 0.99]),
    "trainer.patience": _at_least(0),
    "trainer.overlap-steps": _at_least(0),
    "trainer.checkpoint-every": _at_least(1),
    "cache.memory-mib": _at_least(0),
    "cache.quota-mib": _at_least(0),
    "cache.retention-days": ([-0.5, "nan"], [0.0, 30.0]),
    "rounds.num-rounds": _at_least(0),
    "rounds.window": _at_least(1),
    "rounds.max-window-mib": _at_least(1),
    "rounds.timeout-s": ([0.0, -1.0, "nan"], [0.5]),
    "rounds.evaluate-every": _at_least(0),
    "rounds.min-devices": _at_least(1),
    "rounds.max-strikes": _at_least(1),
    "rounds.max-failures": _at_least(1),
    "privacy.max-releases": _at_least(0),
    "privacy.max-evaluations": _at_least(0),
    "privacy.metric-epsilon": _at_least(0),
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, (bad, _) in RANGES.items() for value in bad])
def test_a_value_out_of_range_stops_and_names_its_key(key: Any, value: Any) -> None:
    with pytest.raises(SettingsError, match=rf"^{key}=.* must be "):
        load_settings({key: value})


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, (_, good) in RANGES.items() for value in good])
def test_a_value_at_the_edge_of_its_range_is_taken(key: Any, value: Any) -> None:
    found = setting(load_settings({key: value}), key)
    if isinstance(found, list):
        assert found == [type(found[0])(item) for item in value.split(",") if item]
    else:
        assert found == value


def test_num_threads_below_zero_stops() -> None:
    with pytest.raises(SettingsError, match=r"^trainer\.num-threads=-1 must be"):
        load_settings({"trainer.num-threads": -1})


@pytest.mark.parametrize(
    ("key", "value"),
    [("trainer.learning-rate", "inf"), ("activations.noise-sigma", "inf"), ("task.label-range", "0,inf")],
)
def test_an_infinite_value_that_no_part_could_use_stops(key: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"^{key}="):
        load_settings({"activations.clip-norm": 1.0, key: value})


@pytest.mark.parametrize("clip_norm", [0.0, "inf"])
def test_noise_without_a_bound_stops(clip_norm: Any) -> None:
    with pytest.raises(SettingsError, match=r"^activations\..*clip-norm"):
        load_settings({"activations.noise-sigma": 0.5, "activations.clip-norm": clip_norm})


def test_noise_with_a_bound_is_taken() -> None:
    settings = load_settings({"activations.noise-sigma": 0.5, "activations.clip-norm": 2.0})
    assert (settings.activations.noise_sigma, settings.activations.clip_norm) == (0.5, 2.0)


def test_natural_devices_need_a_column() -> None:
    with pytest.raises(SettingsError, match="column='' must be named when"):
        load_settings({"data.partition": "natural"})
    settings = load_settings({"data.partition": "natural", "data.partition-column": "author"})
    assert settings.data.partition_column == "author"


@pytest.mark.parametrize(("word", "found"), [("auto", None), ("true", True), ("False", False)])
def test_a_switch_is_on_off_or_auto(word: str, found: bool | None) -> None:
    words = ["data.pair-column=other", f"activations.bi-encoder={word}"]
    settings = load_settings(overrides=words)
    assert settings.activations.bi_encoder is found
    again = load_settings({"data.pair-column": "other", "activations.bi-encoder": "auto" if found is None else found})
    assert again == settings
    with pytest.raises(SettingsError, match=r"activations\.bi-encoder='yes' must be true, false or auto"):
        load_settings(overrides=["activations.bi-encoder=yes"])
