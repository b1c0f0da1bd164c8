"""Layers streamed from disk: the same results as in memory, within a budget, and clear errors where files change."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mobillm_flower.backbones import Backbone, load_backbone
from mobillm_flower.backbones.memory import MemoryPlan
from tests.support.tiny_models import DECODERS, ENCODERS, TEXTS, save_tiny


def streaming(*, tokens: int = 64, hidden: int = 1 << 20, ahead: bool = True) -> MemoryPlan:
    return MemoryPlan(
        budget=1 << 30,
        process=0,
        outer=0,
        layer=0,
        num_layers=3,
        whole=0,
        work=0,
        tokens=tokens,
        streamed=True,
        ahead=ahead,
        hidden=hidden,
    )


def both(folder: Path, *, plan: MemoryPlan | None = None, **options) -> tuple[Backbone, Backbone]:
    plan = plan or streaming()
    resident = load_backbone(str(folder), device="cpu", token_budget=plan.tokens, **options)
    return resident, load_backbone(str(folder), device="cpu", plan=plan, **options)


def assert_same(one: Backbone, other: Backbone, *, pivot: str, atol: float = 1e-6, layers=(1, 3)) -> None:
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
