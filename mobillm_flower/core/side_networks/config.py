"""The registry of side networks, and everything that is needed to build one again."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from torch import Tensor, nn

from mobillm_flower.core.registry import Registry
from mobillm_flower.core.side_networks.protocol import NOTHING_NEEDED, ActivationBatch, Needs
from mobillm_flower.errors import MismatchError

PER_TYPE = ("alignment", "heads")
"""First part of the names of parameters that one backbone type has for itself; its fingerprint is the second."""

_NAMED = frozenset({"random_features", "vector_scale", "predicts_tokens", "tasks", "orthogonality", "threshold"})
"""Fields of a few side networks, which name them."""


@dataclass(frozen=True)
class AlignmentSpec:
    """What one backbone type feeds in.

    Parameters
    ----------
    width : int
        d_b.
    num_vectors : int
        P, the vectors of a packed row.
    layers_above : int
        Layers of the backbone above the last one that is sampled; other than 0 only where the side network runs them.
    """

    width: int
    num_vectors: int
    layers_above: int = 0

    @property
    def num_features(self) -> int:
        """P·d_b, the length of a flattened row."""
        return self.width * self.num_vectors


SIDE_NETWORKS: Registry[Callable[..., nn.Module]] = Registry("side network")
"""Side networks by the name that `side-network.name` gives: what makes one from a `SideNetworkConfig`'s fields."""


@dataclass(frozen=True)
class SideNetworkConfig:
    """Everything that is needed to build a side network again; its JSON travels with the weights.

    Parameters
    ----------
    name : str
        Name in `SIDE_NETWORKS`; the class it names is given those of the other fields that it takes.
    types : mapping of str to AlignmentSpec
        Backbone fingerprint to input shape.
    num_blocks : int
        M, the sampled layers.
    width : int
        d, what alignments map to.
    bottleneck : int
        r, the width inside an adapter.
    num_outputs : int
        K.
    activation : str
        Activation function, φ.
    input_norm : bool
        Whether rows are layer-normalised first; False where they are standardised with public constants.
    identity_alignment : bool
        Whether rows are taken as they are; only in a run of one type with d = d_b and P = 1.
    joined : tuple of str
        Types that came later; each has an alignment of its own in any case.
    seed : int
        What initial weights, or signs of random features, are drawn from.
    random_features : int
        F of the closed form.
    vector_scale : bool
        Whether the closed form divides each vector by what it varies, in place of a layer norm.
    predicts_tokens : bool
        Whether the output is as wide as the backbone's last states: those of its upper layers, or a correction.
    tasks : tuple of int
        K_t of tasks that come one after another, K in all; empty: there is one.
    orthogonality, threshold : float
        λ and τ₀ of side networks with adapters for each task.
    """

    name: str
    types: Mapping[str, AlignmentSpec]
    num_blocks: int
    width: int
    bottleneck: int
    num_outputs: int
    activation: str = "gelu"
    input_norm: bool = True
    identity_alignment: bool = False
    joined: tuple[str, ...] = ()
    seed: int = 0
    random_features: int = 0
    vector_scale: bool = False
    predicts_tokens: bool = False
    tasks: tuple[int, ...] = ()
    orthogonality: float = 0.0
    threshold: float = 0.0

    @classmethod
    def of(cls, types: Mapping[str, AlignmentSpec], *, width: int = 0, **others: Any) -> SideNetworkConfig:
        """Choose width and alignment for the types of a run.

        Width 0 takes the backbone's own for one type, the larger of two, the lower median of more (Fed MobiLLM,
        2508.06765). A single type with P = 1 and d = d_b is aligned by the identity.
        """
        widths = sorted(spec.width for spec in types.values())
        width = width or (widths[-1] if len(widths) <= 2 else widths[(len(widths) - 1) // 2])
        identity = len(types) == 1 and all(s.num_vectors == 1 and s.width == width for s in types.values())
        return cls(types=dict(types), width=width, identity_alignment=identity, **others)

    def build(self) -> nn.Module:
        """Make a fresh side network, from those fields that its constructor takes."""
        return SIDE_NETWORKS[self.name](**{name: getattr(self, name) for name in fields_taken(self.name)})

    def only(self, backbone: str) -> SideNetworkConfig:
        """Return the part that one backbone type needs: its own alignment and what is shared.

        Raises
        ------
        MismatchError
            The type has no alignment here.
        """
        if backbone not in self.types:
            raise MismatchError(
                f"backbone {backbone[:12]} was not part of the run that trained this side network (it knows "
                f"{', '.join(name[:12] for name in self.types)}); use one of those backbones"
            )
        return replace(
            self,
            types={backbone: self.types[backbone]},
            joined=tuple(name for name in self.joined if name == backbone),
        )

    def joined_by(self, backbone: str, spec: AlignmentSpec) -> SideNetworkConfig:
        """Return the side network with one more type; what is shared and the others' alignments stay as they are."""
        return replace(self, types={**self.types, backbone: spec}, joined=(*self.joined, backbone))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; what came later and is not used is left out, as it was before."""
        return {name: value for name, value in asdict(self).items() if name not in _NAMED or value}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SideNetworkConfig:
        """Read back `to_dict`."""
        types = {name: AlignmentSpec(**spec) for name, spec in values["types"].items()}
        lists = {name: tuple(values.get(name, ())) for name in ("joined", "tasks")}
        return cls(**{**values, "types": types, **lists})


def state_for(state: Mapping[str, Tensor], backbone: str) -> dict[str, Tensor]:
    """Return the entries of a side network's state that one backbone type needs; the others' alignments stay out.

    Parameters
    ----------
    state : mapping of str to Tensor
        By parameter name.
    backbone : str
        The type's fingerprint.
    """
    return {
        name: tensor
        for name, tensor in state.items()
        if name.split(".")[0] not in PER_TYPE or name.split(".")[1] == backbone
    }


def fields_taken(name: str) -> tuple[str, ...]:
    """Return the fields of `SideNetworkConfig` that a registered side network's constructor takes.

    Raises
    ------
    SettingsError
        No side network has this name.
    """
    parameters = inspect.signature(SIDE_NETWORKS[name]).parameters.values()
    known = [item.name for item in fields(SideNetworkConfig) if item.name != "name"]
    taken = {parameter.name for parameter in parameters}
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        taken |= set(known) - _NAMED
    return tuple(field for field in known if field in taken)


def require_known(batch: ActivationBatch, types: Mapping[str, AlignmentSpec], num_blocks: int, *, part: str) -> None:
    """Raise MismatchError where a batch's type has no such part of a side network, or rows have another shape."""
    spec = types.get(batch.backbone)
    if spec is None:
        raise MismatchError(
            f"backbone {batch.backbone[:12]} has no {part} in this side network; it knows "
            f"{', '.join(name[:12] for name in types)}"
        )
    if batch.rows.shape[1:] != (num_blocks, spec.num_features):
        raise MismatchError(
            f"activations have shape {tuple(batch.rows.shape[1:])} a row, the side network takes "
            f"{(num_blocks, spec.num_features)}"
        )


def needs_of(name: str) -> Needs:
    """Return what a side network needs of a run; nothing where it is registered on the other side only."""
    needs: Needs = getattr(SIDE_NETWORKS[name], "needs", NOTHING_NEEDED) if name in SIDE_NETWORKS else NOTHING_NEEDED
    return needs


def grown(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of a fresh side network with what one of fewer tasks knew in its place.

    Parameters of the same name are taken over. Where the fresh one has more rows, as outputs of more classes have, they
    are its first, and the others stay as they are.

    Parameters
    ----------
    network : nn.Module
        Fresh, for all tasks.
    state : mapping of str to Tensor
        Of the side network that learned the earlier ones.

    Raises
    ------
    MismatchError
        A parameter is missing there, or of another shape.
    """
    made = {name: value.clone() for name, value in network.state_dict().items()}
    for name, value in state.items():
        mine = made.get(name)
        if mine is None or mine.shape[1:] != value.shape[1:] or len(mine.shape) != len(value.shape):
            raise MismatchError(
                f"{name} of the earlier tasks' side network does not fit this one; go on with the same backbone, "
                "layers, pivot, width and bottleneck"
            )
        if value.ndim and len(value) > len(mine):
            raise MismatchError(f"{name} has {len(value)} rows for the earlier tasks, and {len(mine)} for all")
        mine[: len(value)].copy_(value) if value.ndim else mine.copy_(value)
    return made
