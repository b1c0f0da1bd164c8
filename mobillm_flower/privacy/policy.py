"""A device's own policy: what it agrees to, whatever a run asks. A run can ask for less, never for more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mobillm_flower.config import Settings
from mobillm_flower.errors import PolicyRefused
from mobillm_flower.privacy.ledger import Limits

MECHANISMS = ("joint", "activations", "labels", "activations and labels", "central", "none")


@dataclass(frozen=True)
class Policy:
    """What a device agrees to; what is left out is not bounded, but for names and files, see `files`.

    Parameters
    ----------
    tasks : tuple of str
        Values of `task.kind`.
    strategies : tuple of str
        Values of `strategy`.
    backbones : tuple of str
        Names, hub ids and folders of models that a run may name, beside those that the package registers.
    files : tuple of str
        Files, folders and hub data sets that a run may name: `data.source`, `activations.public-text`, `settings-file`.
        No other is opened.
    mechanisms : tuple of str
        Among `joint`, `activations`, `labels`, `activations and labels`, `central` (noise that the server adds to sums,
        with which it is then trusted; its ε counts only where it is named here), `none`.
    epsilon : float
        Most ε of one release.
    budget : float
        Most ε of everything that is released of a text, ever; as `epsilon` where it is left out.
    delta : float
        Most δ of the releases of a text, ever.
    releases : int
        Most releases of a text, ever.
    evaluations : int
        Most metrics that it reports, ever.
    metric_epsilon : float
        Most ε of a metric; metrics are then noised.
    settings : mapping of str to value
        Settings of its own by dotted key, which win over the run's as those of the node config do.
    """

    tasks: tuple[str, ...] = ()
    strategies: tuple[str, ...] = ()
    backbones: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    mechanisms: tuple[str, ...] = ()
    epsilon: float = 0.0
    budget: float = 0.0
    delta: float = 0.0
    releases: int = 0
    evaluations: int = 0
    metric_epsilon: float = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def promises(self) -> bool:
        """Whether it bounds what is released of a text."""
        private = bool(self.mechanisms) and "none" not in self.mechanisms
        return bool(self.epsilon or self.budget or self.delta or self.releases or private)

    def limits(self, settings: Settings) -> Limits:
        """Return what the ledger holds the device to: the smaller of the policy's and the settings'."""
        private = settings.privacy
        return Limits(
            max_releases=_smaller(self.releases, private.max_releases),
            budget=_smaller(self.budget or self.epsilon, private.budget),
            max_delta=self.delta,
            max_evaluations=_smaller(self.evaluations, private.max_evaluations),
        )

    def check(self, settings: Settings) -> None:
        """Refuse settings that ask for more than the policy agrees to.

        Raises
        ------
        PolicyRefused
            With the setting, and what the policy says.
        """
        private = settings.privacy
        _one_of("task.kind", settings.task.kind, "tasks", self.tasks)
        _one_of("strategy", settings.strategy, "strategies", self.strategies)
        _one_of("the mechanism", mechanism(settings), "mechanisms", self.mechanisms)
        epsilon = private.joint_epsilon or (
            private.activation_epsilon and private.label_epsilon and private.activation_epsilon + private.label_epsilon
        )
        if "central" in self.mechanisms:
            epsilon = epsilon or private.central_epsilon
        if (self.epsilon or self.budget) and not epsilon:
            raise PolicyRefused(
                "this device's policy asks for an epsilon of text and label together; give privacy.joint-epsilon"
            )
        _at_most("the epsilon of a release", epsilon, "epsilon", self.epsilon)
        if private.activation_epsilon:
            _at_most("privacy.delta", private.delta, "delta", self.delta)
        if self.metric_epsilon and not private.metric_epsilon:
            raise PolicyRefused("this device's policy asks for noise on metrics; give privacy.metric-epsilon")
        _at_most("privacy.metric-epsilon", private.metric_epsilon, "metric-epsilon", self.metric_epsilon)


def read_policy(file: Path) -> Policy:
    """Read `policy.yaml`: keys are the fields of `Policy`, in kebab-case.

    Raises
    ------
    PolicyRefused
        The file cannot be read, or holds another key or a value of another kind.
    """
    try:
        loaded = OmegaConf.to_container(OmegaConf.load(file))
    except Exception as error:  # OSError, and yaml's own, which omegaconf does not export
        raise PolicyRefused(f"this device's policy cannot be read ({type(error).__name__})") from error
    if not isinstance(loaded, dict):
        raise PolicyRefused("this device's policy is no mapping of keys to values")
    known = {item.name: item for item in fields(Policy)}
    values: dict[str, Any] = {}
    for key, value in loaded.items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise PolicyRefused(
                f"this device's policy has the key {str(key)!r}; it takes "
                f"{', '.join(other.replace('_', '-') for other in known)}"
            )
        values[name] = _value(name, value, str(known[name].type))
    policy = Policy(**values)
    for named in policy.mechanisms:
        if named not in MECHANISMS:
            raise PolicyRefused(f"mechanisms of this device's policy are among {', '.join(MECHANISMS)}")
    return policy


def mechanism(settings: Settings) -> str:
    """Return which of `MECHANISMS` settings choose."""
    private = settings.privacy
    if private.joint_epsilon:
        return "joint"
    if private.central_epsilon:
        return "central"
    chosen = {"activations": private.activation_epsilon, "labels": private.label_epsilon}
    return " and ".join(name for name, epsilon in chosen.items() if epsilon) or "none"


def _value(name: str, value: Any, kind: str) -> Any:
    if kind.startswith("tuple") and isinstance(value, list):
        return tuple(str(item) for item in value)
    if kind.startswith("Mapping") and isinstance(value, dict):
        return {str(key): item for key, item in value.items()}
    number = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
    if number and (kind == "float" or (kind == "int" and isinstance(value, int))):
        return value
    raise PolicyRefused(
        f"{name.replace('_', '-')} of this device's policy must be "
        + ("a list" if kind.startswith("tuple") else "a mapping" if kind.startswith("Mapping") else "a number above 0")
    )


def _one_of(what: str, value: str, key: str, allowed: tuple[str, ...]) -> None:
    if allowed and value not in allowed:
        raise PolicyRefused(f"{what}={value!r} is not among this device's policy's {key}: {', '.join(allowed)}")


def _at_most(what: str, value: float, key: str, bound: float) -> None:
    if bound and value > bound * (1 + 1e-9):
        raise PolicyRefused(f"{what}={value:g} is above this device's policy's {key}={bound:g}")


def _smaller(mine: Any, asked: Any) -> Any:
    """Return the smaller of two bounds, of which 0 is none."""
    return min(filter(None, (mine, asked)), default=0)
