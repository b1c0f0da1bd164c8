"""How a run asks its devices, when it ends, and where it is kept."""

from __future__ import annotations

from dataclasses import dataclass, field

from mobillm_flower.config.parts.ranges import number


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

    num_rounds: int = number(0, at_least=0)
    window: int = number(64, at_least=1)
    max_window_mib: int = number(16, at_least=1)
    timeout_s: float = number(600.0, above=0)
    evaluate_every: int = number(0, at_least=0)
    min_devices: int = number(1, at_least=1)
    max_strikes: int = number(3, at_least=1)
    max_failures: int = number(3, at_least=1)


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

    steps: int = number(8, at_least=0)
    buffer: int = number(1, at_least=1)
    replay: float = field(default=0.5, metadata={"from 0 to 1": lambda value: 0 <= value <= 1})
    ingest_first: bool = False
    max_in_flight: int = number(0, at_least=0)
    grow_windows: bool = True
    enough: float = field(default=1.0, metadata={"above 0 and at most 1": lambda value: 0 < value <= 1})
    newcomer_steps: int = number(50, at_least=0)


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

    accuracy: float = number(0.0, at_least=0)
    seconds: float = number(0.0, at_least=0)
    upload_mib: float = number(0.0, at_least=0)


@dataclass
class BaselineSettings:
    """What the baselines do: fed-lora, fed-bitfit, fed-kseed, split-fed, upload-all.

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

    learning_rate: float = number(1e-3, above=0)
    batch_size: int = number(16, at_least=1)
    local_epochs: int = number(1, at_least=1)
    rank: int = number(8, at_least=1)
    num_seeds: int = number(1024, at_least=1)
    local_steps: int = number(20, at_least=1)
    perturbation: float = number(1e-3, above=0)
    cut: int = number(1, at_least=1)
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
    trackers : list of str
        Where metrics go beside the run's log: tensorboard, mlflow, wandb (each an extra), or a registered one.
    """

    folder: str = ""
    seed: int = 0
    trackers: list[str] = field(default_factory=list)
