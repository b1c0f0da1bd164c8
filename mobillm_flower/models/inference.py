"""From samples to scores: the backbone's forward pass, the side network on what it gives, and the prediction rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mobillm_flower.backbones.backbone import Backbone, batches_by_length
from mobillm_flower.backbones.cut import Cut, UpperLayers
from mobillm_flower.config.parts.backbone import ONE_MODEL_TWO_TYPES
from mobillm_flower.core.pivots import PIVOTS
from mobillm_flower.core.side_networks import ActivationBatch, ReadsWholeBase
from mobillm_flower.core.side_networks.upper_layers import through
from mobillm_flower.core.task_sequence import TaskSpan
from mobillm_flower.errors import MismatchError, UnsupportedError
from mobillm_flower.privacy.mixing import MixingKey
from mobillm_flower.tasks.activations import read_activations, read_base
from mobillm_flower.tasks.task import Samples
from mobillm_flower.wire.contract import ExtractionSpec

if TYPE_CHECKING:
    from mobillm_flower.models.side_tuned import SideTunedModel

_PART = 256  # samples that the side network is given at a time


@dataclass(frozen=True)
class Predictions:
    """What `SideTunedModel.predict` returns.

    Parameters
    ----------
    labels : list
        Class names, or numbers for regression.
    scores : Tensor
        [B, K] float32.
    """

    labels: list[Any]
    scores: Tensor


def check_parts(spec: ExtractionSpec, backbone: Backbone, mixing: MixingKey | None) -> None:
    """Raise MismatchError where a side network was trained for another backbone type, or with another mixing key."""
    info = backbone.info
    if info.fingerprint != spec.backbone:
        raise MismatchError(
            f"the side network was trained for backbone {spec.backbone[:12]}, {info.name} (with {info.depth} layers) "
            f"is {info.fingerprint[:12]}; load the backbone and number of layers that it was trained for "
            f"({ONE_MODEL_TWO_TYPES})"
        )
    name = mixing.name if mixing else ""
    if spec.mixing != name:
        raise MismatchError(
            f"the side network was trained with the mixing key {spec.mixing or '(none)'}, this is {name or '(none)'}; "
            "give the devices' key in privacy.mixing-key"
        )


def scores(model: SideTunedModel, samples: Samples) -> Tensor:
    """See `SideTunedModel.scores`."""
    side, base = _outputs(model, samples)
    if side is None:
        return base
    if not model.columns:
        return model.rule.scores(side, base)
    start, stop = model.columns
    network: object = model.side_network
    if isinstance(network, ReadsWholeBase) and network.whole_base:
        return model.rule.scores(side[:, start:stop], base)
    span = TaskSpan("", model.contract.labels, start, stop)
    spread = model.rule.scores(side, span.widen(base, side.shape[1]))
    return spread[:, start:stop]


def accuracy_among_all(model: SideTunedModel, samples: Samples) -> float:
    """See `SideTunedModel.accuracy_among_all`."""
    side, _ = _outputs(model, samples)
    if side is None:
        raise UnsupportedError("the base model knows no classes of other tasks; train a side network")
    among_all = model.rule.scores(side, torch.full_like(side, 1 / side.shape[1]))
    return float((among_all.argmax(1) == samples.labels + (model.columns[0] if model.columns else 0)).float().mean())


def tuned_states(model: SideTunedModel, rows: Tensor, sequences: Tensor) -> Tensor:
    """See `SideTunedModel.tuned_states`."""
    if model.spec.whole_texts:
        return _above_the_cut(model, rows, sequences)
    last = rows[:, -1]
    if model.side_network is None:
        return last
    batch = ActivationBatch(model.spec.backbone, rows, sequences=sequences)
    return model.rule.scores(model.side_network([batch]), last)


def upper_layers(model: SideTunedModel) -> UpperLayers:
    """Return the backbone's layers above the sampled one."""
    return UpperLayers(Cut(model.backbone, model.spec.layers[-1], setting="activations.layers"))


def _above_the_cut(model: SideTunedModel, rows: Tensor, sequences: Tensor) -> Tensor:
    """Return what the upper layers, with adapters between them or without, make of texts' states at the cut."""
    lengths, texts = sequences.tolist(), torch.split(rows, sequences.tolist())
    made: dict[int, Tensor] = {}
    for places in batches_by_length(lengths, model.backbone.token_budget):
        some, counts = torch.cat([texts[i] for i in places]), sequences[places]
        if model.side_network is None:
            hidden, mask = through(upper_layers(model), some, counts, lambda _place, states: states)
            states = hidden[mask]
        else:
            states = model.side_network([ActivationBatch(model.spec.backbone, some, sequences=counts)])
        made |= zip(places, torch.split(states, counts.tolist()), strict=True)
    return torch.cat([made[i] for i in range(len(lengths))])


def _outputs(model: SideTunedModel, samples: Samples) -> tuple[Tensor | None, Tensor]:
    """Return s(A) [B, K] and the contract's own p_b [B, K_t]; without a side network None and p_b."""
    width = model.side_config.num_outputs if model.side_config else 0
    if not len(samples):
        none = torch.zeros(0, model.contract.num_outputs)
        return (None if model.side_network is None else torch.zeros(0, width or none.shape[1])), none
    extraction = read_activations(model.backbone, samples, model.contract, model.spec, model.transform)
    base = read_base(extraction, model.spec, model.contract)
    if model.side_network is None:
        return None, base
    activations = extraction.activations
    parts: list[Tensor] = []
    order = sorted(range(len(samples)), key=lambda i: len(activations[i]))  # one row each, or one a token
    with torch.inference_mode():
        for start in range(0, len(samples), _PART):
            chosen = order[start : start + _PART]
            parts.append(model.side_network([_batch(model, [activations[i] for i in chosen])]))
    outputs = torch.cat(parts)[torch.tensor(order).argsort()]
    return (model.mixing.outputs(outputs) if model.mixing else outputs), base


def _batch(model: SideTunedModel, activations: Sequence[Tensor]) -> ActivationBatch:
    rows = torch.cat(list(activations))
    if model.mixing:
        rows = model.mixing.activations(rows)
    rows = rows.flatten(2).float()  # [N, M, P, d] -> [N, M, P·d]; a projection is float64
    lengths = torch.tensor([len(a) for a in activations]) if PIVOTS[model.spec.pivot].per_token else None
    return ActivationBatch(model.spec.backbone, rows, lengths)
