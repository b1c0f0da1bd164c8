"""Conformance: every family that the documentation names, as a tiny random model, through all that a backbone does."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mobillm_flower import SideTunedModel
from mobillm_flower.backbones import Backbone, load_backbone
from mobillm_flower.core.pivots import PIVOTS
from mobillm_flower.runs.events import Trained
from mobillm_flower.runs.record import read_run
from tests.support import pages
from tests.support.families import FAMILIES, HEAD, cells, quantized
from tests.support.pages import ROOT
from tests.support.runs import run, tiny_config
from tests.support.tiny_models import CONFIGS, ENCODER_DECODERS, LM_HEADS, TEXTS, VOCABULARY, save_tiny

PAGE = ROOT / "docs" / "reference" / "families.md"
LAYERS = (0, 1, 2, 3)
every_family = pytest.mark.parametrize("name", CONFIGS)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@pytest.fixture(scope="module")
def folders(root: Path) -> dict[str, Path]:
    return {name: save_tiny(root / name, name) for name in CONFIGS}


@pytest.fixture(scope="module")
def backbones(folders: dict[str, Path]) -> dict[str, Backbone]:
    return {name: load_backbone(str(folder), device="cpu") for name, folder in folders.items()}


@pytest.fixture(scope="module")
def small(root: Path) -> dict[tuple[str, str], Backbone | None]:
    return {(name, form): quantized(root, name, form) for name in CONFIGS for form in ("int8", "nf4")}


def reference(folder: Path, inputs: dict[str, Tensor]) -> Tensor:
    """What transformers says that each layer leaves, [B, T, M, d]; that of the last one before any final norm."""
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    side = model.get_decoder() if model.config.is_encoder_decoder else model
    stack = next(m for m in side.modules() if isinstance(m, nn.ModuleList) and len(m) == LAYERS[-1])
    last: list[Tensor] = []
    stack[-1].register_forward_hook(lambda _m, _i, out: last.append(out[0] if isinstance(out, tuple) else out))
    if model.config.is_encoder_decoder:
        start = model.config.decoder_start_token_id
        inputs = {**inputs, "decoder_input_ids": torch.full((len(inputs["input_ids"]), 1), start)}
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True)
    states = output.decoder_hidden_states if model.config.is_encoder_decoder else output.hidden_states
    return torch.stack([*states[:-1], last[0]], 2)


def padded(backbone: Backbone, samples: list[dict[str, list[int]]], side: str) -> tuple[dict[str, Tensor], Tensor]:
    """Samples as transformers pads them, with the positions that its `generate` gives, and the mask of what is kept."""
    backbone.tokenizer.padding_side = side
    inputs = dict(backbone.tokenizer.pad(samples, return_tensors="pt"))
    mask = inputs["attention_mask"]
    config: Any = backbone.model.config
    own = ("opt", "roberta")  # count their positions from the mask or the padding themselves
    if backbone.info.family not in own and "position_ids" in inspect.signature(backbone.model.forward).parameters:
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    return inputs, mask[:, :1] | 1 if config.is_encoder_decoder else mask


@every_family
def test_the_last_layer_s_and_every_other_state_are_transformers_own(
    folders: dict[str, Path], backbones: dict[str, Backbone], name: str
) -> None:
    backbone = backbones[name]
    samples = backbone.tokenize(TEXTS, None, 32)
    assert max(len(sample["input_ids"]) for sample in samples) > 8  # beyond every window
    found = backbone.extract(samples, layers=LAYERS, pivot="all")
    some = backbone.extract(samples, layers=(1, 3), pivot="first+mean")
    assert found.base_logits is None
    for i, sample in enumerate(samples):
        (expected,) = reference(folders[name], {key: torch.tensor([ids]) for key, ids in sample.items()})
        assert found.activations[i].dtype == torch.float32
        torch.testing.assert_close(found.activations[i][:, :, 0], expected, atol=1e-5, rtol=1e-5)
        both = torch.stack([expected[0], expected.mean(0)], 1)[[1, 3]]  # [M, P, d]
        torch.testing.assert_close(some.activations[i], both[None], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "side"),
    # BART's encoder counts its positions from the left edge, padding or not
    [(name, side) for name in CONFIGS for side in ("left", "right") if (name, side) != ("bart", "left")],
)
def test_pivots_under_left_and_right_padding(
    folders: dict[str, Path], backbones: dict[str, Backbone], name: str, side: str
) -> None:
    backbone = backbones[name]
    samples = backbone.tokenize(TEXTS, None, 32)
    inputs, mask = padded(backbone, samples, side)
    expected = reference(folders[name], inputs)
    assert name in ENCODER_DECODERS or (mask[:, 0 if side == "left" else -1] == 0).any()
    for pivot in ("first", "last", "mean", "first+mean"):
        found = torch.cat(backbone.extract(samples, layers=LAYERS, pivot=pivot).activations)  # [B, M, P, d]
        for place in range(len(LAYERS)):
            selected = PIVOTS[pivot].select(expected[:, :, place], mask)
            torch.testing.assert_close(found[:, place], selected, atol=2e-5, rtol=1e-5)


@every_family
def test_truncation(folders: dict[str, Path], backbones: dict[str, Backbone], tmp_path: Path, name: str) -> None:
    """Later layers are neither there nor run: not-a-number in their weights changes nothing."""
    save_tiny(tmp_path, name)
    weights = load_file(tmp_path / "model.safetensors")
    poisoned = [key for key in weights if f".{backbones[name].stack_name}.2." in f".{key}"]
    assert poisoned
    for key in poisoned:
        weights[key].fill_(float("nan"))
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    short = load_backbone(str(tmp_path), device="cpu", layers=2)
    assert (short.info.depth, len(short.stack)) == (2, 2)
    assert short.info.fingerprint != backbones[name].info.fingerprint
    assert not any(torch.isnan(parameter).any() for parameter in short.model.parameters())
    samples = short.tokenize(TEXTS, None, 32)
    found = short.extract(samples, layers=(1, 2), pivot="mean").activations
    expected = backbones[name].extract(samples, layers=(1, 2), pivot="mean").activations
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", LM_HEADS)
def test_label_words_have_the_language_model_s_own_logits(folders: dict[str, Path], name: str) -> None:
    """Scaled and capped as the model does it, where it does."""
    words = ["yes", "no", "maybe"]
    backbone = load_backbone(str(folders[name]), device="cpu", label_words=words)
    assert backbone.info.base_prediction == "label-words"
    samples = backbone.tokenize(TEXTS, None, 32)
    found = backbone.extract(samples, layers=(3,), pivot="last").base_logits
    assert found is not None
    whole = getattr(transformers, LM_HEADS[name]).from_pretrained(folders[name], dtype=torch.float32).eval()
    ids = [backbone.tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0] for word in words]
    start = {"decoder_input_ids": torch.tensor([[0]])} if name in ENCODER_DECODERS else {}
    for i, sample in enumerate(samples):
        with torch.no_grad():
            logits = whole(input_ids=torch.tensor([sample["input_ids"]]), **start).logits[0, -1]
        assert logits.shape == (VOCABULARY,)
        torch.testing.assert_close(found[i], logits[ids], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in LM_HEADS if name not in ENCODER_DECODERS])
def test_whole_label_words_have_the_language_model_s_own_likelihood(folders: dict[str, Path], name: str) -> None:
    words = ["yes", "yes no", "yes no yes", "maybe"]  # all but the last begin alike
    backbone = load_backbone(str(folders[name]), device="cpu", label_words=words, whole_words=True)
    samples = backbone.tokenize(TEXTS, None, 32)
    read = backbone.extract(samples, layers=(3,), pivot="last")
    assert read.base_logits is not None
    whole = getattr(transformers, LM_HEADS[name]).from_pretrained(folders[name], dtype=torch.float32).eval()
    tokens = [backbone.tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in words]
    assert len({len(word) for word in tokens}) > 1
    for found, sample in zip(read.base_logits, samples, strict=True):
        for score, word in zip(found, tokens, strict=True):
            ids = torch.tensor([[*sample["input_ids"], *word]])
            with torch.no_grad():
                likely = torch.log_softmax(whole(input_ids=ids).logits[0], 1)
            before = len(sample["input_ids"]) - 1
            expected = sum(likely[before + i, token] for i, token in enumerate(word))
            torch.testing.assert_close(score, expected, atol=1e-4, rtol=1e-5)
    plain = load_backbone(str(folders[name]), device="cpu").extract(samples, layers=(3,), pivot="last")
    for one, other in zip(read.activations, plain.activations, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def round_weights(full: Backbone, small: Backbone) -> None:
    """Give the full model the values that 4 bits stand for: random weights are far from their neighbours."""
    modules = dict(full.model.named_modules())
    for name, module in small.model.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            values = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state).float()
            weight: Any = modules[name].weight
            with torch.no_grad():
                weight.copy_(values if isinstance(modules[name], nn.Linear) else values.T)  # GPT-2's is [in, out]


@every_family
@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_quantized_weights_on_the_cpu(
    root: Path, small: dict[tuple[str, str], Backbone | None], name: str, precision: str
) -> None:
    backbone = small[name, precision]
    assert backbone is not None
    full = load_backbone(str(root / f"{name}-wide"), device="cpu")
    assert (backbone.info.precision, backbone.info.fingerprint) == (precision, full.info.fingerprint)
    kept = torch.int8 if precision == "int8" else torch.uint8
    stored = [p.dtype for layer in backbone.stack for p in layer.parameters() if p.dim() > 1]
    assert stored.count(kept) >= len(stored) / 2  # T5 keeps one product and its relative positions as they are
    if precision == "nf4":
        round_weights(full, backbone)
    samples = full.tokenize(TEXTS, None, 32)
    expected, found = (b.extract(samples, layers=LAYERS, pivot="mean") for b in (full, backbone))
    before = [p.clone() for p in backbone.model.parameters()]  # packed for the processor when they were first used
    again = backbone.extract(samples, layers=LAYERS, pivot="mean")
    assert all(torch.equal(p, q) for p, q in zip(backbone.model.parameters(), before, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(found.activations, again.activations, strict=True))
    for one, other in zip(found.activations, expected.activations, strict=True):
        assert (0.9 if precision == "int8" else 0.99) < torch.cosine_similarity(one.flatten(), other.flatten(), 0) < 1


@every_family
def test_three_steps_of_side_tuning_saved_and_loaded(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    """Devices upload, the server trains, and what it saved predicts as it should."""
    config = tiny_config(
        tmp_path / "run",
        folders[name],
        data__max_samples=8,
        rounds__window=8,
        trainer__batch_size=8,
        trainer__epochs=1,
        trainer__overlap_steps=0,
    )
    run(config)
    (trained,) = read_run(tmp_path / "run").all(Trained)
    assert trained.steps == 3
    model = SideTunedModel.from_pretrained(tmp_path / "run" / "side_network", device="cpu")
    untuned = model.with_network(None).predict(TEXTS).scores
    found = model.predict(TEXTS)
    assert (found.scores - untuned).abs().max() > 1e-4
    model.save_pretrained(tmp_path / "again")
    again = SideTunedModel.from_pretrained(tmp_path / "again", backbone=model.backbone)
    assert torch.equal(again.predict(TEXTS).scores, found.scores)


# the page --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def generator() -> ModuleType:
    return pages.generator("generate_families")


def test_the_table_is_up_to_date(
    generator: ModuleType,
    folders: dict[str, Path],
    backbones: dict[str, Backbone],
    small: dict[tuple[str, str], Any],
) -> None:
    assert set(FAMILIES) == set(CONFIGS)
    rows = [cells(name, folders[name], backbones[name], small[name, "int8"], small[name, "nf4"]) for name in CONFIGS]
    page = PAGE.read_text("utf-8")
    assert page == generator.written(page, HEAD, rows), "run: python docs/generate_families.py"
