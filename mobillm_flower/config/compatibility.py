"""Which settings go together: the one place that says which of them need, exclude or imply others.

`check_settings` holds what settings alone tell, and is called when they are loaded. The other functions hold what also
depends on the data, the backbone or the fleet; they take the few plain values of these that they need.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Protocol

from mobillm_flower.config.parts import (
    CHOOSERS,
    EngineName,
    Objective,
    Partition,
    Precision,
    Settings,
    SideNetworkSettings,
)
from mobillm_flower.config.parts.backbone import ONE_MODEL_TWO_TYPES
from mobillm_flower.config.parts.continual import CLOSED_FORM, NOTHING, O_LORA, OA_ADAPTER, REPLAY, SUMS
from mobillm_flower.config.parts.ranges import check_ranges
from mobillm_flower.errors import ArgumentError, SettingsError, UnsupportedError

UPPER_LAYERS = "upper-layers"
ANALYTIC = "analytic"
"""The strategy whose devices send sums, and no sample."""


def check_settings(settings: Settings) -> None:
    """Refuse values out of range, and settings that do not go together whatever the data, backbone and fleet are."""
    for part in fields(settings):
        if is_dataclass(values := getattr(settings, part.name)):
            check_ranges(part.name, values)
    acts, data = settings.activations, settings.data
    if acts.noise_sigma > 0 and acts.clip_norm == 0:
        raise SettingsError(
            f"activations.noise-sigma={acts.noise_sigma!r} must be used with activations.clip-norm above 0: noise "
            "without a bound protects nothing"
        )
    _check_privacy(settings)
    _check_engine(settings)
    _check_side_network(settings)
    _check_bi_encoder(settings)
    _check_sums(settings)
    _check_continual(settings)
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
    if precision not in (Precision.fp32, Precision.int8):
        raise SettingsError(f"backbone.precision={precision} must be fp32 or int8 with backbone.engine=onnx")
    if device not in ("auto", "cpu"):
        raise SettingsError(f"backbone.device={device!r} must be auto or cpu with backbone.engine=onnx")
    if memory_budget:
        raise SettingsError("backbone.memory-budget-mib must be 0 with backbone.engine=onnx, which streams no layers")
    if whole_words:
        raise SettingsError("task.whole-label-words must be false with backbone.engine=onnx")


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
    acts, private, task = settings.activations, settings.privacy, settings.task
    joint, vector, label = private.joint_epsilon, private.activation_epsilon, private.label_epsilon
    if joint and (vector or label):
        raise SettingsError(
            f"privacy.joint-epsilon={joint!r} covers activations and label together; leave out "
            "privacy.activation-epsilon and privacy.label-epsilon"
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


def _check_side_network(settings: Settings) -> None:
    """Refuse losses and activations that the side network cannot be trained on."""
    if settings.side_network.name == "discriminant" and settings.loss.name != "logit":
        raise SettingsError(
            f"loss.name={settings.loss.name} cannot be used with side-network.name=discriminant, whose scores are "
            "logits; choose loss.name=logit"
        )
    if settings.side_network.name == UPPER_LAYERS:
        acts, private = settings.activations, settings.privacy
        _refuse_upper_layers(
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
            }
        )


def _refuse_upper_layers(reasons: dict[str, bool]) -> None:
    """Raise for the first reason that holds: layers go on from each token's states as the layer below leaves them."""
    for reason, holds in reasons.items():
        if holds:
            raise SettingsError(
                f"side-network.name={UPPER_LAYERS} runs the backbone's upper layers from the states of a lower one, "
                f"but {reason}"
            )


def _check_bi_encoder(settings: Settings) -> None:
    """Refuse what a comparison of two texts that ran by themselves cannot be combined with."""
    if not settings.activations.bi_encoder:
        return
    for reason in _against_comparing(settings):
        raise SettingsError(f"activations.bi-encoder=true compares the two texts of a pair, but {reason}")


def _against_comparing(settings: Settings) -> list[str]:
    acts, prompt = settings.activations, settings.task.prompt
    reasons = {
        "data.pair-column is empty": not settings.data.pair_column,
        f"task.prompt={prompt!r} makes one text of both": bool(prompt),
        "activations.standardise, clip-norm and noise-sigma fit public texts, not pairs": bool(
            acts.standardise or acts.clip_norm or acts.noise_sigma
        ),
        f"activations.projection={acts.projection} fits public texts, not pairs": bool(acts.projection),
    }
    return [reason for reason, holds in reasons.items() if holds]


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
    fits = settings.strategy != ANALYTIC and not _against_comparing(settings)
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
    refused = {
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
    for what, holds in refused.items():
        if holds:
            raise SettingsError(f"strategy={ANALYTIC} adds samples up on the device and does not go with {what}")


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
    refused = {
        f"side-network.name={side}: leave it out with continual.method={method}": (
            method in (CLOSED_FORM, OA_ADAPTER, O_LORA) and side not in (AUTO, method)
        ),
        "strategy=analytic, whose devices send sums": settings.strategy == ANALYTIC,
        "strategy=mobillm and loss.objective=label: choose difference": settings.loss.objective == Objective.label,
        f"task.kind={settings.task.kind}, which has no classes": settings.task.kind
        in ("regression", "language-modelling"),
        "privacy.joint-epsilon, activation-epsilon and label-epsilon": bool(
            private.joint_epsilon or private.activation_epsilon or private.label_epsilon
        ),
        f"privacy.mixing={private.mixing}": bool(private.mixing),
    }
    for what, holds in refused.items():
        if holds:
            raise SettingsError(f"tasks one after another (settings `continual`) do not go with {what}")


def check_pivot(settings: Settings, pivot: str, *, every_token: bool, predicts_tokens: bool) -> None:
    """Refuse a pivot that does not go with the other settings, and what language modelling cannot be combined with.

    Parameters
    ----------
    settings : Settings
        The server's or the device's.
    pivot : str
        Name of the pivot, where `activations.pivot=auto` has been resolved.
    every_token : bool
        Whether the pivot keeps every token.
    predicts_tokens : bool
        Whether the task is language modelling.
    """
    acts = settings.activations
    if settings.strategy == ANALYTIC and every_token:
        raise SettingsError(
            f"strategy={ANALYTIC} adds up one vector a sample, activations.pivot={pivot} gives one a token; choose "
            "another pivot, such as mean"
        )
    if acts.projection and every_token:
        raise SettingsError(
            f"activations.projection={acts.projection} makes one vector of a sample, activations.pivot={pivot} gives "
            "one a token; choose another pivot, such as mean"
        )
    if predicts_tokens:
        _check_token_states(settings, pivot, every_token=every_token)
    if acts.bi_encoder and every_token:
        raise SettingsError(
            f"activations.bi-encoder=true compares the two texts of a pair, but activations.pivot={pivot} keeps every "
            "token, and two texts have not as many"
        )
    if settings.side_network.name == UPPER_LAYERS:
        _refuse_upper_layers(
            {
                f"activations.pivot={pivot} makes a few vectors of a text: choose all": not every_token,
                "task.kind=language-modelling has no labels": predicts_tokens,
            }
        )


def _check_token_states(settings: Settings, pivot: str, *, every_token: bool) -> None:
    """Refuse what language modelling cannot be combined with: the server needs each token's last hidden state."""
    acts, private = settings.activations, settings.privacy
    if not every_token:
        raise SettingsError(
            f"activations.pivot={pivot} makes a few vectors of a text; language modelling takes every token in the "
            "loss: choose activations.pivot=all or auto"
        )
    changed = {
        "activations.standardise": acts.standardise,
        "activations.clip-norm": acts.clip_norm,
        "activations.noise-sigma": acts.noise_sigma,
        "activations.projection": acts.projection,
        "activations.keep": acts.keep < 1 and acts.keep,
        "privacy.joint-epsilon": private.joint_epsilon,
        "privacy.activation-epsilon": private.activation_epsilon,
        "privacy.label-epsilon": private.label_epsilon,
        "privacy.mixing": private.mixing,
    }
    for key, value in changed.items():
        if value:
            raise SettingsError(
                f"{key}={value!r} cannot be used with language modelling: the server adds the side network's output to "
                "the last hidden state as the model has it, which this would change; leave it out"
            )


class SideNetworkNeeds(Protocol):
    """What a side network needs of a run; see `mobillm_flower.core.side_networks.Needs`."""

    @property
    def one_type(self) -> bool:
        """All devices have one backbone type."""

    @property
    def every_token(self) -> bool:
        """Rows of every token."""

    @property
    def classes(self) -> bool:
        """The task has classes."""

    @property
    def one_vector(self) -> bool:
        """One vector a sample."""


AUTO = "auto"
"""The name of no side network: the settings and the fleet decide."""


def prefers_closed_form(settings: Settings) -> bool:
    """Whether settings ask for the closed form, or leave the choice open and add no noise that it would fit."""
    chosen, defaults, sent = settings.side_network, SideNetworkSettings(), settings.activations
    if chosen.name != AUTO:
        return chosen.name == "closed-form"
    adapters = any(getattr(chosen, name) != getattr(defaults, name) for name in ("width", "bottleneck", "activation"))
    noise = sent.clip_norm or sent.noise_sigma or settings.privacy.activation_epsilon or settings.privacy.joint_epsilon
    return not adapters and not noise


def check_used(settings: Settings, taken: Collection[str]) -> None:
    """Refuse a setting of the side network that the one that was chosen has no use for.

    Parameters
    ----------
    settings : Settings
        The server's.
    taken : collection of str
        Fields that the side network's constructor takes.

    Raises
    ------
    SettingsError
        A field that is not taken has another value than its default.
    """
    chosen, defaults = settings.side_network, SideNetworkSettings()
    for name in ("width", "bottleneck", "activation", "random_features"):
        value = getattr(chosen, name)
        if name not in taken and value != getattr(defaults, name):
            key = f"side-network.{name.replace('_', '-')}"
            raise SettingsError(
                f"{key}={value} is not used by side-network.name={chosen.name}; leave it out, or choose another side "
                "network, such as additive"
            )


def check_training(
    settings: Settings,
    *,
    num_types: int,
    pivot: str,
    every_token: bool,
    predicts_tokens: bool,
    predicts_numbers: bool,
    needs: SideNetworkNeeds,
    num_vectors: int,
) -> None:
    """Refuse a side network or a loss that does not go with the task and the fleet.

    Parameters
    ----------
    settings : Settings
        The server's.
    num_types : int
        Backbone types of the fleet.
    pivot : str
        Name of the pivot, where `activations.pivot=auto` has been resolved.
    every_token : bool
        Whether it keeps every token.
    predicts_tokens, predicts_numbers : bool
        Whether the task is language modelling, or regression.
    needs : SideNetworkNeeds
        Of the side network that was chosen.
    num_vectors : int
        Vectors that are sent of a sample, or of a token.

    Raises
    ------
    UnsupportedError
        Language modelling with several backbone types; a run that has not what the side network needs.
    SettingsError
        Several vectors where the side network takes one; the logit loss of numbers.
    """
    chosen = f"side-network.name={settings.side_network.name}"
    if predicts_tokens and num_types > 1:
        raise UnsupportedError(
            f"language modelling takes one backbone type, and there are {num_types}; give all devices one backbone "
            f"({ONE_MODEL_TWO_TYPES})"
        )
    if needs.one_type and num_types > 1:
        raise UnsupportedError(
            f"{chosen} takes one backbone type, and there are {num_types}; give all devices one backbone "
            f"({ONE_MODEL_TWO_TYPES}), or choose side-network.name=additive"
        )
    if needs.classes and (predicts_tokens or predicts_numbers):
        raise UnsupportedError(
            f"{chosen} predicts classes, and task.kind={settings.task.kind} has none; choose side-network.name=additive"
        )
    if needs.one_vector and num_vectors != 1:
        raise SettingsError(
            f"{chosen} takes one vector a sample, and {num_vectors} are sent; give activations.projection, such as 64"
        )
    if needs.every_token and not every_token:
        raise UnsupportedError(
            f"{chosen} reads the tokens of a text one after another, and activations.pivot={pivot} sends a few vectors "
            "a text; use activations.pivot=all, or side-network.name=additive"
        )
    if predicts_numbers and settings.loss.name == "logit" and settings.loss.objective == Objective.difference:
        raise SettingsError("loss.name=logit needs classes; use loss.name=square for regression")


def check_difference_strategy(settings: Settings) -> None:
    """Refuse settings of a strategy whose devices upload prediction differences that make them upload labels."""
    if settings.loss.objective != Objective.difference:
        raise SettingsError(
            "strategy=pae uploads prediction differences: set loss.objective=difference, or choose strategy=mobillm"
        )


def check_label_strategy(settings: Settings, *, every_token: bool) -> None:
    """Refuse settings of MobiLLM that do not upload labels and, by the pivot, every token."""
    if settings.loss.objective != Objective.label:
        raise SettingsError("strategy=mobillm uploads labels: set loss.objective=label, or choose strategy=pae")
    if not every_token:
        raise SettingsError(
            "strategy=mobillm uploads every token: set activations.pivot=all instead of "
            f"{settings.activations.pivot!r}, or choose strategy=pae"
        )


def check_labels(settings: Settings, labels: Sequence[str], *, predicts_tokens: bool, pair_in_prompt: bool) -> None:
    """Refuse label words that are not one a label, and a prompt that language modelling cannot fill in."""
    words, prompt = settings.task.label_words, settings.task.prompt
    if words and len(words) != len(labels):
        raise SettingsError(
            f"task.label-words has {len(words)} words for {len(labels)} labels; give one for each, in order"
        )
    if prompt and not predicts_tokens and settings.data.pair_column and not pair_in_prompt:
        raise SettingsError(
            f"data.pair-column={settings.data.pair_column!r} is read by nobody: task.prompt={prompt!r} does not hold "
            "{text_pair}; put it there, or leave out the one or the other"
        )
    if predicts_tokens and pair_in_prompt:
        raise SettingsError(f"task.prompt={prompt!r} must not hold {{text_pair}}: the response follows the prompt")


def check_pair_column(settings: Settings, *, needs_pair: bool, needs_response: bool) -> None:
    """Refuse data of one column where the task reads two texts, or where a prompt asks for a response."""
    if settings.data.pair_column:
        return
    if needs_pair:
        raise SettingsError("task.kind=pairs needs data.pair-column, the column of the second text")
    if needs_response:
        raise SettingsError(
            f"task.prompt={settings.task.prompt!r} needs data.pair-column, the column of responses; plain texts have "
            "no prompt"
        )


def check_rounds(strategy: str, num_rounds: int) -> None:
    """Refuse a strategy that trains on the devices without a number of rounds."""
    if num_rounds < 1:
        raise SettingsError(f"strategy={strategy} trains for rounds.num-rounds rounds; give it, such as 10")


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
