"""What can be set: one dataclass a part; meanings are in the docstrings, which the documentation is made from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


def _number(
    default: Any, *, at_least: float | None = None, above: float | None = None, below: float | None = None
) -> Any:
    """Return a dataclass field with a default and the range that `check` holds it to."""
    rules: dict[str, Callable[[Any], bool]] = {}
    if at_least is not None:
        rules[f"at least {at_least:g}"] = lambda value: value >= at_least
    if above is not None:
        rules[f"above {above:g}"] = lambda value: value > above
    if below is not None:
        rules[f"below {below:g}"] = lambda value: value < below
    return field(default=default, metadata=rules)


def _is_choice(text: str) -> bool:
    name, at, layers = text.rpartition("@")
    return bool(text) and (not at or (bool(name) and layers.isdecimal() and int(layers) > 0))


def _one_of(default: str, *names: str) -> Any:
    """Return a dataclass field that takes one of some names."""
    return field(default=default, metadata={" or ".join(names): lambda value: value in names})


CHOOSERS = ("auto", "by-partition")
"""Values of `backbone.name` that name no model, but how the device chooses among `backbone.choices`."""


class Precision(StrEnum):
    """Number format of the backbone's weights on the device."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"
    int8 = "int8"
    nf4 = "nf4"
    fp4 = "fp4"


class EngineName(StrEnum):
    """What computes the forward pass on the device."""

    torch = "torch"
    onnx = "onnx"


class Objective(StrEnum):
    """What a device uploads beside the activations: a prediction difference, or the label itself."""

    difference = "difference"
    label = "label"


class Partition(StrEnum):
    """How a data set in one place is cut into devices."""

    natural = "natural"
    iid = "iid"
    dirichlet = "dirichlet"


@dataclass
class BackboneSettings:
    """The frozen language model on the device.

    Parameters
    ----------
    name : str
        Hub id, local folder, or a registered name such as `minilm`; or how the device chooses among `choices`: `auto`
        (the largest that its memory allows) or `by-partition` (by its partition-id, in turns).
    choices : list of str
        Backbones to choose among, in any order, each NAME or NAME@LAYERS.
    memory_mib : int
        With `auto`: memory that a backbone's process may take, in MiB; 0: what is available when the device chooses.
    memory_budget_mib : int
        Memory that the device's process may take, in MiB, Python and torch included; a backbone that does not fit is
        read from disk layer by layer. 0: no limit.
    revision : str
        Revision of a hub model; empty: the newest.
    layers : int
        Keep the first n layers; 0: all. A choice's own @LAYERS wins.
    precision : Precision
        Number format of the weights; with engine onnx fp32 or int8.
    engine : EngineName
        What computes the forward pass: torch (transformers' own code), or onnx (ONNX Runtime on the CPU, extra `onnx`).
    device : str
        auto, cpu, cuda, cuda:N or mps.
    token_budget : int
        Most tokens in a forward batch, padding included.
    """

    name: str = field(default="minilm", metadata={"the name of a model": bool})
    choices: list[str] = field(
        default_factory=list,
        metadata={"of the form NAME or NAME@LAYERS, layers from 1": lambda value: all(map(_is_choice, value))},
    )
    memory_mib: int = _number(0, at_least=0)
    memory_budget_mib: int = _number(0, at_least=0)
    revision: str = ""
    layers: int = _number(0, at_least=0)
    precision: Precision = Precision.fp32
    engine: EngineName = EngineName.torch
    device: str = "auto"
    token_budget: int = _number(4096, at_least=1)


@dataclass
class DataSettings:
    """Where the samples are and how they are cut into devices.

    Parameters
    ----------
    source : str
        `phone-messages` (comes with the package), a folder of parquet, JSONL or CSV files, or a hub data set.
    subset : str
        Configuration of a hub data set.
    train_split : str
        Split that devices learn from.
    test_split : str
        Split that devices are evaluated on.
    text_column : str
        Column of the first or only text; for language modelling of the prompt, or of plain text.
    pair_column : str
        Column of the second text of a pair; for language modelling of the response.
    label_column : str
        Column of the label or number.
    partition : Partition
        How a data set in one place is cut into devices: natural, iid or dirichlet.
    partition_column : str
        Column that names the natural devices.
    alpha : float
        Concentration of the Dirichlet partition; smaller is more skewed.
    num_devices : int
        How many devices a simulation has.
    max_samples : int
        Most training samples of a device; 0: all.
    seed : int
        Seed of the partition.
    """

    source: str = "phone-messages"
    subset: str = ""
    train_split: str = "train"
    test_split: str = "test"
    text_column: str = "text"
    pair_column: str = ""
    label_column: str = "label"
    partition: Partition = Partition.iid
    partition_column: str = ""
    alpha: float = _number(0.1, above=0)
    num_devices: int = _number(10, at_least=1)
    max_samples: int = _number(0, at_least=0)
    seed: int = 0


@dataclass
class TaskSettings:
    """What is predicted.

    Parameters
    ----------
    kind : str
        classification, pairs, regression, language-modelling, or a registered task.
    labels : list of str
        Class names in order; empty: read from the data.
    label_range : list of float
        Lowest and highest target of a regression.
    prompt : str
        What the backbone reads, with `{text}` and, for pairs, `{text_pair}`; empty: the texts as they are. For language
        modelling what a response follows, with `{text}` alone.
    label_words : list of str
        One word a label, whose logits are a causal model's own prediction.
    max_length : int
        Tokens a sample is cut to; for language modelling those of a window, of which a long sample has several.
    metric : str
        accuracy, macro-f1, f1, matthews, spearman, pearson (for language modelling cross-entropy or perplexity), or a
        registered one; auto: the task's own.
    responses : int
        Test prompts of language modelling that `mobillm run` lets the model respond to after the run, before and after
        training, in at most `max_length` / 4 tokens, for ROUGE; 0: none. It needs the extra `text` and all texts in one
        place.
    show_responses : int
        So many of these are written, with their prompts and references, into results.json and the report; 0: no text.
    """

    kind: str = "classification"
    labels: list[str] = field(default_factory=list)
    label_range: list[float] = field(
        default_factory=lambda: [0.0, 1.0],
        metadata={"two numbers, the lower first": lambda value: len(value) == 2 and value[0] < value[1]},
    )
    prompt: str = ""
    label_words: list[str] = field(default_factory=list)
    max_length: int = _number(128, at_least=4)
    metric: str = "auto"
    responses: int = _number(0, at_least=0)
    show_responses: int = _number(0, at_least=0)


@dataclass
class ActivationSettings:
    """What of the forward pass leaves the device.

    Parameters
    ----------
    num_blocks : int
        M, the layers that are sampled; 0: one a layer of the shallowest backbone.
    sampling : str
        uniform or top-heavy (finer near the output).
    layers : list of int
        Layers to sample, counted from 1, ending with the last; overrides `sampling`. With side network upper-layers the
        one layer that it goes on from, by default a third of the depth.
    pivot : str
        last, first, mean, first+mean, all, or a registered one; auto: the backbone's own, for language modelling all,
        which there means every token in the loss.
    bi_encoder : bool
        Pairs: run each text by itself, and send how the two texts' vectors differ and agree; otherwise the backbone
        reads both as one.
    standardise : bool
        Public shift and scale per layer; forced on by `clip_norm` and `noise_sigma`.
    clip_norm : float
        C, the largest L2 norm of a sample's standardised activations, all layers together; 0: off.
    noise_sigma : float
        σ of the normal noise that is added to each value; 0: off.
    keep : float
        Share of each pivot vector that is kept, by magnitude.
    projection : int
        d: make one unit vector of d values of all vectors of a sample, along the directions in which public text varies
        most; 0: off.
    public_text : str
        File of public sentences, one a line, that shift, scale and projection are fitted on, the same on every device;
        empty: those of the package.
    codec : str
        Number format of uploaded values: nf4, fp4, int8, fp8, fp16, fp32, or a registered one.
    """

    num_blocks: int = _number(0, at_least=0)
    sampling: str = _one_of("uniform", "uniform", "top-heavy")
    layers: list[int] = field(default_factory=list)
    pivot: str = "auto"
    bi_encoder: bool = False
    standardise: bool = False
    clip_norm: float = _number(0.0, at_least=0)
    noise_sigma: float = _number(0.0, at_least=0)
    projection: int = _number(0, at_least=0)
    public_text: str = ""
    keep: float = field(default=1.0, metadata={"above 0 and at most 1": lambda value: 0 < value <= 1})
    codec: str = "nf4"


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
    name: str = _one_of("square", "square", "logit")
    scale: float = _number(0.0, at_least=0)
    send_base: bool = True


@dataclass
class SideNetworkSettings:
    """The side network that the server trains.

    Parameters
    ----------
    name : str
        additive, low-rank (small where a layer has several pivots), upper-layers (the backbone's own layers above
        `activations.layers`, with adapters between them, from every token's states), causal (also reads a text's
        earlier tokens: language modelling, or `activations.pivot=all`), discriminant (in closed form), or a registered
        one.
    width : int
        Width d of the side network; 0: the backbones' own.
    bottleneck : int
        Width r inside an adapter.
    activation : str
        Activation function of an adapter: gelu, relu, silu, tanh or identity.
    codec : str
        Codec of the weights on their way to the devices; what the server keeps has full precision.
    """

    name: str = "additive"
    width: int = _number(0, at_least=0)
    bottleneck: int = _number(64, at_least=1)
    activation: str = "gelu"
    codec: str = "int8"


@dataclass
class TrainerSettings:
    """The server's optimisation: AdamW, linear warm-up then linear decay, early stopping on a validation share.

    Parameters
    ----------
    epochs : int
        Epochs from the cache when all data is held.
    batch_size : int
        Samples a step.
    learning_rate : float
        Peak learning rate.
    weight_decay : float
        Weight decay of matrices; biases, norms and gates have none.
    dropout : float
        Share of the inputs' values that is zeroed at each step.
    averaging : float
        d of the running average of the weights that is measured, kept and sent: d of the past kept a step; 0: the
        last weights.
    warmup : float
        Share of the planned steps in which the learning rate rises.
    grad_clip : float
        Largest L2 norm of the gradient.
    validation_share : float
        Share of the samples kept aside to choose the best state.
    patience : int
        Epochs without a better state that end the training; 0: never stop early.
    overlap_steps : int
        Steps taken each round while devices compute.
    checkpoint_every : int
        Steps between two checkpoints.
    device_cap : int
        Most samples of one device in an epoch, drawn anew each epoch; 0: all.
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

    epochs: int = _number(20, at_least=1)
    batch_size: int = _number(32, at_least=1)
    learning_rate: float = _number(2e-3, above=0)
    weight_decay: float = _number(10.0, at_least=0)
    dropout: float = _number(0.1, at_least=0, below=1)
    averaging: float = _number(0.99, at_least=0, below=1)
    warmup: float = _number(0.1, at_least=0, below=1)
    grad_clip: float = _number(1.0, above=0)
    validation_share: float = _number(0.1, at_least=0, below=1)
    patience: int = _number(5, at_least=0)
    overlap_steps: int = _number(8, at_least=0)
    checkpoint_every: int = _number(100, at_least=1)
    device_cap: int = _number(0, at_least=0)
    balance_types: bool = False
    adjust_types: bool = True
    num_threads: int = _number(0, at_least=0)
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
        Rows older than this are deleted when the cache is opened; 0: kept for ever.
    """

    memory_mib: int = _number(512, at_least=0)
    quota_mib: int = _number(0, at_least=0)
    retention_days: float = _number(0.0, at_least=0)


@dataclass
class RoundSettings:
    """One round asks each device for a window of samples.

    Parameters
    ----------
    num_rounds : int
        Most rounds; 0: until every device has passed its data once.
    window : int
        Most samples a device is asked for at once.
    max_window_mib : int
        Most payload of one answer, in MiB.
    timeout_s : float
        Seconds a round waits for an answer.
    evaluate_every : int
        Evaluate on the devices every n rounds; 0: only at the end. With strategy `fed`: by the server's own function
        only.
    min_devices : int
        Devices that are waited for before the run starts.
    max_strikes : int
        Bad packets after which a device is dropped.
    max_failures : int
        Failed answers in a row after which a device is passed over.
    """

    num_rounds: int = _number(0, at_least=0)
    window: int = _number(64, at_least=1)
    max_window_mib: int = _number(16, at_least=1)
    timeout_s: float = _number(600.0, above=0)
    evaluate_every: int = _number(0, at_least=0)
    min_devices: int = _number(1, at_least=1)
    max_strikes: int = _number(3, at_least=1)
    max_failures: int = _number(3, at_least=1)


@dataclass
class ArrivalSettings:
    """When the asynchronous strategy `fed` trains, and whom it asks.

    Parameters
    ----------
    steps : int
        Steps after each full buffer; 0: none before all data is in.
    buffer : int
        Distinct devices whose windows make a buffer full; 1: train after every arrival.
    replay : float
        Share of each such step's batch that is drawn from all samples held; the rest from the buffer's.
    ingest_first : bool
        Take all data in before the first step: the side network is then the same bit by bit whatever the order of
        arrival.
    max_in_flight : int
        Most devices that compute a window at one time; 0: all.
    grow_windows : bool
        Double a device's window while the message's own cost is over a tenth of the forward pass.
    enough : float
        Share of the fleet's samples after which the rest is not waited for.
    newcomer_steps : int
        First steps of a backbone type that joined late which move its own alignment alone.
    """

    steps: int = _number(8, at_least=0)
    buffer: int = _number(1, at_least=1)
    replay: float = field(default=0.5, metadata={"from 0 to 1": lambda value: 0 <= value <= 1})
    ingest_first: bool = False
    max_in_flight: int = _number(0, at_least=0)
    grow_windows: bool = True
    enough: float = field(default=1.0, metadata={"above 0 and at most 1": lambda value: 0 < value <= 1})
    newcomer_steps: int = _number(50, at_least=0)


@dataclass
class StopSettings:
    """What ends a run before its schedule does; the side network is then as good as it got. 0: no limit.

    Parameters
    ----------
    accuracy : float
        Accuracy on the server's validation share that ends the training.
    seconds : float
        Seconds since the start after which nothing more is asked for and no step is taken.
    upload_mib : float
        Uploads of all devices together, in MiB, after which nothing more is asked for.
    """

    accuracy: float = _number(0.0, at_least=0)
    seconds: float = _number(0.0, at_least=0)
    upload_mib: float = _number(0.0, at_least=0)


@dataclass
class PrivacySettings:
    """What a device agrees to.

    Parameters
    ----------
    max_releases : int
        Most releases of one sample; 0: counted, not bounded.
    joint_epsilon : float
        ε of one sample, its projected vector and its label together (`LabelledCap`, δ = 0); 0: off.
    activation_epsilon : float
        ε of the Gaussian mechanism on a sample's projected or clipped activations alone; 0: off.
    delta : float
        δ of the Gaussian mechanism.
    label_epsilon : float
        ε of randomized response on a sample's label alone; 0: off.
    mixing : str
        Name of the fleet's secret rotation (`mobillm mixing-key` prints it); empty: none. Obfuscation, no guarantee.
    mixing_key : str
        On a device: the file with that key. It stays there.
    budget : float
        Most ε that all releases of one sample may add up to, whatever run asks; 0: what one release takes.
    """

    max_releases: int = _number(0, at_least=0)
    joint_epsilon: float = _number(0.0, at_least=0)
    activation_epsilon: float = _number(0.0, at_least=0)
    delta: float = _number(1e-5, above=0, below=1)
    label_epsilon: float = _number(0.0, at_least=0)
    mixing: str = ""
    mixing_key: str = ""
    budget: float = _number(0.0, at_least=0)


@dataclass
class PeerSettings:
    """What the peers do that side-tuning is measured beside: fed-lora, fed-bitfit, fed-kseed, split-fed, upload-all.

    Parameters
    ----------
    learning_rate : float
        η of AdamW, or of the zeroth-order steps of fed-kseed.
    batch_size : int
        Samples a step.
    local_epochs : int
        Passes over a device's data in a round; with upload-all passes at the server.
    rank : int
        r of LoRA.
    num_seeds : int
        fed-kseed: size K of the pool of seeds.
    local_steps : int
        fed-kseed: steps of a device in a round.
    perturbation : float
        fed-kseed: ε of the two forward passes.
    cut : int
        split-fed: layers of the device's part; the server has the others.
    keep_rounds : bool
        Keep the trained weights after every round in the run's folder.
    """

    learning_rate: float = _number(1e-3, above=0)
    batch_size: int = _number(16, at_least=1)
    local_epochs: int = _number(1, at_least=1)
    rank: int = _number(8, at_least=1)
    num_seeds: int = _number(1024, at_least=1)
    local_steps: int = _number(20, at_least=1)
    perturbation: float = _number(1e-3, above=0)
    cut: int = _number(1, at_least=1)
    keep_rounds: bool = False


@dataclass
class RunSettings:
    """Where a run is kept, and what it draws from.

    Parameters
    ----------
    folder : str
        The run's folder; empty: one below MOBILLM_HOME.
    seed : int
        Drives everything that is drawn at random.
    """

    folder: str = ""
    seed: int = 0


@dataclass
class Settings:
    """All settings of a run.

    Parameters
    ----------
    preset : str
        Which settings to start from: a paper's (pae, mobillm, fed), or upper-layers.
    strategy : str
        pae, mobillm, fed, or a registered one; with a peer's app also fed-lora, fed-bitfit, fed-kseed, split-fed,
        upload-all.
    backbone : BackboneSettings
        The frozen language model.
    data : DataSettings
        Where samples come from.
    task : TaskSettings
        What is predicted.
    activations : ActivationSettings
        What is uploaded.
    loss : LossSettings
        What the side network is fitted to.
    side_network : SideNetworkSettings
        What is trained.
    trainer : TrainerSettings
        How it is trained.
    cache : CacheSettings
        What the server keeps.
    rounds : RoundSettings
        How devices are asked.
    arrivals : ArrivalSettings
        When `fed` trains, and whom it asks.
    stop : StopSettings
        What ends a run early.
    privacy : PrivacySettings
        What a device agrees to.
    peer : PeerSettings
        What a peer's strategy does.
    run : RunSettings
        Where it is kept.
    """

    preset: str = "pae"
    strategy: str = "pae"
    backbone: BackboneSettings = field(default_factory=BackboneSettings)
    data: DataSettings = field(default_factory=DataSettings)
    task: TaskSettings = field(default_factory=TaskSettings)
    activations: ActivationSettings = field(default_factory=ActivationSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    side_network: SideNetworkSettings = field(default_factory=SideNetworkSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    cache: CacheSettings = field(default_factory=CacheSettings)
    rounds: RoundSettings = field(default_factory=RoundSettings)
    arrivals: ArrivalSettings = field(default_factory=ArrivalSettings)
    stop: StopSettings = field(default_factory=StopSettings)
    privacy: PrivacySettings = field(default_factory=PrivacySettings)
    peer: PeerSettings = field(default_factory=PeerSettings)
    run: RunSettings = field(default_factory=RunSettings)
