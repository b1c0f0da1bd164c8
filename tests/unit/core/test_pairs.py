"""Pairs of texts that run apart: what goes up, what a layer norm leaves of it, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cosine_similarity, layer_norm

from mobillm_flower import SideTunedModel, load_settings
from mobillm_flower.backbones import load_backbone
from mobillm_flower.core.pairs import compare
from mobillm_flower.errors import DataError, SettingsError
from mobillm_flower.evaluation.references import measure_references
from mobillm_flower.runs.record import read_run
from mobillm_flower.tasks import Samples, make_contract, read_activations
from mobillm_flower.tasks.extraction import compares, extraction_spec
from tests.support.runs import tiny_run
from tests.support.tiny_models import save_tiny

WORDS = ["data.pair-column=b", "task.kind=pairs", "task.labels=no,yes", "activations.bi-encoder=true"]


def test_equal_texts_differ_nowhere_and_agree_everywhere() -> None:
    vectors = torch.randn(1, 3, 2, 8)
    differ, agree = compare(vectors, vectors).split(2, dim=2)
    assert not differ.any()
    assert torch.equal(agree.abs(), layer_norm(vectors, (8,)) ** 2)


def test_the_order_of_the_texts_does_not_matter() -> None:
    first, second = torch.randn(2, 1, 3, 1, 8)
    assert torch.equal(compare(first, second), compare(second, first))


def test_a_layer_norm_leaves_the_cosine_similarity_to_be_read() -> None:
    draw = torch.Generator().manual_seed(0)
    first = torch.randn(500, 1, 1, 64, generator=draw)
    share = torch.linspace(0, 1, 500).view(-1, 1, 1, 1)
    second = share * first + (1 - share) * torch.randn(500, 1, 1, 64, generator=draw)
    rows = layer_norm(compare(first, second).flatten(2), (128,))[:, 0]
    design = torch.cat([rows, torch.ones(500, 1)], 1)
    true = cosine_similarity(layer_norm(first, (64,)), layer_norm(second, (64,)), dim=3)[:, 0]
    learned = design[::2], true[::2]
    read = design[1::2] @ torch.linalg.lstsq(*learned).solution
    assert torch.corrcoef(torch.stack([read[:, 0], true[1::2, 0]]))[0, 1] > 0.95


def test_each_text_runs_by_itself(tmp_path: Path) -> None:
    backbone = load_backbone(str(save_tiny(tmp_path, "bert")), device="cpu")
    settings = load_settings(overrides=[*WORDS, "activations.pivot=mean", "task.max-length=32"])
    contract = make_contract(settings, ["no", "yes"])
    spec = extraction_spec(backbone.info, settings, num_blocks=backbone.info.depth, num_outputs=1)
    samples = Samples(["wake me at six", "rain?"], ["set an alarm for six", "play jazz"], torch.zeros(2))
    found = read_activations(backbone, samples, contract, spec)
    assert found.base_logits is None
    for i in range(2):
        tokens = backbone.tokenize([samples.texts[i], (samples.pairs or [])[i]], None, contract.max_length)
        first, second = (backbone.extract([one], layers=spec.layers, pivot="mean").activations[0] for one in tokens)
        torch.testing.assert_close(found.activations[i], compare(first, second), rtol=1e-4, atol=1e-5)
        assert found.activations[i].shape[1:] == spec.row_shape
    with pytest.raises(DataError, match="compares two texts, and these samples have one"):
        read_activations(backbone, Samples(["one"], None, torch.zeros(1)), contract, spec)


def test_a_run_with_pairs_apart_ends_as_the_centralized_one(tmp_path: Path) -> None:
    rows = [
        {"a": f"a {a} cat", "b": f"the {b} dog", "label": "yes" if a == b else "no"} for a in range(9) for b in range(9)
    ]
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tiny_run(
        tmp_path,
        data__source=str(tmp_path),
        data__text_column="a",
        data__pair_column="b",
        data__label_column="label",
        task__kind="pairs",
        activations__bi_encoder=True,
        side_network__name="low-rank",
    )
    assert measure_references(path)["identical"] is True
    assert read_run(path).outcome == "completed"
    model = SideTunedModel.from_pretrained(path / "side_network")
    assert model.predict(["a 1 cat"], ["the 1 dog"]).labels[0] in ("no", "yes")
    with pytest.raises(DataError, match="give both"):
        model.predict("a 1 cat")


@pytest.mark.parametrize(
    ("words", "compared"),
    [
        ([], True),
        (["activations.bi-encoder=false"], False),
        (["data.pair-column=", "task.kind=classification"], False),
        (["activations.pivot=all"], False),
        (["task.prompt={text} or {text_pair}?"], False),
        (["activations.clip-norm=1"], False),
        (["activations.projection=8"], False),
        (["preset=analytic", "privacy.secure-sums=never"], False),
    ],
)
def test_an_encoder_compares_the_texts_of_a_pair_where_nothing_speaks_against_it(
    tmp_path: Path, words: list[str], compared: bool
) -> None:
    settings = load_settings(overrides=[*WORDS[:-1], *words])
    info = load_backbone(str(save_tiny(tmp_path / "bert", "bert")), device="cpu").info
    assert extraction_spec(info, settings, num_blocks=2, num_outputs=1).bi_encoder is compared
    trained = replace(info, base_prediction="classifier")  # which has read both texts together
    causal = load_backbone(str(save_tiny(tmp_path / "opt", "opt")), device="cpu").info
    assert not compares(trained, settings)
    assert not compares(causal, settings)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["data.pair-column="], "data.pair-column is empty"),
        (["activations.pivot=all"], "keeps every token"),
        (["task.prompt={text} or {text_pair}?"], "makes one text of both"),
        (["activations.clip-norm=1"], "fit public texts"),
        (["activations.projection=8"], "fits public texts"),
    ],
)
def test_what_it_cannot_be_combined_with_is_refused(tmp_path: Path, words: list[str], why: str) -> None:
    info = load_backbone(str(save_tiny(tmp_path, "bert")), device="cpu").info
    with pytest.raises(SettingsError, match=why):
        extraction_spec(info, load_settings(overrides=[*WORDS, *words]), num_blocks=2, num_outputs=1)
