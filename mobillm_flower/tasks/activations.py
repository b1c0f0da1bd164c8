"""Samples to activations: one forward pass over a text or a prompt, or one over each text of a pair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from mobillm_flower.backbones.backbone import Backbone, Extraction
from mobillm_flower.core.pairs import compare
from mobillm_flower.core.targets import base_prediction
from mobillm_flower.errors import DataError
from mobillm_flower.tasks.calibration import uninformed
from mobillm_flower.tasks.task import Samples, render
from mobillm_flower.tasks.tokens import tokenize
from mobillm_flower.wire.contract import ExtractionSpec, TaskContract


def read_activations(
    backbone: Backbone,
    samples: Samples,
    contract: TaskContract,
    spec: ExtractionSpec,
    transform: Callable[[Tensor], Tensor] | None = None,
) -> Extraction:
    """Run samples forward and keep what a device uploads of them.

    Parameters
    ----------
    backbone : Backbone
        Of the spec's type.
    samples : Samples
        Texts or pairs.
    contract, spec
        The task, and what is kept.
    transform : callable, optional
        From `fitted_transform`.

    Raises
    ------
    DataError
        A text has no tokens, or `activations.bi-encoder` meets samples without a second text.
    """
    layers, pivot = spec.layers, spec.pivot
    if not spec.bi_encoder:
        tokens = tokenize(backbone, samples, contract)
        read = backbone.extract(tokens, layers=layers, pivot=pivot, transform=transform)
        if read.base_logits is None or not contract.calibration:
            return read
        return replace(read, base_logits=read.base_logits - uninformed(backbone, contract))
    texts, pairs = render(samples, contract)
    if pairs is None:
        raise DataError("activations.bi-encoder compares two texts, and these samples have one; give both")
    tokens = backbone.tokenize([*texts, *pairs], None, contract.max_length)
    activations = backbone.extract(tokens, layers=layers, pivot=pivot).activations
    sides = zip(activations[: len(texts)], activations[len(texts) :], strict=True)
    return Extraction([compare(first, second) for first, second in sides], None)


def read_base(extraction: Extraction, spec: ExtractionSpec, contract: TaskContract) -> Tensor:
    """Return p_b [B, K] of samples that were read, see `base_prediction`."""
    logits = None if spec.constant_base else extraction.base_logits
    return base_prediction(logits, len(extraction.activations), contract.num_outputs, label_range=contract.label_range)
