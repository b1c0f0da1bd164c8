"""A tiny language model with a side network that is not zero."""

from __future__ import annotations

import dataclasses

import torch

from mobillm_flower import SideTunedModel, load_settings
from mobillm_flower.backbones import load_backbone
from mobillm_flower.core.prediction import PredictionRule
from mobillm_flower.core.side_networks import SideNetworkConfig
from mobillm_flower.tasks.extraction import extraction_spec
from tests.support.packets import make_contract


def tuned_model(folder: str, prompt: str | None = None, *, name: str = "additive") -> SideTunedModel:
    """Return one; `prompt` in place of the contract's own, `name` of the side network."""
    backbone = load_backbone(folder, device="cpu", language_model=True)
    settings = load_settings({"backbone.name": folder, "loss.objective": "label", "side-network.name": name})
    spec = extraction_spec(backbone.info, settings, num_blocks=2, num_outputs=1)
    config = SideNetworkConfig.of(
        {spec.backbone: spec.alignment},
        name=name,
        num_blocks=len(spec.layers),
        bottleneck=4,
        num_outputs=spec.width,
        predicts_tokens=spec.whole_texts,
    )
    network = config.build()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    contract = make_contract(
        kind="language-modelling", labels=(), metric="cross-entropy", per_token=True, max_length=32
    )
    contract = contract if prompt is None else dataclasses.replace(contract, prompt=prompt)
    return SideTunedModel(
        backbone, network, spec=spec, contract=contract, rule=PredictionRule("square", 1.0), side_config=config
    )
