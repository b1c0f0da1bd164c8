"""Backbones: what is found in a model, and that what is kept is what the model computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from mobillm_flower.backbones import Backbone, load_backbone
from mobillm_flower.backbones.backbone import batches_by_length
from mobillm_flower.backbones.public import public_text, public_transform
from mobillm_flower.errors import DataError, SettingsError, UnsupportedError
from tests.support.tiny_models import (
    CONFIGS,
    DECODERS,
    TEXTS,
    VOCABULARY,
    make_model,
    save_model,
    save_tiny,
    weights_digest,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: save_tiny(root / name, name) for name in ("bert", "opt", "opt-projected", "gpt2", "llama")}


@pytest.fixture(scope="module")
def backbones(folders: dict[str, Path]) -> dict[str, Backbone]:
    return {name: load_backbone(str(folder), device="cpu") for name, folder in folders.items()}


# description -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("auto", ["AutoModel", "AutoModelForSequenceClassification"])
def test_a_decoder_is_causal_whatever_head_it_was_saved_with(tmp_path: Path, name: str, auto: str) -> None:
    """The first token of a causal model sees nothing else, so the encoder's default pivot would be half empty."""
    info = load_backbone(str(save_tiny(tmp_path, name, auto=auto)), device="cpu").info
    assert info.causal
    assert info.default_pivot == "last"


def test_fingerprint_is_of_weights_and_depth(folders: dict[str, Path], tmp_path: Path) -> None:
    def fingerprint(folder: Path, **options: Any) -> str:
        return load_backbone(str(folder), device="cpu", **options).info.fingerprint

    first = fingerprint(folders["bert"])
    assert first == fingerprint(folders["bert"])
    assert first == fingerprint(folders["bert"], precision="bf16")
    assert first == fingerprint(save_tiny(tmp_path / "same", "bert"))
    assert first != fingerprint(folders["bert"], layers=2)
    assert first != fingerprint(save_tiny(tmp_path / "other", "bert", seed=1))


# what is kept ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("budget", [1, 12, 30, 10_000])
def test_order_is_restored_under_any_token_budget(folders: dict[str, Path], budget: int) -> None:
    backbone = load_backbone(str(folders["bert"]), device="cpu", token_budget=budget)
    samples = backbone.tokenize(TEXTS * 2, None, 32)
    for batch in backbone.padded_batches(samples):
        assert batch["input_ids"].numel() <= budget or len(batch["input_ids"]) == 1
    assert sum(len(batch["input_ids"]) for batch in backbone.padded_batches(samples)) == len(samples)
    found = backbone.extract(samples, layers=(3,), pivot="mean").activations
    for i in range(len(TEXTS)):
        torch.testing.assert_close(found[i], found[i + len(TEXTS)], atol=1e-5, rtol=0)
        alone = backbone.extract([samples[i]], layers=(3,), pivot="mean").activations[0]
        torch.testing.assert_close(found[i], alone, atol=1e-5, rtol=0)


class TooSmall:
    """An engine for whose memory batches of more than so many tokens are too large."""

    def __init__(self, engine: Any, tokens: int) -> None:
        self.engine, self.tokens, self.name = engine, tokens, engine.name

    def prepare(self, layers: Any, select: Any) -> Any:
        return self.engine.prepare(layers, select)

    def run(self, batches: Any, layers: Any, select: Any) -> Any:
        for inputs in batches:
            if inputs["input_ids"].numel() > self.tokens:
                raise torch.OutOfMemoryError("CUDA out of memory")
            yield from self.engine.run([inputs], layers, select)


def test_out_of_memory_halves_the_token_budget_once_and_is_then_refused_by_name(folders: dict[str, Path]) -> None:
    backbone = load_backbone(str(folders["bert"]), device="cpu", token_budget=80)
    samples = backbone.tokenize(TEXTS * 4, None, 32)
    whole = backbone.extract(samples, layers=(1, 3), pivot="mean").activations
    engine: Any = backbone.engine
    backbone.engine = TooSmall(engine, 40)
    for found, expected in zip(backbone.extract(samples, layers=(1, 3), pivot="mean").activations, whole, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert backbone.token_budget == 40
    backbone.engine = TooSmall(engine, 19)
    with pytest.raises(UnsupportedError, match=r"batches of 40 tokens, and of 20; lower backbone\.token-budget"):
        backbone.extract(samples, layers=(1, 3), pivot="mean")


def test_no_samples(backbones: dict[str, Backbone]) -> None:
    found = backbones["bert"].extract([], layers=(1,), pivot="mean")
    assert found.activations == []
    assert found.base_logits is None


def test_standardised_public_text_has_unit_variance(backbones: dict[str, Backbone]) -> None:
    backbone = backbones["bert"]
    standardisation = public_transform(backbone, layers=(1, 3), pivot="mean", max_length=32)
    samples = backbone.tokenize(public_text(), None, 32)
    found = backbone.extract(samples, layers=(1, 3), pivot="mean", transform=standardisation)
    values = torch.cat(found.activations)
    torch.testing.assert_close(values.mean(0), torch.zeros(2, 1, 16), atol=1e-4, rtol=0)
    torch.testing.assert_close(values.std(0, correction=0), torch.ones(2, 1, 16), atol=1e-3, rtol=0)
    assert public_transform(backbone, layers=(1, 3), pivot="mean", max_length=32) is standardisation


# frozen ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["bert", "opt"])
def test_nothing_is_trained(backbones: dict[str, Backbone], name: str) -> None:
    backbone = backbones[name]
    before = weights_digest(backbone.model)
    found = backbone.extract(backbone.tokenize(TEXTS, None, 32), layers=(1, 3), pivot="mean")
    assert weights_digest(backbone.model) == before
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())
    assert not any(activation.requires_grad for activation in found.activations)
    assert not any(module.training for module in backbone.model.modules())
    assert not any(module._forward_hooks for module in backbone.model.modules())


def test_weights_digest_sees_one_changed_weight(tmp_path: Path) -> None:
    model = load_backbone(str(save_tiny(tmp_path, "bert")), device="cpu").model
    before = weights_digest(model)
    with torch.no_grad():
        next(model.parameters()).view(-1)[5] += 1e-6
    assert weights_digest(model) != before


def test_hooks_go_when_the_forward_pass_fails(backbones: dict[str, Backbone]) -> None:
    backbone = backbones["gpt2"]
    with pytest.raises(IndexError, match="index out of range"):
        backbone.extract([{"input_ids": [VOCABULARY + 5]}], layers=(1, 3), pivot="last")
    assert not any(module._forward_hooks for module in backbone.model.modules())


# base predictions ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["opt-projected", "gpt2", "llama"])
def test_the_whole_vocabulary_is_never_projected(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    backbone = load_backbone(str(folders[name]), device="cpu", label_words=["yes", "no"])
    whole = transformers.AutoModelForCausalLM.from_pretrained(folders[name]).eval()
    widths: list[int] = []
    linear = nn.functional.linear

    def spy(*arguments: Any, **keywords: Any) -> Any:
        out = linear(*arguments, **keywords)
        widths.append(out.shape[-1])
        return out

    monkeypatch.setattr(nn.functional, "linear", spy)
    samples = backbone.tokenize(TEXTS, None, 32)
    backbone.extract(samples, layers=(3,), pivot="last")
    assert 2 in widths  # the label words
    assert max(widths) < VOCABULARY
    with torch.no_grad():
        whole(input_ids=torch.tensor([samples[0]["input_ids"]]))
    assert max(widths) == VOCABULARY  # the spy sees it where it happens
    assert not any(getattr(module, "out_features", 0) == VOCABULARY for module in backbone.model.modules())


def test_label_words_must_differ_in_their_first_token(folders: dict[str, Path]) -> None:
    with pytest.raises(
        SettingsError, match="'good dog' and 'good' begin with the same token; choose words that differ"
    ):
        load_backbone(str(folders["gpt2"]), device="cpu", label_words=["good", "bad", "good dog"])


def test_a_trained_classification_head_predicts(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, "bert", auto="AutoModelForSequenceClassification", num_labels=3)
    backbone = load_backbone(str(folder), device="cpu", num_labels=3)
    assert backbone.info.base_prediction == "classifier"
    samples = backbone.tokenize(TEXTS, None, 32)
    found = backbone.extract(samples, layers=(1, 3), pivot="mean")
    assert found.base_logits is not None
    reference = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    plain = load_backbone(str(folder), device="cpu").extract(samples, layers=(1, 3), pivot="mean")
    assert plain.base_logits is None
    for i, sample in enumerate(samples):
        with torch.no_grad():
            logits = reference(**{name: torch.tensor([ids]) for name, ids in sample.items()}).logits[0]
        torch.testing.assert_close(found.base_logits[i], logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.activations[i], plain.activations[i], atol=1e-5, rtol=0)


def test_a_causal_classification_head_reads_the_last_token_of_each_sample(tmp_path: Path) -> None:
    """Whether or not the checkpoint names a padding token."""
    folder = save_tiny(tmp_path, "gpt2", auto="AutoModelForSequenceClassification", num_labels=3, pad_token_id=None)
    backbone = load_backbone(str(folder), device="cpu", num_labels=3)
    samples = backbone.tokenize(TEXTS, None, 32)
    together = backbone.extract(samples, layers=(3,), pivot="last").base_logits
    assert together is not None
    for i, sample in enumerate(samples):
        alone = backbone.extract([sample], layers=(3,), pivot="last").base_logits
        torch.testing.assert_close(together[i], alone[0], atol=1e-5, rtol=0)  # type: ignore[index]


@pytest.mark.parametrize("num_labels", [0, 2, 4])
def test_a_head_of_another_size_is_not_used(tmp_path: Path, num_labels: int) -> None:
    folder = save_tiny(tmp_path, "bert", auto="AutoModelForSequenceClassification", num_labels=3)
    backbone = load_backbone(str(folder), device="cpu", num_labels=num_labels)
    assert backbone.info.base_prediction == "constant"
    assert backbone.extract(backbone.tokenize(TEXTS, None, 32), layers=(3,), pivot="mean").base_logits is None


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_checkpoint_without_a_head_gets_no_random_one(tmp_path: Path, name: str) -> None:
    folder = save_tiny(tmp_path, name, auto="AutoModel", num_labels=3)
    backbone = load_backbone(str(folder), device="cpu", num_labels=3)
    assert backbone.info.base_prediction == "constant"
    assert backbone.extract(backbone.tokenize(TEXTS, None, 32), layers=(3,), pivot="last").base_logits is None


def test_a_head_that_the_weights_lack_is_not_made_up(tmp_path: Path) -> None:
    """The configuration names a classifier, the weight file has none."""
    folder = save_tiny(tmp_path, "bert", auto="AutoModelForSequenceClassification", num_labels=3)
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("classifier.")}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    try:
        backbone = load_backbone(str(folder), device="cpu", num_labels=3)
    except UnsupportedError as error:
        assert "classifier" in str(error)  # noqa: PT017 - either answer will do
    else:
        assert backbone.info.base_prediction == "constant"


# tokens ----------------------------------------------------------------------------------------------------------
def test_tokenize_cuts_and_pairs(backbones: dict[str, Backbone]) -> None:
    backbone = backbones["bert"]
    short, long = backbone.tokenize(["dog", TEXTS[0]], None, 6)
    assert (len(short["input_ids"]), len(long["input_ids"])) == (3, 6)
    (pair,) = backbone.tokenize(["the cat"], ["a dog"], 32)
    assert pair["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]


def test_a_text_without_tokens_is_an_error(backbones: dict[str, Backbone]) -> None:
    with pytest.raises(DataError, match="sample 1 has no tokens; remove empty texts from the data"):
        backbones["gpt2"].tokenize(["dog", "  "], None, 8)


def test_public_text() -> None:
    assert len(public_text()) >= 1000
    assert len(set(public_text())) == len(public_text())


# precisions ------------------------------------------------------------------------------------------------------
def test_long_samples_do_not_pad_short_ones() -> None:
    lengths = [32] * 20 + [10] * 60 + [11] * 20 + [40]
    found = [sorted(lengths[i] for i in batch) for batch in batches_by_length(lengths, 4096)]
    assert found == [[10] * 60 + [11] * 20, [32] * 20 + [40]]
    assert list(batches_by_length([4, 8, 16, 30], 4096)) == [[0, 1, 2, 3]]
    assert list(batches_by_length([30, 8, 16], 32)) == [[1, 2], [0]]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precisions(folders: dict[str, Path], backbones: dict[str, Backbone], precision: str) -> None:
    small = load_backbone(str(folders["llama"]), device="cpu", precision=precision)
    samples = small.tokenize(TEXTS, None, 32)
    found, expected = (b.extract(samples, layers=(3,), pivot="last") for b in (small, backbones["llama"]))
    for one, other in zip(found.activations, expected.activations, strict=True):
        assert one.dtype == torch.float32
        assert torch.cosine_similarity(one.flatten(), other.flatten(), 0) > 0.99


# positions -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("kind", "pad", "positions"), [("MPNet", 1, 62), ("XLMRoberta", 1, 62), ("Bert", 1, 64)])
def test_positions_that_are_counted_from_behind_the_padding(
    tmp_path: Path, kind: str, pad: int, positions: int
) -> None:
    config = getattr(transformers, f"{kind}Config")(**CONFIGS["bert"][1] | {"pad_token_id": pad})
    save_model(tmp_path, make_model(config, "AutoModel"), adds_special_tokens=True)
    backbone = load_backbone(str(tmp_path), device="cpu")
    longest = backbone.tokenize(["dog " * 100], None, positions)
    assert torch.isfinite(backbone.extract(longest, layers=(3,), pivot="mean").activations[0]).all()
    with pytest.raises(SettingsError, match=f"task.max-length={positions + 1}, but .* has {positions} positions"):
        backbone.tokenize(["dog"], None, positions + 1)
