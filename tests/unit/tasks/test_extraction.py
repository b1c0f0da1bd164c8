"""Which layers are sampled where `activations.sampling=auto`: the server's fleet decides, and a device agrees."""

from __future__ import annotations

import dataclasses

import pytest

from mobillm_flower import load_settings
from mobillm_flower.core.backbone_info import BackboneInfo
from mobillm_flower.errors import MismatchError, SettingsError
from mobillm_flower.strategies.run_plan import make_plan
from mobillm_flower.tasks.extraction import extraction_spec, release_guarantee
from mobillm_flower.wire.contract import ExtractionSpec
from tests.support.caches import CONTRACT


def info(depth: int = 6, *, family: str = "bert", name: str = "a") -> BackboneInfo:
    return BackboneInfo(
        name=name,
        family=family,
        causal=family == "llama",
        depth=depth,
        width=32,
        precision="fp32",
        fingerprint=name * 64,
        base_prediction="constant",
    )


def layers_of(*words: str, family: str = "bert") -> tuple[int, ...]:
    settings = load_settings(overrides=words)
    return extraction_spec(
        info(family=family), settings, num_blocks=settings.activations.num_blocks, num_outputs=1
    ).layers


def test_an_encoder_alone_that_is_solved_sends_its_embeddings_and_upper_layers() -> None:
    assert layers_of() == (0, 3, 4, 5, 6)
    assert layers_of("activations.sampling=upper", "activations.num-blocks=2") == layers_of("activations.layers=0,6")


@pytest.mark.parametrize(
    "words",
    [
        ["activations.sampling=uniform"],
        ["side-network.name=additive"],
        ["activations.pivot=first+mean"],
        ["activations.noise-sigma=1", "activations.clip-norm=1"],
        ["activations.layers=1,2,3,4,5,6"],
    ],
)
def test_otherwise_every_layer_is_sampled(words: list[str]) -> None:
    assert layers_of(*words) == (1, 2, 3, 4, 5, 6)


def spec_of_causal_model(*words: str) -> ExtractionSpec:
    settings = load_settings(overrides=words)
    return extraction_spec(
        info(30, family="llama"), settings, num_blocks=settings.activations.num_blocks, num_outputs=1
    )


def test_a_causal_model_alone_that_is_solved_sends_last_tokens_and_means_of_three_layers() -> None:
    spec = spec_of_causal_model()
    assert (spec.layers, spec.pivot, spec.num_vectors) == ((0, 15, 30), "last+mean", 2)
    assert spec_of_causal_model("activations.sampling=spread", "activations.num-blocks=3") == spec


@pytest.mark.parametrize(
    "words",
    [
        ["activations.sampling=uniform"],
        ["activations.num-blocks=10"],
        ["side-network.name=additive"],
        ["activations.pivot=last"],
        ["activations.noise-sigma=1", "activations.clip-norm=1"],
        ["activations.layers=3,6,9,12,15,18,21,24,27,30"],
        ["preset=analytic"],
    ],
)
def test_otherwise_a_causal_model_sends_its_last_token_of_ten_layers(words: list[str]) -> None:
    spec = spec_of_causal_model(*words)
    assert (spec.layers, spec.pivot) == (tuple(range(3, 31, 3)), "last")


def test_a_causal_model_that_label_words_answer_for_sends_its_last_token_of_ten_layers() -> None:
    backbone = dataclasses.replace(info(30, family="llama"), base_prediction="label-words")
    spec = extraction_spec(backbone, load_settings(), num_blocks=0, num_outputs=1)
    assert (spec.layers, spec.pivot) == (tuple(range(3, 31, 3)), "last")


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("depth", [1, 2, 3, 6, 12, 30])
@pytest.mark.parametrize("blocks", [0, 1, 2, 3])
def test_a_device_derives_the_layers_and_pivot_that_the_server_does(family: str, depth: int, blocks: int) -> None:
    settings = load_settings(overrides=[f"activations.num-blocks={min(blocks, depth)}"])
    backbone = info(depth, family=family)
    spec = extraction_spec(backbone, settings, num_blocks=min(blocks, depth), num_outputs=1)
    assert extraction_spec(backbone, settings, num_blocks=len(spec.layers), num_outputs=1, scheme=spec.scheme) == spec


def test_a_mixed_fleet_samples_as_many_layers_of_each_type_evenly() -> None:
    settings = load_settings()
    types = {"a" * 64: info(4), "b" * 64: info(6, name="b")}
    assert [spec.layers for spec in make_plan(settings, CONTRACT, types, [9]).specs.values()] == [
        (1, 2, 3, 4),
        (2, 3, 5, 6),
    ]


@pytest.mark.parametrize("there", ["a", "b", "ab"])
def test_a_run_that_goes_on_samples_as_it_did_whatever_types_are_there(there: str) -> None:
    settings = load_settings()
    types = {name * 64: info(depth, name=name) for name, depth in (("a", 4), ("b", 6))}
    for first in ("a", "b", "ab"):
        begun = make_plan(settings, CONTRACT, {name * 64: types[name * 64] for name in first}, [9])
        like = next(iter(begun.specs.values()))
        resumed = make_plan(settings, CONTRACT, {name * 64: types[name * 64] for name in there}, [9], like=like)
        same = begun.specs.keys() & resumed.specs.keys()
        assert {name: begun.specs[name].layers for name in same} == {name: resumed.specs[name].layers for name in same}


def test_an_epsilon_that_the_mechanism_does_not_take_is_named_as_the_setting() -> None:
    settings = load_settings(overrides=["privacy.joint-epsilon=40", "activations.projection=8"])
    spec = extraction_spec(info(), settings, num_blocks=2, num_outputs=1)
    with pytest.raises(SettingsError, match=r"privacy\.joint-epsilon=40\.0 must be above 0 and at most 32"):
        release_guarantee(spec, CONTRACT, delta=1e-5)


@pytest.mark.parametrize(
    ("preset", "outputs", "base", "constant"),
    [
        ("analytic", 3, "constant", True),
        ("analytic", 3, "classifier", False),
        ("analytic", 1, "constant", False),
        ("pae", 3, "constant", True),
        ("pae", 3, "label-words", False),
    ],
)
def test_what_is_agreed_says_where_a_backbone_predicts_nothing(
    preset: str, outputs: int, base: str, constant: bool
) -> None:
    backbone = dataclasses.replace(info(family="bert"), base_prediction=base)
    settings = load_settings({"preset": preset, "activations.projection": 8})
    made = extraction_spec(backbone, settings, num_blocks=2, num_outputs=outputs)
    assert made.constant_base is constant


@pytest.mark.parametrize("layers", [(), (0, 0), (0, 3, 3), (0, -1), (3, 0)])
def test_a_spec_with_layers_that_nothing_samples_is_refused_by_that_field(layers: tuple[int, ...]) -> None:
    mine = extraction_spec(info(), load_settings(), num_blocks=0, num_outputs=1)
    theirs = dataclasses.replace(mine, layers=layers)
    again = extraction_spec(info(), load_settings(), num_blocks=len(mine.layers), num_outputs=1, scheme=theirs.scheme)
    with pytest.raises(MismatchError, match="layers"):
        again.require_same(theirs, mine="here", theirs="there")
