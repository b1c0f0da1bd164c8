"""What the server loads of the devices' backbone to train, and under which name it is saved."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch

from mobillm_flower.backbones.accelerators import choose_device
from mobillm_flower.backbones.cut import Cut, UpperLayers
from mobillm_flower.backbones.describe import fingerprint
from mobillm_flower.backbones.options import LoadOptions
from mobillm_flower.backbones.sources import resolve_folder
from mobillm_flower.config import Settings
from mobillm_flower.config.parts.backbone import ONE_MODEL_TWO_TYPES
from mobillm_flower.core.backbone_info import BackboneInfo
from mobillm_flower.core.side_networks import needs_of
from mobillm_flower.errors import MismatchError
from mobillm_flower.server.plan import Frozen, TrainingPlan


def training_device(settings: Settings) -> torch.device:
    """Return where the server trains; raises SettingsError where that is not there."""
    return choose_device(settings.trainer.device, setting="trainer.device", accelerators=("cuda",))


def load_frozen_parts(plan: TrainingPlan, settings: Settings, backbones: Mapping[str, BackboneInfo]) -> Frozen:
    """Load what training needs of the backbone that the server's own settings name: often nothing.

    It goes where the server trains. Nothing is loaded by a name that a device gave.

    Raises
    ------
    MismatchError
        None of the named backbones is the devices'.
    """
    upper = needs_of(plan.side_config.name).upper_layers
    if not (plan.contract.per_token or upper):
        return Frozen()
    from mobillm_flower.backbones.load import load_head, load_with  # loads transformers

    named, device = settings.backbone, training_device(settings)
    (spec,) = plan.specs.values()
    info = backbones[spec.backbone]
    for name in settings.backbone.models:
        if fingerprint(resolve_folder(name, named.revision), info.family, info.depth) == info.fingerprint:
            if not upper:
                return Frozen(head=load_head(name, revision=named.revision, device=str(device)))
            whole = load_with(
                LoadOptions.of(
                    named,
                    name=name,
                    layers=info.depth,
                    device=str(device),
                    token_budget=4096,
                    engine="torch",
                    language_model=plan.contract.per_token,
                )
            )
            return Frozen(head=whole.head, upper=UpperLayers(Cut(whole, spec.layers[-1], setting="activations.layers")))
    raise MismatchError(
        f"the devices' backbone ({info.fingerprint[:12]}, {info.depth} layers) is not the server's "
        f"backbone.name={named.name!r}, of which training needs a part; give both sides the same model "
        f"({ONE_MODEL_TWO_TYPES})"
    )


def as_named_here(backbones: Mapping[str, BackboneInfo], settings: Settings) -> dict[str, BackboneInfo]:
    """Return backbones by fingerprint as they are saved: under the name that the server's settings have for them.

    A saved model is loaded by its name; one that a device gave would let it choose what others download. A name that
    the settings do not have is left empty, and whoever loads the model has to say it.
    """
    names = settings.backbone.models

    def name(info: BackboneInfo) -> str:
        return info.name if info.name in names else names[0] if len(names) == len(backbones) == 1 else ""

    return {
        fingerprint: dataclasses.replace(
            info, name=name(info), revision=settings.backbone.revision if name(info) else ""
        )
        for fingerprint, info in backbones.items()
    }
