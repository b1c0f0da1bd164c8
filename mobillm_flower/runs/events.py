"""What happens in a run: the kinds of events and their fields. No event holds a sample's text or label.

What happens to one device stands in `device_events`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

KINDS: dict[str, type[Event]] = {}
"""Classes of events by the kind that stands in the log."""


@dataclass(frozen=True)
class Event:
    """Something that happened in a run.

    Parameters
    ----------
    time : float
        Unix seconds; set where it is written.
    run : str
        Flower's id of the run that wrote it; empty outside of Flower. Set where it is written.

    Attributes
    ----------
    kind : str
        What it is, as in the log.
    """

    kind: ClassVar[str] = "unknown"
    time: float = field(default=0.0, kw_only=True)
    run: str = field(default="", kw_only=True)

    def __init_subclass__(cls, *, kind: str) -> None:
        cls.kind = kind
        KINDS[kind] = cls


OnEvent = Callable[[Event], None]
"""Called with each event as it happens."""


def figures(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return those metrics that are single numbers: a user's own function may return lists."""
    return {name: value for name, value in metrics.items() if type(value) in (int, float)}


@dataclass(frozen=True)
class Started(Event, kind="started"):
    """A strategy was started in the folder; a run that is gone on with has several of these."""

    strategy: str


@dataclass(frozen=True)
class Prepared(Event, kind="prepared"):
    """Devices were met and everything that the run keeps fixed is known.

    `layers` and `pivots` are by backbone type, the first 12 digits of its fingerprint; `guarantee` has the fields of
    `privacy.accounting.Guarantee`.
    """

    devices: int
    num_train: int
    num_blocks: int
    width: int
    parameters: int
    planned_steps: int
    resumed_steps: int
    layers: Mapping[str, list[int]]
    pivots: Mapping[str, str]
    scale: float
    trained_on: str = "cpu"
    guarantee: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskBegun(Event, kind="task-begun"):
    """The run goes on with a finished one.

    Parameters
    ----------
    task, after : str
        The task's name, and the folder of the run before.
    earlier : list of str
        Names of the tasks that it has learned, in order.
    method : str
        `continual.method`.
    samples : int
        Samples of earlier tasks that were taken over.
    classes : int
        Classes of all tasks together.
    """

    task: str
    after: str
    earlier: list[str]
    method: str
    samples: int
    classes: int


@dataclass(frozen=True)
class TaskKept(Event, kind="task-kept"):
    """The task is learned: what is left for the next.

    Parameters
    ----------
    task, keep : str
        The task's name, and `continual.keep`.
    samples : int
        Samples that are held of all tasks.
    deleted : int
        Samples of the task that were deleted.
    bytes : int
        What samples and sums take.
    ranks : list of list of int
        Dimensions that act of each task's adapters, by task and block; empty where tasks have none of their own.
    """

    task: str
    keep: str
    samples: int
    deleted: int
    bytes: int
    ranks: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True)
class StartedAgain(Event, kind="started-again"):
    """The folder held a run already, and what becomes of it.

    Parameters
    ----------
    what : str
        "resumes": it was interrupted, and goes on; "learns": its side network is trained anew from all that is held,
        since samples came after its training had begun; "nothing new": it had ended, and its side network stays.
    held, new : int, int
        Samples of the run's task that are held, and those of them that no training has seen.
    gone : int
        Samples that are held of rows which their devices have no more.
    """

    what: str
    held: int
    new: int = 0
    gone: int = 0

    def __str__(self) -> str:
        """Say it in a sentence."""
        said = {
            "resumes": f"an interrupted run goes on; {self.held:,} samples are held",
            "learns": f"{self.new:,} new samples: the side network is trained anew, from all {self.held:,} held",
            "nothing new": f"nothing new came: the side network stays as it is, trained on {self.held:,} samples",
        }.get(self.what, self.what)
        return said + (f"; the rows of {self.gone:,} are on their devices no more" if self.gone else "")


@dataclass(frozen=True)
class Ingested(Event, kind="ingested"):
    """All samples have come that will; epochs from the cache follow."""

    samples: int
    epochs: int


@dataclass(frozen=True)
class Epoch(Event, kind="epoch"):
    """An epoch ended.

    Parameters
    ----------
    epoch, step : int
        Its number, and the steps in all.
    validation_loss, validation_accuracy : float or None
        On the validation share; None where nothing was measured.
    """

    epoch: int
    step: int
    validation_loss: float | None = None
    validation_accuracy: float | None = None


@dataclass(frozen=True)
class Stopped(Event, kind="stopped"):
    """Training ended before its last epoch, by one of the `stop` settings."""

    reason: str


@dataclass(frozen=True)
class Trained(Event, kind="trained"):
    """Training ended; of a side network that was solved in closed form, after so many solutions as `epochs`."""

    steps: int
    epochs: int
    solved: bool = False


@dataclass(frozen=True)
class Gates(Event, kind="gates"):
    """The saved side network's gates μ, from the second block on."""

    mu: list[float]


@dataclass(frozen=True)
class Finished(Event, kind="finished"):
    """The run ended: outcome "completed" or "failed"."""

    outcome: str
    seconds: float
    reason: str = ""


@dataclass(frozen=True)
class CacheFull(Event, kind="cache-full"):
    """The cache's quota is used up, and no more samples are asked for."""

    reason: str


@dataclass(frozen=True)
class Retrained(Event, kind="retrained"):
    """The side network was trained anew from what was held."""

    samples: int
    devices: int
    steps: int


@dataclass(frozen=True)
class Round(Event, kind="round"):
    """A round of ingestion, or a buffer of arrivals, is over.

    Parameters
    ----------
    round : int
        Its number.
    num_examples, num_held, num_rejected, cache_bytes : int or None
        New samples; samples held in all; packets rejected; payload of the cache. None: a strategy of one's own does
        not say.
    metrics : mapping
        What else a strategy's `aggregate_train` returned.
    """

    round: int
    num_examples: int | None = None
    num_held: int | None = None
    num_rejected: int | None = None
    cache_bytes: int | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, round_: int, values: Mapping[str, Any]) -> Self:
        """Make it of a round's metrics, by Flower's kebab-case names."""
        metrics = dict(values)
        return cls(
            round_,
            metrics.pop("num-examples", None),
            metrics.pop("num-held", None),
            metrics.pop("num-rejected", None),
            metrics.pop("cache-bytes", None),
            metrics,
        )


@dataclass(frozen=True)
class Evaluation(Event, kind="evaluation"):
    """Devices evaluated: the averages of their metrics over `num_examples` test samples."""

    round: int
    num_examples: int = 0
    devices: int = 0
    metrics: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, round_: int, values: Mapping[str, Any], *, devices: int = 0) -> Self:
        """Make it of averaged metrics, by Flower's kebab-case names."""
        metrics = dict(values)
        return cls(round_, int(metrics.pop("num-examples", 0)), devices, metrics)


@dataclass(frozen=True)
class TypeEvaluation(Event, kind="evaluation-of-type"):
    """The same of one backbone type's devices; `trained`: whether it has sent samples."""

    round: int
    type: str
    backbone: str
    layers: int
    width: int
    trained: bool
    num_examples: int
    devices: int
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class HeldOut(Event, kind="held-out"):
    """The metric on samples that devices left out of their sums, from the sum of their tallies."""

    round: int
    samples: int
    devices: int
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ServerEvaluation(Event, kind="server-evaluation"):
    """A user's own function evaluated the side network."""

    round: int
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Work(Event, kind="work"):
    """What a round cost a baseline's device, and with split training the server."""

    round: int
    node: str
    bytes_up: int
    bytes_down: int
    flops: float
    seconds: float
    samples: float
    loss: float
    server_seconds: float = 0.0


@dataclass(frozen=True)
class ServerWork(Event, kind="server-work"):
    """What a round cost a baseline's server."""

    round: int
    seconds: float
    samples: int


@dataclass(frozen=True)
class Other(Event, kind="other"):
    """A line whose kind this release does not know."""

    name: str
    values: Mapping[str, Any]


def own_fields(cls: type[Event]) -> tuple[dataclasses.Field[Any], ...]:
    """Return the fields that a kind has besides time and run."""
    return tuple(item for item in dataclasses.fields(cls) if not item.kw_only)
