"""What a loaded model gives: of activations, and of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import DynamicCache

from mobillm_flower import SideTunedModel
from mobillm_flower.backbones.key_values import cache_name
from mobillm_flower.core.side_networks import ActivationBatch

INPUTS = ("rows", "lengths", "sequences")


@torch.inference_mode()
def observe(model: SideTunedModel, given: Mapping[str, torch.Tensor], texts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return s(A) of given activations, and scores of texts; of a language model logits, and what it writes."""
    parts: list[Any] = [given.get(name) for name in INPUTS]
    assert model.side_network is not None
    found = {"side": model.side_network([ActivationBatch(model.backbone.info.fingerprint, *parts)])}
    if not model.contract.per_token:
        return {**found, "scores": model.predict(texts).scores}
    for number, text in enumerate(texts):
        ids = model.tokenizer(text, return_tensors="pt").input_ids
        cached: dict[str, Any] = {cache_name(model.language_model): DynamicCache(), "use_cache": True}
        found[f"logits.{number}"] = model.language_model(ids, **cached).logits[0]
        written = model.generate(text, max_new_tokens=6, do_sample=False)
        found[f"written.{number}"] = torch.tensor(list(written.encode()), dtype=torch.uint8)
    return {name: value.clone() for name, value in found.items()}
