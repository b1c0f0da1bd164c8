"""What the server trains, on what, and how."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from mobillm_flower.config.parts.ranges import number, one_of


class Objective(StrEnum):
    """What a device uploads beside the activations: a prediction difference, or the label itself."""

    difference = "difference"
    label = "label"


@dataclass
class LossSettings:
    """What the side network is fitted to.

    Parameters
    ----------
    objective : Objective
        difference (Δy = y − p_b) or label.
    name : str
        Loss of the objective `difference`: square or logit. For language modelling logit, which then equals the
        cross-entropy; square is a plain regression on the corrections.
    scale : float
        c of the square loss; 0: 2·max(1, √K/2), for regression 1.
    send_base : bool
        With objective `label`, send p_b too.
    """

    objective: Objective = Objective.difference
    name: str = one_of("square", "square", "logit")
    scale: float = number(0.0, at_least=0)
    send_base: bool = True


@dataclass
class SideNetworkSettings:
    """The side network that the server trains.

    Parameters
    ----------
    name : str
        auto: closed-form where one backbone type sends a few vectors a sample, without noise, and neither width,
        bottleneck nor activation is given; otherwise additive. closed-form (solved, not trained by steps), additive,
        low-rank (small where a layer has several pivots), upper-layers (the backbone's own layers above
        `activations.layers`, with adapters between them, from every token's states), causal (also reads a text's
        earlier tokens: language modelling, or `activations.pivot=all`), discriminant (for much noise), or a registered
        one.
    width : int
        Width d of the side network; 0: the backbones' own.
    bottleneck : int
        Width r inside an adapter.
    activation : str
        Activation function of an adapter: gelu, relu, silu, tanh or identity.
    random_features : int
        Random features that the closed form reads beside the sampled vectors; 0: it is linear.
    codec : str
        Codec of the weights on their way to the devices; what the server keeps has full precision.
    """

    name: str = "auto"
    width: int = number(0, at_least=0)
    bottleneck: int = number(64, at_least=1)
    activation: str = "gelu"
    random_features: int = number(2048, at_least=0)
    codec: str = "int8"


@dataclass
class TrainerSettings:
    """The server's training. Settings of steps (AdamW with warm-up and linear decay) have no effect on a closed form.

    Parameters
    ----------
    epochs : int
        Epochs from the cache when all data is held.
    batch_size : int
        Samples a step; 0: 32, in language modelling as few as 4 where there would be less than 100 steps.
    learning_rate : float
        Peak learning rate.
    weight_decay : float
        Weight decay of matrices; biases, norms and gates have none.
    dropout : float
        Share of the inputs' values that is zeroed at each step.
    averaging : float
        Decay of the running average of the weights: the share of the average that stays at each step. The average is
        measured, kept and sent; 0: the last weights in its place.
    warmup : float
        Share of the planned steps in which the learning rate rises.
    grad_clip : float
        Largest L2 norm of the gradient.
    validation_share : float
        Share of the samples kept aside to choose the best state.
    validation_split : str
        How that share is chosen. secret: by a key that the server draws when the run starts, so that no device can
        foresee it; seed: by `run.seed`, so that a run in another folder is the same bit by bit (`mobillm run` simulates
        so).
    patience : int
        Epochs without a better state that end the training; 0: never stop early.
    overlap_steps : int
        Steps taken each round while devices compute.
    checkpoint_every : int
        Steps between two checkpoints.
    device_cap : int
        Most samples of one device in an epoch, drawn anew each epoch; 0: all.
    judge_devices : bool
        Leave out a device whose samples those of the others contradict. Of a device that is only doubtful, use at most
        three times as many samples as the median device has. From five devices on; not in language modelling.
    balance_types : bool
        Give each backbone type the same number of places in an epoch.
    adjust_types : bool
        In a fleet of several types, correct for the labels that a type's devices hold more often than the fleet does.
    num_threads : int
        Threads of torch on the server; 0: one where the side network reads a few vectors a text, since more are slower
        beside devices on the same machine; as many as torch chooses where it computes on every token.
    device : str
        auto, cpu, cuda or cuda:N: where the server trains. A run can be repeated bit by bit on the CPU only.
    """

    epochs: int = number(20, at_least=1)
    batch_size: int = number(0, at_least=0)
    learning_rate: float = number(2e-3, above=0)
    weight_decay: float = number(10.0, at_least=0)
    dropout: float = number(0.1, at_least=0, below=1)
    averaging: float = number(0.99, at_least=0, below=1)
    warmup: float = number(0.1, at_least=0, below=1)
    grad_clip: float = number(1.0, above=0)
    validation_share: float = number(0.1, at_least=0, below=1)
    validation_split: str = one_of("secret", "secret", "seed")
    patience: int = number(5, at_least=0)
    overlap_steps: int = number(8, at_least=0)
    checkpoint_every: int = number(100, at_least=1)
    device_cap: int = number(0, at_least=0)
    judge_devices: bool = True
    balance_types: bool = False
    adjust_types: bool = True
    num_threads: int = number(0, at_least=0)
    device: str = "cpu"


@dataclass
class CacheSettings:
    """The activation cache.

    Parameters
    ----------
    memory_mib : int
        Decoded activations kept in memory, in MiB.
    quota_mib : int
        Most activations and targets on disk, in MiB; 0: no limit.
    retention_days : float
        Rows older than this are deleted when a run starts in the folder; 0: kept for ever. Where that is every row the
        start is refused, since the clock may be wrong.
    """

    memory_mib: int = number(512, at_least=0)
    quota_mib: int = number(0, at_least=0)
    retention_days: float = number(0.0, at_least=0)
