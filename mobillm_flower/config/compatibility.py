"""What settings must hold that no single part can tell; names in registries are checked where they are looked up."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass

from mobillm_flower.config.parts import CHOOSERS, EngineName, Objective, Partition, Precision, Settings
from mobillm_flower.errors import SettingsError


def check(settings: Settings) -> None:
    """Refuse values that no part could use; names that live in registries are checked where they are looked up."""
    for part in fields(settings):
        for item in fields(getattr(settings, part.name)) if is_dataclass(getattr(settings, part.name)) else ():
            value = getattr(getattr(settings, part.name), item.name)
            key = f"{part.name}.{item.name}".replace("_", "-")
            if any(
                isinstance(n, float) and not math.isfinite(n) for n in (value if isinstance(value, list) else [value])
            ):
                raise SettingsError(f"{key}={value!r} must be finite")
            for words, holds in item.metadata.items():
                if not holds(value):
                    raise SettingsError(f"{key}={value!r} must be {words}")
    acts, data = settings.activations, settings.data
    if acts.noise_sigma > 0 and acts.clip_norm == 0:
        raise SettingsError(
            f"activations.noise-sigma={acts.noise_sigma!r} must be used with activations.clip-norm above 0: noise "
            "without a bound protects nothing"
        )
    _check_privacy(settings)
    _check_engine(settings)
    if settings.backbone.name in CHOOSERS and not settings.backbone.choices:
        raise SettingsError(
            f"backbone.choices=[] must be given when backbone.name={settings.backbone.name}, such as minilm@2,minilm@4"
        )
    if settings.backbone.name == "auto" and settings.backbone.memory_budget_mib:
        raise SettingsError(
            f"backbone.memory-budget-mib={settings.backbone.memory_budget_mib} cannot be used with backbone.name=auto, "
            "which chooses a model that fits whole; name the model, or set backbone.memory-mib in its place"
        )
    if data.partition == Partition.natural and not data.partition_column:
        raise SettingsError("data.partition-column='' must be named when data.partition=natural")


def _check_engine(settings: Settings) -> None:
    """Refuse numbers that the engine does not compute in, and those of a batch where each sample counts by itself."""
    backbone, acts, private = settings.backbone, settings.activations, settings.privacy
    if backbone.engine == EngineName.torch:
        return
    if backbone.precision not in (Precision.fp32, Precision.int8):
        raise SettingsError(f"backbone.precision={backbone.precision} must be fp32 or int8 with backbone.engine=onnx")
    if backbone.device not in ("auto", "cpu"):
        raise SettingsError(f"backbone.device={backbone.device!r} must be auto or cpu with backbone.engine=onnx")
    if backbone.precision == Precision.int8 and (
        acts.noise_sigma or private.joint_epsilon or private.activation_epsilon
    ):
        raise SettingsError(
            "backbone.precision=int8 with backbone.engine=onnx scales a batch together, so that a sample's activations "
            "depend on those beside it, and noise on one release does not cover what others tell of it; choose fp32"
        )


def _check_privacy(settings: Settings) -> None:
    """Refuse mechanisms that would not protect what they promise to."""
    acts, private, task = settings.activations, settings.privacy, settings.task
    joint, vector, label = private.joint_epsilon, private.activation_epsilon, private.label_epsilon
    if joint and (vector or label):
        raise SettingsError(
            f"privacy.joint-epsilon={joint!r} covers activations and label together; leave out "
            "privacy.activation-epsilon and privacy.label-epsilon"
        )
    if settings.side_network.name == "discriminant" and settings.loss.name != "logit":
        raise SettingsError(
            f"loss.name={settings.loss.name} cannot be used with side-network.name=discriminant, whose scores are "
            "logits; choose loss.name=logit"
        )
    if private.mixing and (settings.loss.name != "square" or settings.loss.objective == Objective.label):
        raise SettingsError(
            "privacy.mixing needs loss.objective=difference and loss.name=square: of rotated differences no other loss "
            "can be taken"
        )
    if private.mixing and task.kind == "regression":
        raise SettingsError("privacy.mixing rotates the differences of classes; a single number has none to rotate")
    if settings.stop.accuracy and (joint or label or private.mixing):
        raise SettingsError(
            f"stop.accuracy={settings.stop.accuracy!r} cannot be used where the server cannot read labels; stop by "
            "time, bytes or epochs"
        )
    if joint and not acts.projection:
        raise SettingsError(
            f"privacy.joint-epsilon={joint!r} protects a projected vector; give activations.projection, such as 64 for "
            "an epsilon of 8, 32 for 4, 16 for 1"
        )
    if vector and not (acts.projection or acts.clip_norm):
        raise SettingsError(
            f"privacy.activation-epsilon={vector!r} needs a bound: give activations.projection (much the better), or "
            "activations.clip-norm"
        )
    if (joint or vector) and acts.noise_sigma:
        raise SettingsError(
            f"activations.noise-sigma={acts.noise_sigma!r} cannot be used with an epsilon, which sets the noise"
        )
    if (joint or vector or acts.noise_sigma) and acts.codec == "fp32":
        raise SettingsError(
            "activations.codec=fp32 cannot be used with noise: the lowest bits of a noisy number can tell what it was "
            "made of; choose fp16, int8 or nf4"
        )
    if acts.projection and acts.clip_norm:
        raise SettingsError(
            f"activations.clip-norm={acts.clip_norm!r} has no use with activations.projection: its vectors have norm 1"
        )
    if acts.projection and acts.standardise:
        raise SettingsError("activations.standardise=true has no use with activations.projection, which does it itself")
    if (joint or label) and (task.kind == "regression" or settings.loss.objective == Objective.label):
        raise SettingsError(
            "privacy.joint-epsilon and privacy.label-epsilon protect the label of a classification under "
            "loss.objective=difference; numbers, and labels sent as they are, have no such protection"
        )
