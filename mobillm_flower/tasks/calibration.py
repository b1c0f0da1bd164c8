"""Contextual calibration: what a language model says of labels before it has read a text."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from mobillm_flower.backbones.backbone import Backbone
from mobillm_flower.backbones.public import public_text
from mobillm_flower.tasks.task import Samples
from mobillm_flower.tasks.tokens import tokenize
from mobillm_flower.wire.contract import TaskContract

_CONTENT_FREE = ("N/A", "[MASK]", "")
_known: WeakKeyDictionary[Backbone, dict[TaskContract, Tensor]] = WeakKeyDictionary()


def uninformed(backbone: Backbone, contract: TaskContract) -> Tensor:
    """Return log p_0 [K] float32, which base logits are reduced by: p_b = softmax(logits − log p_0).

    p_0 is the mean of the model's own predictions of texts that say nothing about the label (Zhao et al. 2021,
    2102.09690, W = diag(p_0)⁻¹): three without content, or the package's public sentences. No text of a device has a
    part in it.

    Parameters
    ----------
    backbone : Backbone
        Predicts by label words.
    contract : TaskContract
        The task, with its prompt and `calibration`.
    """
    known = _known.setdefault(backbone, {})
    if contract not in known:
        texts = list(public_text()) if contract.calibration == "public" else list(_CONTENT_FREE)
        texts = [text for text in texts if text or contract.prompt]
        samples = Samples(texts, texts if "{text_pair}" in contract.prompt else None, torch.zeros(len(texts)))
        tokens = tokenize(backbone, samples, contract)
        logits = backbone.extract(tokens, layers=[backbone.info.depth], pivot="last").base_logits
        assert logits is not None
        known[contract] = torch.softmax(logits, 1).mean(0).log()
    return known[contract]
