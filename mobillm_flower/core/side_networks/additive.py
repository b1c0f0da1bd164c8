"""The additive side network: alignment, gates, adapters, zero-initialised output (PAE MobiLLM, 2507.01216).

It runs beside the backbone on M sampled activations and never inside it, so the backbone needs no gradient. To add
another, register a class with the constructor and `forward` of `AdditiveSideNetwork`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mobillm_flower.core.placement import moved
from mobillm_flower.core.registry import Registry
from mobillm_flower.errors import MismatchError, SettingsError

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "identity": nn.Identity,
}


PER_TYPE = ("alignment", "heads")
"""First part of the names of parameters that one backbone type has for itself; its fingerprint is the second."""

ALIGNMENT_RATE = 0.1
"""The alignment's learning rate as a share of the others'; chosen on validation data."""
FLEET_ALIGNMENT_RATE = 0.01
"""The same where several types start from the identity: each stays near it, and so near the others' meaning, instead of
learning what its own devices' labels have in common. Chosen on held-out training texts, see
`docs/explanation/one-network-for-all.md`.
"""


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


@dataclass(frozen=True)
class ActivationBatch:
    """Activations of samples of one backbone type.

    Parameters
    ----------
    backbone : str
        The type's fingerprint.
    rows : Tensor
        [N, M, P·d_b] float32; one row a sample, or with pivot `all` one row a token, samples one after another.
    lengths : Tensor or None
        [B] int64, rows of each sample, with pivot `all`; None means one row a sample (N = B).
    sequences : Tensor or None
        [S] int64, rows of each text in language modelling: its tokens in order, and s(A) is wanted of each.
    """

    backbone: str
    rows: Tensor
    lengths: Tensor | None = None
    sequences: Tensor | None = None

    def to(self, device: torch.device) -> ActivationBatch:
        """Return it on a device, see `moved`."""
        return replace(
            self,
            rows=moved(self.rows, device),
            lengths=None if self.lengths is None else moved(self.lengths, device),
            sequences=None if self.sequences is None else moved(self.sequences, device),
        )


class SideNetwork(Protocol):
    """What the trainer and the model need of a side network; an `nn.Module` besides."""

    def __call__(self, batches: Sequence[ActivationBatch]) -> Tensor:
        """Return s(A), [B, K] float32, samples in the order of the batches."""

    def learning_rate_factor(self, parameter: str) -> float:
        """Return what the trainer multiplies the learning rate of a named parameter with."""


SIDE_NETWORKS: Registry[Callable[..., nn.Module]] = Registry("side network")
"""Side networks by the name that `side-network.name` gives: what makes one from a `SideNetworkConfig`'s fields."""


def _apart(_block: int, narrow: Tensor) -> Tensor:
    """Leave each row's narrow vector [N, r] to itself."""
    return narrow


@SIDE_NETWORKS.register("additive")
class AdditiveSideNetwork(nn.Module):
    """Additive side network over M blocks.

    For block i: x_i = W_b,i·LN(flatten(a_i)); s_in,i = (1 − μ_i)·x_i + μ_i·h_{i−1} with μ_i = sigmoid(α_i) and
    s_in,1 = x_1 (PAE eq. 1); h_i = s_in,i + W_up φ(W_down LN(s_in,i)). Output s(A) = W_o LN(h_M). W_o starts at
    zero, so that an untrained side network leaves the base model as it is.

    The alignment W_b,i is one set per backbone type b, learned, starting from the identity where d = d_b (for
    several pivots, from their sum over √P) and at random otherwise; a run of a single type with P = 1 and d = d_b needs
    none (see `SideNetworkConfig.of`).

    Parameters
    ----------
    types : mapping of str to AlignmentSpec
        Backbone fingerprint to input shape.
    num_blocks, width, bottleneck, num_outputs : int
        M, d, r, K.
    activation : str
        φ, one of `ACTIVATIONS`.
    input_norm : bool
        Whether rows are layer-normalised first; False where they are standardised with public constants.
    identity_alignment : bool
        The type that the run began with has no alignment parameters: W is the identity. Only where d = d_b and P = 1.
    joined : sequence of str
        Types that came later; each has an alignment of its own in any case.
    seed : int
        Initial weights depend on it and on the type's fingerprint, not on the global generator.

    Raises
    ------
    SettingsError
        An unknown activation function.
    """

    def __init__(
        self,
        *,
        types: Mapping[str, AlignmentSpec],
        num_blocks: int,
        width: int,
        bottleneck: int,
        num_outputs: int,
        activation: str = "gelu",
        input_norm: bool = True,
        identity_alignment: bool = False,
        joined: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise SettingsError(
                f"side-network.activation={activation!r} is not known; choose one of {', '.join(ACTIVATIONS)}"
            )
        self.num_blocks, self.width, self.num_outputs = num_blocks, width, num_outputs
        self.input_norm = input_norm
        self.types = dict(types)
        self.identity_alignment = identity_alignment
        self._joined = frozenset(joined)
        self.alignment = nn.ModuleDict(
            {
                name: self.make_alignment(spec, own_generator(seed, name))
                for name, spec in sorted(self.types.items())
                if name in joined or not identity_alignment
            }
        )
        generator = own_generator(seed, "shared")
        self.gates = nn.Parameter(torch.zeros(max(0, num_blocks - 1)))
        self.adapters = nn.ModuleList(
            Adapter(width, bottleneck, ACTIVATIONS[activation](), generator) for _ in range(num_blocks)
        )
        self.output_norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, num_outputs, bias=True)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def make_alignment(self, spec: AlignmentSpec, generator: torch.Generator) -> nn.Module:
        """Return W_b of one type: a module from rows [N, M, P·d_b] to [N, M, d]."""
        return _Alignment(spec, self.width, self.num_blocks, generator)

    @property
    def gate_values(self) -> list[float]:
        """μ_i of blocks 2..M: the share of the previous block's state."""
        return [float(value) for value in torch.sigmoid(self.gates.detach())]

    def learning_rate_factor(self, parameter: str) -> float:
        """Return what the learning rate is multiplied with: the alignment is large and starts well."""
        if not parameter.startswith("alignment."):
            return 1.0
        name = parameter.split(".")[1]
        several = len(self.types) - len(self._joined) > 1 or name in self._joined
        return FLEET_ALIGNMENT_RATE if several and self.types[name].width == self.width else ALIGNMENT_RATE

    def align(self, batch: ActivationBatch) -> Tensor:
        """Return x, [N, M, d], of one type's rows [N, M, P·d_b].

        Raises
        ------
        MismatchError
            The type has no alignment here, or rows have another shape.
        """
        spec = self.types.get(batch.backbone)
        if spec is None:
            raise MismatchError(
                f"backbone {batch.backbone[:12]} has no alignment in this side network; it knows "
                f"{', '.join(name[:12] for name in self.types)}"
            )
        if batch.rows.shape[1:] != (self.num_blocks, spec.num_features):
            raise MismatchError(
                f"activations have shape {tuple(batch.rows.shape[1:])} a row, the side network takes "
                f"{(self.num_blocks, spec.num_features)}"
            )
        rows = batch.rows
        if self.input_norm:
            rows = nn.functional.layer_norm(rows, rows.shape[-1:])
        if batch.backbone not in self.alignment:
            return rows
        aligned: Tensor = self.alignment[batch.backbone](rows)
        return aligned

    def forward(self, batches: Sequence[ActivationBatch]) -> Tensor:
        """Return s(A), [B, K], samples in the order of the batches."""
        return self._read(self._through(batches), batches)

    def _read(self, hidden: Tensor, batches: Sequence[ActivationBatch]) -> Tensor:
        """Return s(A), [B, K], of LN(h_M), [N, d]."""
        if any(batch.lengths is not None for batch in batches):
            hidden = torch.segment_reduce(hidden, "mean", lengths=_lengths(batches), axis=0)  # [B, d]
        found: Tensor = self.output(hidden)
        return found

    def _through(self, batches: Sequence[ActivationBatch], mix: Callable[[int, Tensor], Tensor] = _apart) -> Tensor:
        """Return LN(h_M), [N, d], of all rows."""
        aligned = [self.align(batch) for batch in batches]
        x = aligned[0] if len(aligned) == 1 else torch.cat(aligned)  # [N, M, d]
        blocks = x.unbind(1)  # M times [N, d]
        hidden = blocks[0]
        for i, adapter in enumerate(self.adapters):
            if i:
                mu = torch.sigmoid(self.gates[i - 1])
                hidden = (1 - mu) * blocks[i] + mu * hidden
            hidden = adapter(hidden, partial(mix, i))
        found: Tensor = self.output_norm(hidden)
        return found


@dataclass(frozen=True)
class SideNetworkConfig:
    """Everything that is needed to build a side network again; its JSON travels with the weights.

    Parameters
    ----------
    name : str
        Name in `SIDE_NETWORKS`; the other fields are what is given to the class it names.
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
        What initial weights are drawn from.
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
        """Make a fresh side network."""
        arguments = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "name"}
        return SIDE_NETWORKS[self.name](**arguments)

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
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SideNetworkConfig:
        """Read back `to_dict`."""
        types = {name: AlignmentSpec(**spec) for name, spec in values["types"].items()}
        return cls(**{**values, "types": types, "joined": tuple(values.get("joined", ()))})


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


def _per_block(weight: Tensor, rows: Tensor) -> Tensor:
    """Return W_i a_i of each block: [M, d, f] and [N, M, f] -> [N, M, d].

    The weight comes first, so that its gradient comes out in its own layout; the other way round, copying it took
    longer than the products.
    """
    return torch.bmm(weight, rows.permute(1, 2, 0)).permute(2, 0, 1)


class _Alignment(nn.Module):
    """W_b,i of one backbone type for all blocks: weight [M, d, P·d_b].

    It starts as the scaled sum of the pivots where each is as wide as the side network, otherwise at random.
    """

    def __init__(self, spec: AlignmentSpec, width: int, num_blocks: int, generator: torch.Generator) -> None:
        super().__init__()
        if spec.width == width:
            start = torch.eye(width).repeat(1, spec.num_vectors) / spec.num_vectors**0.5  # [d, P·d_b]
            weight = start.repeat(num_blocks, 1, 1)
        else:
            weight = torch.randn(num_blocks, width, spec.num_features, generator=generator) / spec.num_features**0.5
        self.weight = nn.Parameter(weight)

    def forward(self, rows: Tensor) -> Tensor:
        return _per_block(self.weight, rows)


class Adapter(nn.Module):
    """h = s + W_up φ(W_down LN(s)); W_up starts at zero, so that a fresh adapter passes its input on."""

    def __init__(self, width: int, bottleneck: int, activation: nn.Module, generator: torch.Generator) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.down = nn.Linear(width, bottleneck)
        self.activation = activation
        self.up = nn.Linear(bottleneck, width)
        with torch.no_grad():
            self.down.weight.copy_(torch.randn(bottleneck, width, generator=generator) / width**0.5)
            self.down.bias.zero_()
            self.up.weight.zero_()
            self.up.bias.zero_()

    def forward(self, state: Tensor, mix: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Return h, [..., d], of s, [..., d]; `mix` works on the narrow vectors [..., r]."""
        narrow = self.down(self.norm(state))
        out: Tensor = state + self.up(self.activation(mix(narrow) if mix else narrow))
        return out


def own_generator(seed: int, name: str) -> torch.Generator:
    """Return a generator that depends on a seed and a name alone."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _lengths(batches: Sequence[ActivationBatch]) -> Tensor:
    """Return the rows of each sample over all batches, [B]."""
    return torch.cat(
        [
            batch.lengths if batch.lengths is not None else batch.rows.new_ones(len(batch.rows), dtype=torch.long)
            for batch in batches
        ]
    )


@SIDE_NETWORKS.register("fixed-gates")
class FixedGatesSideNetwork(AdditiveSideNetwork):
    """The additive side network with every gate μ_i held at 1/2: what learned gates are compared with."""

    def __init__(self, **shape: Any) -> None:
        super().__init__(**shape)
        self.gates.requires_grad_(False)


@SIDE_NETWORKS.register("low-rank")
class LowRankSideNetwork(AdditiveSideNetwork):
    """The additive side network with alignments of low rank: x_i = Σ_p a_i,p / √P + B_b,i A_b,i flatten(a_i).

    The sum of the pivots stays as it is, and what is learned has rank `rank` (as LoRA has beside a frozen matrix,
    2106.09685): ρ·(P·d_b + d) parameters a block in place of d·P·d_b. B starts at zero. A type that is not as wide as
    the side network has a full alignment.

    Attributes
    ----------
    rank : int
        ρ.
    """

    rank = 8

    def make_alignment(self, spec: AlignmentSpec, generator: torch.Generator) -> nn.Module:
        """Return W_b of one type."""
        if spec.width != self.width:
            return super().make_alignment(spec, generator)
        return _LowRankAlignment(spec, self.num_blocks, self.rank, generator)


class _LowRankAlignment(nn.Module):
    """The scaled sum of the pivots, and a product of low rank: A [M, ρ, P·d_b] and B [M, d, ρ]."""

    def __init__(self, spec: AlignmentSpec, num_blocks: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.num_vectors = spec.num_vectors
        down = torch.randn(num_blocks, rank, spec.num_features, generator=generator)
        self.down = nn.Parameter(down / spec.num_features**0.5)
        self.up = nn.Parameter(torch.zeros(num_blocks, spec.width, rank))

    def forward(self, rows: Tensor) -> Tensor:
        count, blocks, _ = rows.shape
        kept = rows.view(count, blocks, self.num_vectors, -1).sum(2) / self.num_vectors**0.5
        narrow = _per_block(self.down, rows)
        aligned: Tensor = kept + _per_block(self.up, narrow)
        return aligned
