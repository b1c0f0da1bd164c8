from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mobillm_flower.backbones import Backbone, Extraction, load_backbone
from mobillm_flower.backbones.prefix import LEAST_TOKENS
from tests.support.tiny_models import DECODERS, TEXTS, save_tiny

PROMPT = "the good dog ran on and on under the hill and then it slept all day yes maybe the bad cat sat on"
LAYERS = (0, 1, 2, 3)


def engine_of(backbone: Backbone) -> Any:
    """Its engine, of which this looks at what is private."""
    return backbone.engine


def extract(backbone: Backbone, texts: list[str], pivot: str, *, share: bool) -> Extraction:
    if not share:
        engine_of(backbone)._prefixes = None
    return backbone.extract(backbone.tokenize(texts, None, 60), layers=LAYERS, pivot=pivot)


def check_equal(folder: Path, texts: list[str], pivot: str, **options: Any) -> int:
    """Compare both ways; return how many tokens the model read where they are shared."""
    shared, whole = (load_backbone(str(folder), device="cpu", **options) for _ in range(2))
    read: list[int] = []
    model: Any = shared.model
    model.get_input_embeddings().register_forward_hook(lambda _m, inputs, _o: read.append(inputs[0].numel()))
    got, wanted = extract(shared, texts, pivot, share=True), extract(whole, texts, pivot, share=False)
    for one, other in zip(got.activations, wanted.activations, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    if wanted.base_logits is not None:
        torch.testing.assert_close(got.base_logits, wanted.base_logits, rtol=1e-4, atol=1e-4)
    return sum(read)


@pytest.mark.parametrize("name", DECODERS)
def test_a_shared_prefix_changes_nothing(tmp_path: Path, name: str) -> None:
    folder = save_tiny(tmp_path / name, name)
    texts = [f"{PROMPT} {text}" for text in TEXTS]
    whole = sum(len(sample["input_ids"]) for sample in load_backbone(str(folder)).tokenize(texts, None, 60))
    assert check_equal(folder, texts, "first+mean") < 0.75 * whole
    check_equal(folder, texts, "all")


def test_base_predictions_come_out_the_same(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "opt", "opt")
    texts = [f"{PROMPT} {text}" for text in TEXTS]
    check_equal(folder, texts, "last", num_labels=2, label_words=("good", "bad"))


def test_it_is_computed_once_and_a_part_of_it_serves_as_well(tmp_path: Path) -> None:
    folder = str(save_tiny(tmp_path / "llama", "llama"))
    backbone, whole = (load_backbone(folder, device="cpu") for _ in range(2))
    calls: list[int] = []
    prefixes = engine_of(backbone)._prefixes
    compute = prefixes._compute

    def counted(inputs: Any) -> Any:
        calls.append(inputs["input_ids"].shape[1])
        return compute(inputs)

    prefixes._compute = counted
    by_chance = [f"{PROMPT} the dog {text}" for text in TEXTS]  # these share two tokens more than others do
    for texts in (by_chance, [f"{PROMPT} {text}" for text in TEXTS], [f"{PROMPT} a"], by_chance):
        got, wanted = extract(backbone, texts, "mean", share=True), extract(whole, texts, "mean", share=False)
        torch.testing.assert_close(torch.cat(got.activations), torch.cat(wanted.activations), rtol=1e-4, atol=1e-4)
    assert calls == [
        len(PROMPT.split()) + 2,
        (len(PROMPT.split()) + 3) // 2,
    ]  # half again, to see that it works
    other = " ".join(reversed(PROMPT.split()))
    extract(backbone, [f"{other} {text}" for text in TEXTS], "mean", share=True)
    assert len(calls) == 4


@pytest.mark.parametrize("texts", [TEXTS, [PROMPT] * 2, [" ".join(PROMPT.split()[: LEAST_TOKENS - 1])] * 8])
def test_nothing_is_shared_where_it_would_not_pay(tmp_path: Path, texts: list[str]) -> None:
    backbone = load_backbone(str(save_tiny(tmp_path / "gpt2", "gpt2")), device="cpu")
    extract(backbone, texts, "last", share=True)
    assert engine_of(backbone)._prefixes._known is None


def test_models_whose_first_tokens_depend_on_later_ones_share_none(tmp_path: Path) -> None:
    scaled = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    changed: dict[str, dict[str, Any]] = {"bert": {}, "t5": {}, "llama": {"rope_parameters": scaled}}
    for name, changes in changed.items():
        backbone = load_backbone(str(save_tiny(tmp_path / name, name, **changes)), device="cpu")
        assert engine_of(backbone)._prefixes is None


def test_a_model_that_keeps_other_states_shares_none(tmp_path: Path) -> None:
    folder = str(save_tiny(tmp_path / "gpt2", "gpt2"))
    backbone, whole = (load_backbone(folder, device="cpu") for _ in range(2))
    for side in (backbone, whole):  # each token reads the one before it, which no key-value cache holds
        side.stack[1].register_forward_pre_hook(lambda _m, inputs: (inputs[0] + inputs[0].roll(1, 1), *inputs[1:]))
    texts = [f"{PROMPT} {text}" for text in TEXTS]
    got, wanted = extract(backbone, texts, "last", share=True), extract(whole, texts, "last", share=False)
    torch.testing.assert_close(torch.cat(got.activations), torch.cat(wanted.activations))
    assert engine_of(backbone)._prefixes._known is None
