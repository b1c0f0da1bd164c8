"""Layers streamed from disk: the same results as in memory, within a budget, and clear errors where files change."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from mobillm_flower.backbones import Backbone, load_backbone, plan_memory
from mobillm_flower.backbones.memory import MemoryPlan, mib
from mobillm_flower.backbones.streaming import memory_plan
from mobillm_flower.backbones.streaming.engine import StreamedEngine
from mobillm_flower.errors import SettingsError, UnsupportedError, WeightsChanged
from tests.support.tiny_models import DECODERS, ENCODERS, TEXTS, save_tiny, streaming


def both(folder: Path, *, plan: MemoryPlan | None = None, **options: Any) -> tuple[Backbone, Backbone]:
    plan = plan or streaming()
    resident = load_backbone(str(folder), device="cpu", token_budget=plan.tokens, **options)
    return resident, load_backbone(str(folder), device="cpu", plan=plan, **options)


def assert_same(one: Backbone, other: Backbone, *, pivot: str, atol: float = 1e-6, layers: Any = (0, 1, 3)) -> None:
    samples = one.tokenize(TEXTS, None, 32)
    expected, found = (b.extract(samples, layers=layers, pivot=pivot) for b in (one, other))
    for left, right in zip(expected.activations, found.activations, strict=True):
        torch.testing.assert_close(right, left, atol=atol, rtol=1e-5)
    assert (found.base_logits is None) == (expected.base_logits is None)
    if expected.base_logits is not None:
        torch.testing.assert_close(found.base_logits, expected.base_logits, atol=10 * atol, rtol=1e-5)


STREAMED = [name for name in (*ENCODERS, *DECODERS) if name != "deberta-v2"]


@pytest.mark.parametrize("name", STREAMED)
@pytest.mark.parametrize("pivot", ["first+mean", "all"])
def test_the_same_as_in_memory(tmp_path: Path, name: str, pivot: str) -> None:
    resident, streamed = both(save_tiny(tmp_path, name))
    assert all(p.is_meta for layer in streamed.stack for p in layer.parameters())
    assert_same(resident, streamed, pivot=pivot)
    assert all(p.is_meta for layer in streamed.stack for p in layer.parameters())
    assert (resident.engine.name, streamed.engine.name) == ("torch", "streamed")
    assert resident.info == streamed.info


@pytest.mark.parametrize("name", DECODERS)
def test_label_words(tmp_path: Path, name: str) -> None:
    resident, streamed = both(save_tiny(tmp_path, name), label_words=["yes", "no"])
    assert_same(resident, streamed, pivot="last", layers=(2, 3))


@pytest.mark.parametrize("precision", ["int8", "nf4", "fp4"])
@pytest.mark.parametrize("name", ["opt-projected", "gpt2", "bert"])
def test_packed_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, precision: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = save_tiny(tmp_path / "model", name, widen=8)
    resident, streamed = both(folder, precision=precision)
    samples = resident.tokenize(TEXTS, None, 32)
    expected, found = (b.extract(samples, layers=(1, 3), pivot="all").activations for b in (resident, streamed))
    for left, right in zip(expected, found, strict=True):
        # in memory, processors with AVX512-BF16 keep the scales of 4 bits in bf16
        assert (left - right).norm() / left.norm() < (1e-4 if precision == "int8" else 0.02)
    (kept,) = (tmp_path / "cache" / "mobillm-flower").iterdir()
    before = {file: file.stat().st_mtime_ns for file in kept.iterdir()}
    assert len(before) == 3
    again = load_backbone(str(folder), device="cpu", plan=streaming(), precision=precision)
    assert {file: file.stat().st_mtime_ns for file in kept.iterdir()} == before  # packed once
    for left, right in zip(found, again.extract(samples, layers=(1, 3), pivot="all").activations, strict=True):
        assert torch.equal(left, right)


def layers_of(streamed: Backbone) -> Any:
    """The engine's reader of layers, which is private."""
    engine: Any = streamed.engine
    return engine._layers


def test_hidden_states_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "spilled"))
    (tmp_path / "spilled").mkdir()
    resident, streamed = both(save_tiny(tmp_path / "m", "opt"), plan=streaming(hidden=0), label_words=["yes", "no"])
    seen: list[int] = []
    layers = layers_of(streamed)
    read = layers.layer

    def reading(number: int, room: torch.Tensor) -> Any:
        seen.extend(file.stat().st_size for file in tmp_path.glob("spilled/*/*"))
        return read(number, room)

    layers.layer = reading
    assert_same(resident, streamed, pivot="last")
    assert max(seen) >= sum(len(s["input_ids"]) for s in resident.tokenize(TEXTS, None, 32)) * 16 * 4
    assert not list((tmp_path / "spilled").iterdir())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precisions(tmp_path: Path, precision: str) -> None:
    resident, streamed = both(save_tiny(tmp_path, "llama"), precision=precision)
    assert_same(resident, streamed, pivot="last")


def test_layers_after_the_last_sampled_one_are_not_read(tmp_path: Path) -> None:
    _, streamed = both(save_tiny(tmp_path, "bert"))
    layers, numbers = layers_of(streamed), []
    read = layers.layer

    def noted(number: int, room: torch.Tensor) -> Any:
        numbers.append(number)
        return read(number, room)

    layers.layer = noted
    streamed.extract(streamed.tokenize(TEXTS, None, 32), layers=(1, 2), pivot="mean")
    assert numbers == [0, 0, 1]  # the first one also to see what it returns
    streamed.extract(streamed.tokenize(TEXTS, None, 32), layers=(3,), pivot="mean")
    assert numbers == [0, 0, 1, 0, 1, 2]  # each once for all batches


def test_a_classification_head(tmp_path: Path) -> None:
    for name in ("bert", "gpt2"):
        folder = save_tiny(tmp_path / name, name, auto="AutoModelForSequenceClassification", num_labels=3)
        resident, streamed = both(folder, num_labels=3)
        assert resident.info.base_prediction == "classifier"
        assert_same(resident, streamed, pivot="last")


# what goes wrong ------------------------------------------------------------------------------------------------
def weights_of(folder: Path) -> Path:
    return folder / "model.safetensors"


def disturbed(folder: Path, disturb: Any, **plan: Any) -> Backbone:
    """A streamed backbone; `disturb(file)` is called once, when the second layer is about to be read."""
    streamed = load_backbone(str(folder), device="cpu", plan=streaming(**plan))
    layers = layers_of(streamed)
    read = layers.check
    calls: list[int] = []

    def check() -> None:
        calls.append(1)
        if len(calls) == 2:
            disturb(weights_of(folder))
        read()

    layers.check = check
    return streamed


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def rewrite(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.seek(-8, os.SEEK_END)
        stream.write(bytes(8))
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))


@pytest.mark.parametrize(
    ("disturb", "words"),
    [
        (cut, r"model.safetensors ends after [\d,]+ bytes where [\d,]+ were there"),
        (rewrite, "model.safetensors was changed while its layers were read"),
        (Path.unlink, "model.safetensors is gone"),
    ],
)
@pytest.mark.parametrize("ahead", [True, False])
def test_a_weights_file_that_changes_mid_run(tmp_path: Path, disturb: Any, words: str, ahead: bool) -> None:
    streamed = disturbed(save_tiny(tmp_path, "opt"), disturb, ahead=ahead)
    with pytest.raises(WeightsChanged, match=words):
        streamed.extract(streamed.tokenize(TEXTS, None, 32), layers=(1, 3), pivot="last")
    assert not any("forward" in vars(layer) for layer in streamed.stack)


def test_a_file_that_is_cut_between_the_look_at_it_and_the_read(tmp_path: Path) -> None:
    streamed = load_backbone(str(save_tiny(tmp_path, "opt")), device="cpu", plan=streaming())
    layers_of(streamed).check = lambda: None
    cut(weights_of(tmp_path))
    with pytest.raises(WeightsChanged, match="ends after"):
        streamed.extract(streamed.tokenize(TEXTS, None, 32), layers=(1, 3), pivot="last")


def test_a_file_that_was_cut_before(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, "opt")
    cut(weights_of(folder))
    with pytest.raises(UnsupportedError, match=r"has [\d,]+ bytes where its header names [\d,]+; fetch the model anew"):
        load_backbone(str(folder), device="cpu", plan=streaming())


@pytest.mark.parametrize("ahead", [True, False])
def test_a_slow_disk_costs_time_alone(tmp_path: Path, ahead: bool) -> None:
    resident, streamed = both(save_tiny(tmp_path, "opt"), plan=streaming(ahead=ahead))
    engine = streamed.engine
    assert isinstance(engine, StreamedEngine)
    read = engine._layers.layer

    def slow(number: int, room: torch.Tensor) -> dict[str, torch.Tensor]:
        time.sleep(0.05)
        return read(number, room)

    engine._layers.layer = slow  # type: ignore[method-assign]
    assert_same(resident, streamed, pivot="last")
    assert engine.waited > 0.04  # the device tells that it waits


def test_a_model_that_works_between_its_layers_is_refused(tmp_path: Path) -> None:
    _, streamed = both(save_tiny(tmp_path, "deberta-v2"))
    with pytest.raises(UnsupportedError, match="works on hidden states between its layers 1 and 2"):
        streamed.extract(streamed.tokenize(TEXTS, None, 32), layers=(1, 3), pivot="mean")


def test_what_cannot_be_streamed_is_refused(tmp_path: Path) -> None:
    folder = str(save_tiny(tmp_path / "opt", "opt"))
    with pytest.raises(UnsupportedError, match="cannot be streamed with a language-model head"):
        load_backbone(folder, device="cpu", plan=streaming(), language_model=True)
    folder = str(save_tiny(tmp_path / "t5", "t5"))
    with pytest.raises(UnsupportedError, match="the layers of an encoder-decoder cannot be streamed"):
        load_backbone(folder, device="cpu", plan=streaming())


# the plan -------------------------------------------------------------------------------------------------------
@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The configuration of OPT-1.3B, in a process that takes 400 MiB."""
    monkeypatch.setattr(memory_plan, "anonymous_bytes", lambda: 400 << 20)
    transformers.OPTConfig(
        hidden_size=2048, ffn_dim=8192, num_hidden_layers=24, num_attention_heads=32, word_embed_proj_dim=2048
    ).save_pretrained(tmp_path)
    return str(tmp_path)


def test_a_plan_fits_its_budget(large: str) -> None:
    def plan(budget_mib: int, precision: str = "bf16") -> MemoryPlan:
        return plan_memory(large, budget_mib=budget_mib, precision=precision, max_length=256)

    whole = plan(5000)
    assert not whole.streamed
    assert whole.tokens == 4096
    assert mib(whole.whole) in str(whole)
    wide, narrow = plan(950), plan(700)
    for found in (wide, narrow):
        assert found.streamed
        taken = found.process + found.outer + (1 + found.ahead) * found.layer + found.work + memory_plan._SPARE
        assert found.hidden == found.budget - taken
        assert found.layer == sum(2 * n for n in (4 * 2048**2, 2 * 2048 * 8192, 4 * 2048 + 8192 + 2048, 4 * 2048))
    assert (wide.ahead, wide.tokens > narrow.tokens) == (True, True)
    assert "streamed: 24 layers of 96 MiB, two in memory" in str(wide)
    assert plan(740, "nf4").ahead


def test_a_budget_below_one_layer_is_refused_with_the_least_that_would_do(large: str) -> None:
    with pytest.raises(
        SettingsError, match=r"memory-budget-mib=450 cannot be met: .* the least that would do is \d+"
    ) as error:
        plan_memory(large, budget_mib=450, precision="bf16", max_length=256)
    least = int(str(error.value).partition("would do is ")[2].split()[0])
    found = plan_memory(large, budget_mib=least, precision="bf16", max_length=256)
    assert (found.streamed, found.ahead, found.tokens) == (True, False, 256)
    with pytest.raises(SettingsError, match=f"the least that would do is {least} "):
        plan_memory(large, budget_mib=least - 1, precision="bf16", max_length=256)
