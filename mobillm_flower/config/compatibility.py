"""Which settings go together: which of them need, exclude or imply others, whatever the data and the fleet are.

What also depends on the data, the backbone or the fleet stands in `run_compatibility`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass

from mobillm_flower.config.parts.backbone import CHOOSERS, EngineName, Precision
from mobillm_flower.config.parts.continual import CLOSED_FORM, NOTHING, O_LORA, OA_ADAPTER, REPLAY, SUMS
from mobillm_flower.config.parts.data import Partition
from mobillm_flower.config.parts.ranges import check_ranges
from mobillm_flower.config.parts.training import Objective, SideNetworkSettings
from mobillm_flower.config.settings import Settings
from mobillm_flower.errors import ArgumentError, SettingsError

UPPER_LAYERS = "upper-layers"
ANALYTIC = "analytic"
"""The strategy whose devices send sums, and no sample."""
ON_UPPER_LAYERS = (
    f"side-network.name={UPPER_LAYERS} runs the backbone's upper layers from the states of a lower one, but {{}}"
)
"""How a reason against that side network is told: its layers go on from states as the layer below leaves them."""
AUTO = "auto"
"""The name of no side network: the settings and the fleet decide."""


def refuse(sentence: str, reasons: Mapping[str, object]) -> None:
    """Raise SettingsError for the first reason that holds; `{}` in the sentence stands for it."""
    for reason, holds in reasons.items():
        if holds:
            raise SettingsError(sentence.format(reason))


def check_settings(settings: Settings) -> None:
    """Refuse values out of range, and settings that do not go together whatever the data, backbone and fleet are."""
    for part in fields(settings):
        if is_dataclass(values := getattr(settings, part.name)):
            check_ranges(part.name, values)
    data, backbone = settings.data, settings.backbone
    _check_privacy(settings)
    _check_engine(settings)
    _check_side_network(settings)
    _check_bi_encoder(settings)
    _check_sums(settings)
    _check_continual(settings)
    refused: dict[str, object] = {
        f"backbone.choices=[] must be given when backbone.name={backbone.name}, such as minilm@2,minilm@4": (
            backbone.name in CHOOSERS and not backbone.choices
        ),
        f"backbone.memory-budget-mib={backbone.memory_budget_mib} cannot be used with backbone.name=auto, which "
        "chooses a model that fits whole; name the model, or set backbone.memory-mib in its place": (
            backbone.name == "auto" and backbone.memory_budget_mib
        ),
        "data.partition-column='' must be named when data.partition=natural": (
            data.partition == Partition.natural and not data.partition_column
        ),
    }
    refuse("{}", refused)


def check_engine(engine: str, *, precision: str, device: str, memory_budget: bool, whole_words: bool) -> None:
    """Refuse number formats, devices, label words and a memory budget that ONNX Runtime does not take here.

    Parameters
    ----------
    engine, precision, device : str
        Values of `backbone.engine`, `backbone.precision` and `backbone.device`.
    memory_budget : bool
        Whether the backbone must run within one.
    whole_words : bool
        Value of `task.whole-label-words`.
    """
    if engine != EngineName.onnx:
        return
    refused: dict[str, object] = {
        f"backbone.precision={precision} must be fp32 or int8": precision not in (Precision.fp32, Precision.int8),
        f"backbone.device={device!r} must be auto or cpu": device not in ("auto", "cpu"),
        "backbone.memory-budget-mib must be 0": memory_budget,
        "task.whole-label-words must be false": whole_words,
    }
    refuse("{} with backbone.engine=onnx", refused)


def _check_engine(settings: Settings) -> None:
    """Refuse what the engine does not compute in, and numbers of a batch where each sample counts by itself."""
    backbone, acts, private = settings.backbone, settings.activations, settings.privacy
    check_engine(
        backbone.engine,
        precision=backbone.precision,
        device=backbone.device,
        memory_budget=backbone.memory_budget_mib > 0,
        whole_words=settings.task.whole_label_words,
    )
    if backbone.engine == EngineName.torch:
        return
    if backbone.precision == Precision.int8 and (
        acts.noise_sigma or private.joint_epsilon or private.activation_epsilon
    ):
        raise SettingsError(
            "backbone.precision=int8 with backbone.engine=onnx scales a batch together, so that a sample's activations "
            "depend on those beside it, and noise on one release does not cover what others tell of it; choose fp32"
        )


def _check_privacy(settings: Settings) -> None:
    """Refuse mechanisms that would not protect what they promise to."""
    acts, private, loss, task = settings.activations, settings.privacy, settings.loss, settings.task
    joint, vector, label = private.joint_epsilon, private.activation_epsilon, private.label_epsilon
    by_label, numbers = loss.objective == Objective.label, task.kind == "regression"
    refused: dict[str, object] = {
        f"activations.noise-sigma={acts.noise_sigma!r} must be used with activations.clip-norm above 0: noise without "
        "a bound protects nothing": acts.noise_sigma > 0 and acts.clip_norm == 0,
        f"privacy.joint-epsilon={joint!r} covers activations and label together; leave out privacy.activation-epsilon "
        "and privacy.label-epsilon": joint and (vector or label),
        "privacy.mixing needs loss.objective=difference and loss.name=square: of rotated differences no other loss can "
        "be taken": private.mixing and (loss.name != "square" or by_label),
        "privacy.mixing rotates the differences of classes; a single number has none to rotate": (
            private.mixing and numbers
        ),
        f"stop.accuracy={settings.stop.accuracy!r} cannot be used where the server cannot read labels; stop by time, "
        "bytes or epochs": settings.stop.accuracy and (joint or label or private.mixing),
        f"privacy.joint-epsilon={joint!r} protects a projected vector; give activations.projection, such as 64 for an "
        "epsilon of 8, 32 for 4, 16 for 1": joint and not acts.projection,
        f"privacy.activation-epsilon={vector!r} needs a bound: give activations.projection (much the better), or "
        "activations.clip-norm": vector and not (acts.projection or acts.clip_norm),
        f"activations.noise-sigma={acts.noise_sigma!r} cannot be used with an epsilon, which sets the noise": (
            (joint or vector) and acts.noise_sigma
        ),
        "activations.codec=fp32 cannot be used with noise: the lowest bits of a noisy number can tell what it was made "
        "of; choose fp16, int8 or nf4": (joint or vector or acts.noise_sigma) and acts.codec == "fp32",
        f"activations.clip-norm={acts.clip_norm!r} has no use with activations.projection: its vectors have norm 1": (
            acts.projection and acts.clip_norm
        ),
        "activations.standardise=true has no use with activations.projection, which does it itself": (
            acts.projection and acts.standardise
        ),
        "privacy.joint-epsilon and privacy.label-epsilon protect the label of a classification under "
        "loss.objective=difference; numbers, and labels sent as they are, have no such protection": (
            (joint or label) and (numbers or by_label)
        ),
    }
    refuse("{}", refused)


def _check_side_network(settings: Settings) -> None:
    """Refuse losses and activations that the side network cannot be trained on."""
    if settings.side_network.name == "discriminant" and settings.loss.name != "logit":
        raise SettingsError(
            f"loss.name={settings.loss.name} cannot be used with side-network.name=discriminant, whose scores are "
            "logits; choose loss.name=logit"
        )
    if settings.side_network.name == UPPER_LAYERS:
        acts, private = settings.activations, settings.privacy
        refuse(
            ON_UPPER_LAYERS,
            {
                f"activations.num-blocks={acts.num_blocks} asks for several layers": acts.num_blocks > 1,
                "backbone.engine=onnx has them elsewhere: choose torch": settings.backbone.engine is EngineName.onnx,
                "activations.standardise, clip-norm and noise-sigma change them": bool(
                    acts.standardise or acts.clip_norm or acts.noise_sigma
                ),
                f"activations.projection={acts.projection} changes them": bool(acts.projection),
                "privacy.joint-epsilon and privacy.activation-epsilon change them": bool(
                    private.joint_epsilon or private.activation_epsilon
                ),
                f"privacy.mixing={private.mixing} changes them": bool(private.mixing),
            },
        )


def _check_bi_encoder(settings: Settings) -> None:
    """Refuse what a comparison of two texts that ran by themselves cannot be combined with."""
    if not settings.activations.bi_encoder:
        return
    refuse("activations.bi-encoder=true compares the two texts of a pair, but {}", _against_comparing(settings))


def _against_comparing(settings: Settings) -> dict[str, object]:
    acts, prompt = settings.activations, settings.task.prompt
    return {
        "data.pair-column is empty": not settings.data.pair_column,
        f"task.prompt={prompt!r} makes one text of both": prompt,
        "activations.standardise, clip-norm and noise-sigma fit public texts, not pairs": (
            acts.standardise or acts.clip_norm or acts.noise_sigma
        ),
        f"activations.projection={acts.projection} fits public texts, not pairs": acts.projection,
    }


def compares_texts(settings: Settings, *, causal: bool, every_token: bool, predicts: bool) -> bool:
    """Whether the two texts of a pair run by themselves and are compared (`activations.bi-encoder`).

    Parameters
    ----------
    settings : Settings
        Of server or device.
    causal, predicts : bool
        Whether the backbone is a causal model; whether it predicts p_b by itself, from both texts together.
    every_token : bool
        Whether its pivot keeps every token.
    """
    if settings.activations.bi_encoder is not None:
        return settings.activations.bi_encoder
    fits = settings.strategy != ANALYTIC and not any(_against_comparing(settings).values())
    return fits and not causal and not every_token and not predicts


def _check_sums(settings: Settings) -> None:
    """Refuse what sums cannot be combined with, and settings that only sums have a use for."""
    acts, private, loss, side = settings.activations, settings.privacy, settings.loss, settings.side_network
    if settings.strategy != ANALYTIC:
        if private.central_epsilon:
            raise SettingsError(
                f"privacy.central-epsilon={private.central_epsilon!r} is for sums; choose preset=analytic, or "
                "privacy.joint-epsilon for samples"
            )
        return
    refused: dict[str, object] = {
        f"loss.objective={loss.objective.value} and loss.name={loss.name}: choose difference and square": (
            loss.objective != Objective.difference or loss.name != "square"
        ),
        f"side-network.name={side.name}: choose closed-form": side.name not in (AUTO, "closed-form"),
        f"side-network.random-features={side.random_features}: choose 0": bool(side.random_features),
        "privacy.joint-epsilon, activation-epsilon and label-epsilon, which are for samples: choose "
        "privacy.central-epsilon": bool(private.joint_epsilon or private.activation_epsilon or private.label_epsilon),
        f"privacy.mixing={private.mixing}": bool(private.mixing),
        "activations.clip-norm, noise-sigma, standardise and keep": bool(
            acts.clip_norm or acts.noise_sigma or acts.standardise or acts.keep < 1
        ),
        "trainer.validation-share beside privacy.central-epsilon, since the metric of held-out samples is exact: give "
        "trainer.validation-share=0": bool(private.central_epsilon and settings.trainer.validation_share),
        "trainer.device-cap": bool(settings.trainer.device_cap),
        "stop.accuracy, since nothing of a sample is known": bool(settings.stop.accuracy),
    }
    refuse(f"strategy={ANALYTIC} adds samples up on the device and does not go with {{}}", refused)


def _check_continual(settings: Settings) -> None:
    """Refuse what a sequence of tasks cannot be combined with."""
    continual, private, side = settings.continual, settings.privacy, settings.side_network.name
    if not continual.in_use:
        return
    method, keep = continual.method, continual.keep
    if keep == SUMS and method != CLOSED_FORM:
        raise SettingsError(f"continual.keep=sums is for continual.method=closed-form, not {method}; keep share or all")
    if keep == NOTHING and method in (REPLAY, CLOSED_FORM):
        raise SettingsError(
            f"continual.keep=nothing leaves continual.method={method} nothing to go on with; keep "
            f"{'sums' if method == CLOSED_FORM else 'share or all'}, or choose another method, such as oa-adapter"
        )
    refused: dict[str, object] = {
        f"side-network.name={side}: leave it out with continual.method={method}": (
            method in (CLOSED_FORM, OA_ADAPTER, O_LORA) and side not in (AUTO, method)
        ),
        f"strategy=analytic and continual.method={method}, continual.keep={keep}: its devices send sums; choose "
        "closed-form and sums": settings.strategy == ANALYTIC and (method != CLOSED_FORM or keep != SUMS),
        "privacy.central-epsilon, since noised sums tell no tasks apart": bool(private.central_epsilon),
        "strategy=mobillm and loss.objective=label: choose difference": settings.loss.objective == Objective.label,
        f"task.kind={settings.task.kind}, which has no classes": settings.task.kind
        in ("regression", "language-modelling"),
        "privacy.joint-epsilon, activation-epsilon and label-epsilon": bool(
            private.joint_epsilon or private.activation_epsilon or private.label_epsilon
        ),
        f"privacy.mixing={private.mixing}": bool(private.mixing),
    }
    refuse("tasks one after another (settings `continual`) do not go with {}", refused)


def prefers_closed_form(settings: Settings) -> bool:
    """Whether settings ask for the closed form, or leave the choice open and add no noise that it would fit."""
    chosen, defaults, sent = settings.side_network, SideNetworkSettings(), settings.activations
    if chosen.name != AUTO:
        return chosen.name == "closed-form"
    adapters = any(getattr(chosen, name) != getattr(defaults, name) for name in ("width", "bottleneck", "activation"))
    noise = sent.clip_norm or sent.noise_sigma or settings.privacy.activation_epsilon or settings.privacy.joint_epsilon
    return not adapters and not noise


@contextlib.contextmanager
def settings_of(**settings: str) -> Iterator[None]:
    """Raise what a function says of its arguments as said of the settings that they come from.

    Parameters
    ----------
    **settings : str
        Dotted key of a setting by the name of an argument.
    """
    try:
        yield
    except ArgumentError as error:
        if error.name not in settings:
            raise
        raise SettingsError(f"{settings[error.name]}={error.value!r} {error.problem}") from error
