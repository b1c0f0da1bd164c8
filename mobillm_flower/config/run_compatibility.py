"""Which settings go with a run's data, backbone and fleet; each function takes the few plain values that it needs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from mobillm_flower.config.compatibility import ANALYTIC, ON_UPPER_LAYERS, UPPER_LAYERS, refuse
from mobillm_flower.config.parts.backbone import ONE_MODEL_TWO_TYPES
from mobillm_flower.config.parts.training import Objective, SideNetworkSettings
from mobillm_flower.config.settings import Settings
from mobillm_flower.errors import SettingsError, UnsupportedError


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
        refuse(
            ON_UPPER_LAYERS,
            {
                f"activations.pivot={pivot} makes a few vectors of a text: choose all": not every_token,
                f"loss.objective={settings.loss.objective.value} needs the last layer's states on the device: for "
                "language modelling choose preset=mobillm": predicts_tokens
                and settings.loss.objective != Objective.label,
                f"loss.scale={settings.loss.scale!r} has no use in language modelling: leave it out": predicts_tokens
                and settings.loss.scale not in (0, 1),
            },
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
    """Refuse label words that are not one a label, a metric of two classes for others, and a prompt that cannot be."""
    if settings.task.metric == "f1" and len(labels) not in (0, 2):
        raise SettingsError(
            f"task.metric=f1 is that of the second of two classes, and there are {len(labels)}; choose macro-f1"
        )
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
