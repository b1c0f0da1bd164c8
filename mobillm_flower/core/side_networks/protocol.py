"""What a side network is given and gives, and what it may offer or need beyond that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from mobillm_flower.core.placement import moved


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
    asked : Tensor or None
        [N] bool, in language modelling: the rows that s(A) is wanted of, where it is not wanted of all.
    """

    backbone: str
    rows: Tensor
    lengths: Tensor | None = None
    sequences: Tensor | None = None
    asked: Tensor | None = None

    @property
    def num_samples(self) -> int:
        """B; of language modelling the number of tokens."""
        return len(self.rows if self.lengths is None else self.lengths)

    def to(self, device: torch.device) -> ActivationBatch:
        """Return it on a device, see `moved`."""
        return replace(
            self,
            rows=moved(self.rows, device),
            lengths=None if self.lengths is None else moved(self.lengths, device),
            sequences=None if self.sequences is None else moved(self.sequences, device),
            asked=None if self.asked is None else moved(self.asked, device),
        )


@dataclass(frozen=True)
class LabelledBatch:
    """Samples of one backbone type with their labels, as they were uploaded.

    Parameters
    ----------
    batch : ActivationBatch
        B samples; all is on one device.
    labels : Tensor or None
        [B] int64; None where there are none, or the server cannot read them.
    label_rates : tuple of float
        P[ỹ = y] and P[ỹ = k] of each other label k; (1, 0) where labels are not randomized.
    mixture : tuple of float
        (a, b): the expected vector of a sample that is sent with label k is a times the mean of k's samples and b times
        those of the others, see `mobillm_flower.privacy.protect.Protection`.
    variance : float
        Variance of the noise in each value of the rows.
    targets : Tensor or None
        [B, K] float32, unbiased for what s(A) is to be.
    base : Tensor or None
        p_b, [B, K] float32, where labels are known.
    weights : Tensor or None
        [B], what each sample counts; None: 1.
    calibrate : bool
        Whether s(A) is added to log p_b, so that its scale matters, and not to p_b.
    scale : float
        c: targets are unbiased for c·(onehot(y) − p_b) where there are classes.
    protected : bool
        Whether the labels that are read are not always the samples' own.
    """

    batch: ActivationBatch
    labels: Tensor | None
    label_rates: tuple[float, float] = (1.0, 0.0)
    mixture: tuple[float, float] = (1.0, 0.0)
    variance: float = 0.0
    targets: Tensor | None = None
    base: Tensor | None = None
    weights: Tensor | None = None
    calibrate: bool = False
    scale: float = 1.0
    protected: bool = False


@dataclass(frozen=True)
class FittedPart:
    """How well a fit in closed form predicts samples that were left out of it.

    Parameters
    ----------
    backbone : str
        Their type's fingerprint.
    scores : Tensor
        s(A) of m samples, [m, K] float32, each by a fit without it.
    labels, base : Tensor or None
        Their labels [m] and p_b [m, K], as far as they are known.
    penalty : float
        λ of the fit.
    """

    backbone: str
    scores: Tensor
    labels: Tensor | None
    base: Tensor | None
    penalty: float


class Upper(Protocol):
    """Layers ℓ+1 … L of a frozen backbone."""

    causal: bool

    def __call__(self, hidden: Tensor, mask: Tensor, between: Callable[[int, Tensor], Tensor]) -> Tensor:
        """Return what the last layer leaves, [B, T, d_b] float32, of states that layer ℓ leaves.

        Parameters
        ----------
        hidden : Tensor
            [B, T, d_b], padded on the right.
        mask : Tensor
            [B, T] of 0/1.
        between : callable
            (i, states [B, T, d_b] float32) -> states: what the i-th of these layers left, as the next one reads it.
        """
        ...


@dataclass(frozen=True)
class Needs:
    """What a side network needs of a run; a class says it in its attribute `needs`, and without one needs nothing.

    Parameters
    ----------
    one_type : bool
        All devices have one backbone type.
    every_token : bool
        Rows of every token, those of a text in order.
    upper_layers : bool
        The layers above the sampled one, which is then a single one: see `RunsUpperLayers`.
    classes : bool
        The task has classes: neither numbers nor tokens are predicted.
    one_vector : bool
        One vector a sample, which is a projection's.
    """

    one_type: bool = False
    every_token: bool = False
    upper_layers: bool = False
    classes: bool = False
    one_vector: bool = False


NOTHING_NEEDED = Needs()


class SideNetwork(Protocol):
    """What the trainer and the model need of a side network; an `nn.Module` besides.

    Its constructor takes those fields of `SideNetworkConfig` that it uses, by name. A network that offers more has the
    members of one of the protocols below, too: the package asks by `isinstance`.
    """

    def __call__(self, batches: Sequence[ActivationBatch]) -> Tensor:
        """Return s(A), [B, K] float32, samples in the order of the batches."""


@runtime_checkable
class ScalesLearningRates(Protocol):
    """A side network whose parameters have learning rates of their own; without it all have the same."""

    def learning_rate_factor(self, parameter: str) -> float:
        """Return what the trainer multiplies the learning rate of a named parameter with."""


@runtime_checkable
class FitsInClosedForm(Protocol):
    """A side network that is not trained by steps."""

    def fit(self, samples: Iterable[LabelledBatch]) -> list[FittedPart]:
        """Set the parameters from all samples, which are read once, in parts; returns what is known of its quality.

        An error that reading them raises must leave what it predicts as it was.
        """


@runtime_checkable
class RunsUpperLayers(Protocol):
    """A side network that runs layers of the frozen backbone; it has `Needs.upper_layers`."""

    def attach(self, upper: Upper) -> None:
        """Give it the layers, before it is called; copies of the network share them."""


@runtime_checkable
class AdaptsBetweenLayers(Protocol):
    """A side network that changes states between layers of the frozen backbone, for generation token by token."""

    def between(self, place: int, states: Tensor) -> Tensor:
        """Return what the next layer reads, [B, T, d_b] float32, of what the `place`-th of the layers left."""


@runtime_checkable
class StepsThroughTokens(Protocol):
    """A side network whose output of a token depends on tokens before it, for generation token by token."""

    def step(self, batch: ActivationBatch, before: Tensor | None, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Return s(A) of the next tokens, and what these leave for those after them.

        Parameters
        ----------
        batch : ActivationBatch
            T rows each of B texts, [B·T, M, P·d_b].
        before : Tensor or None
            What the texts' tokens before left, float32, beginning with [B, M]; None: there are none.
        seen : Tensor
            [B, T] bool; later tokens do not read those where it is false.
        """


@runtime_checkable
class KeepsSums(Protocol):
    """A side network that takes more than its state from one task to the next."""

    def begin_task(self, kept: Mapping[str, Tensor]) -> None:
        """Go on after earlier tasks, before anything is learned, with what `end_task` returned after the last."""

    def end_task(self) -> dict[str, Tensor]:
        """Return what the next task needs beside the state."""


@runtime_checkable
class Penalised(Protocol):
    """A side network of which something is added to the loss of each step."""

    def penalty(self) -> Tensor:
        """Return it, a scalar."""


@runtime_checkable
class Remembers(Protocol):
    """A side network that keeps something of the samples it learns from, beside what is learned by steps."""

    def remember(self, samples: Iterable[Sequence[ActivationBatch]]) -> None:
        """Read all samples once, in parts, at the end of each epoch."""


@runtime_checkable
class ReadsWholeBase(Protocol):
    """A side network that may have learned beside p_b as it is, and not beside its share of all tasks' classes."""

    @property
    def whole_base(self) -> bool:
        """Whether s(A) is to be added to the whole p_b of its task."""


@runtime_checkable
class ShowsGates(Protocol):
    """A side network with gates between its blocks, which a run's log shows."""

    @property
    def gate_values(self) -> list[float]:
        """The gates, from the first block on, in [0, 1]."""


@runtime_checkable
class ShowsRanks(Protocol):
    """A side network whose adapters find their own rank, which a run's log shows."""

    @property
    def effective_ranks(self) -> list[list[int]]:
        """The rank of each task's adapters, one a block."""


def attach_layers(network: nn.Module, upper: Upper | None) -> None:
    """Give a side network the backbone's layers, if it runs them and they are there."""
    if upper is not None and isinstance(network, RunsUpperLayers):
        network.attach(upper)
