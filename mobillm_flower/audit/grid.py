"""The grid of an audit: settings as they are, without protection, and with each mechanism at several strengths."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mobillm_flower.config import Settings, SideNetworkSettings
from mobillm_flower.core.side_networks import needs_of

_NO_PROTECTION = {
    "activations.clip-norm": "0",
    "activations.noise-sigma": "0",
    "activations.keep": "1",
    "activations.projection": "0",
    "privacy.joint-epsilon": "0",
    "privacy.activation-epsilon": "0",
    "privacy.label-epsilon": "0",
    "privacy.mixing": "",
    "privacy.mixing-key": "",
}
_DISCRIMINANT = {
    "side-network.name": "discriminant",
    "loss.name": "logit",
    "activations.codec": "fp16",
    # what it does not use
    "side-network.width": str(SideNetworkSettings.width),
    "side-network.bottleneck": str(SideNetworkSettings.bottleneck),
    "side-network.activation": SideNetworkSettings.activation,
}
_LABEL_EPSILONS = (1, 2, 3)
_JOINT = {1: 16, 2: 16, 4: 32, 8: 64, 16: 64}  # ε and d
_GAUSSIAN = ((2, 2, 32), (5, 3, 32), (10, 6, 64))  # ε of activations and of labels, and d
_KEPT = (0.25, 0.1)
_CODECS = ("fp32",)
AS_SET = "as set"
UNPROTECTED = "unprotected"
MIXING = "mixing"


@dataclass(frozen=True)
class Cell:
    """One column of the grid.

    Parameters
    ----------
    name : str
        For people.
    kind : {"as set", "unprotected", "compression", "mixing", "labels", "joint", "gaussian"}
        What it varies; "mixing" wants a key beside its words.
    words : tuple of str
        ``key=value`` beside the audited settings.
    """

    name: str
    kind: str
    words: tuple[str, ...] = ()


def grid(settings: Settings, *, quick: bool = False) -> Iterator[Cell]:
    """Yield the cells of an audit of settings.

    Parameters
    ----------
    settings : Settings
        Those audited; a class task.
    quick : bool
        One or two strengths of each mechanism.
    """
    yield Cell(AS_SET, AS_SET)
    whole = dict(_NO_PROTECTION)
    if needs_of(settings.side_network.name).one_vector:  # which a projection gives
        whole["side-network.name"] = "additive"
    if is_changed(settings):
        yield Cell(UNPROTECTED, UNPROTECTED, _words(whole))
    if settings.loss.objective.value == "difference":
        yield Cell("secret rotation", MIXING, _words({**whole, "loss.name": "square"}))
        for epsilon in _LABEL_EPSILONS[:1] if quick else _LABEL_EPSILONS:
            words = {**whole, "privacy.label-epsilon": str(epsilon)}
            yield Cell(f"labels at ε = {epsilon}", "labels", _words(words))
        plain = {**whole, "activations.standardise": "false", **_DISCRIMINANT}
        pivot = {"activations.pivot": "mean"} if settings.activations.pivot == "all" else {}
        for epsilon, width in list(_JOINT.items())[3:4] if quick else _JOINT.items():
            words = {**plain, **pivot, "privacy.joint-epsilon": str(epsilon), "activations.projection": str(width)}
            yield Cell(f"text and label at ε = {epsilon}", "joint", _words(words))
        for vector, label, width in () if quick else _GAUSSIAN:
            chosen = {"privacy.activation-epsilon": str(vector), "privacy.label-epsilon": str(label)}
            words = {**plain, **pivot, **chosen, "activations.projection": str(width)}
            yield Cell(f"Gaussian at ε = {vector} + {label}", "gaussian", _words(words))
    for keep in () if quick else _KEPT:
        yield Cell(
            f"{keep:.0%} of the values", "compression", _words({**_NO_PROTECTION, "activations.keep": str(keep)})
        )
    for codec in () if quick else _CODECS:
        if codec != settings.activations.codec:
            yield Cell(codec, "compression", _words({**whole, "activations.codec": codec}))


def is_changed(settings: Settings) -> bool:
    """Whether settings protect or drop something of an upload beyond the codec's rounding."""
    acts, private = settings.activations, settings.privacy
    epsilons = (private.joint_epsilon, private.activation_epsilon, private.label_epsilon)
    return bool(
        any(epsilons) or private.mixing or acts.clip_norm or acts.noise_sigma or acts.projection or acts.keep < 1
    )


def _words(values: dict[str, str]) -> tuple[str, ...]:
    return tuple(f"{key}={value}" for key, value in values.items())
