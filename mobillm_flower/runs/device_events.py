"""What happens to the devices of a run: the kinds of events of the log that are about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mobillm_flower.runs.events import Event


@dataclass(frozen=True)
class DeviceMet(Event, kind="device"):
    """A device was taken in.

    `chosen` says which of several backbones it chose, and why; `left_out` how many of its rows take no part, by split
    and reason, keys as in `wire.left_out`.
    """

    device: str
    backbone: str
    layers: int
    num_train: int
    num_test: int
    chosen: str = ""
    left_out: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Waiting(Event, kind="waiting"):
    """The run waits for devices: so many of `at_least` can be used; `nodes` are connected, `refused` take no part."""

    devices: int
    at_least: int
    nodes: int
    refused: int

    @property
    def reason(self) -> str:
        """One sentence."""
        refused = f", {self.refused} refused" if self.refused else ""
        return f"{self.devices} of {self.at_least} devices connected{refused}, waiting"


@dataclass(frozen=True)
class NodeMet(Event, kind="met"):
    """A baseline's device described itself."""

    node: str
    num_train: int
    num_test: int


@dataclass(frozen=True)
class NodeRefused(Event, kind="refused"):
    """A node takes no part."""

    node: str
    reason: str


@dataclass(frozen=True)
class TypeJoined(Event, kind="type-joined"):
    """A backbone type came after the run had begun."""

    backbone: str
    layers: int
    width: int


@dataclass(frozen=True)
class Window(Event, kind="window"):
    """A device's window was committed.

    Parameters
    ----------
    round, device : int, str
        The round that it belongs to, and its device's pseudonym.
    window : int
        Its number, of the device's windows from 1 on.
    samples, new : int
        Samples in it, and those of them that were not in the cache before.
    remaining, refused : int
        Samples that the device has left to send, and that it declines to release.
    bytes, forward_seconds : int, float
        Length of the records, and the device's time in the forward pass.
    """

    round: int
    device: str
    window: int
    samples: int
    new: int
    remaining: int
    refused: int
    bytes: int
    forward_seconds: float


@dataclass(frozen=True)
class GroupSummed(Event, kind="group-summed"):
    """The secure sum of a group of devices is held; `devices` are the pseudonyms of those over whom it is."""

    group: str
    devices: list[str]
    samples: int


@dataclass(frozen=True)
class GroupRefused(Event, kind="group-refused"):
    """A group of devices has no sum: of how many, in which phase, and why."""

    group: str
    devices: int
    phase: str
    reason: str


@dataclass(frozen=True)
class Rejected(Event, kind="rejected"):
    """A device's packet broke a rule, and nothing of it was kept."""

    device: str
    rule: str
    detail: str

    @property
    def reason(self) -> str:
        """Rule and detail."""
        return f"{self.rule}: {self.detail}"


@dataclass(frozen=True)
class Failure(Event, kind="failure"):
    """An answer did not come, or was an error; a baseline knows its devices by their nodes."""

    reason: str
    device: str = ""
    node: str = ""


@dataclass(frozen=True)
class Dropped(Event, kind="dropped"):
    """A device is asked nothing more."""

    device: str
    reason: str


@dataclass(frozen=True)
class Returned(Event, kind="returned"):
    """A device that was dropped because it was away is asked again."""

    device: str


@dataclass(frozen=True)
class Diagnosis(Event, kind="diagnosis"):
    """One device under the trained side network.

    Parameters
    ----------
    device : str
        Pseudonym.
    samples : int
        Rows in the cache.
    loss : float
        Mean loss on them, in training or not.
    agreement : float or None
        Share of its labels that the side network predicts, where targets are unprotected.
    distance : float
        Modified z-score of the loss among the devices: 0.6745 (loss - median) / MAD.
    outlier : bool
        Whether the loss is far above the others'.
    used : int or None
        Samples of it that were trained on; 0 where the others' contradict them. None in logs of before.
    """

    device: str
    samples: int
    loss: float
    agreement: float | None
    distance: float
    outlier: bool
    used: int | None = None


@dataclass(frozen=True)
class DeviceSummary(Event, kind="device-summary"):
    """What a device did in this session, as the server counted it.

    Parameters
    ----------
    device : str
        Pseudonym.
    backbone, layers : str, int
        What it runs.
    samples, num_train : int, int
        Committed samples that were new to the cache, of those that it said it has.
    windows, refused : int, int
        Windows that were committed; samples that it declines to release.
    bytes_up, bytes_down : int, int
        Records of all its answers, and of all messages to it.
    forward_seconds, peak_memory_bytes : float, float
        As it reports them: the sum, and the largest.
    strikes : mapping of str to int
        Packets that were rejected, by rule.
    failures : int
        Answers that did not come.
    dropped : str
        Why it is asked nothing more; empty: it is.
    """

    device: str
    backbone: str
    layers: int
    samples: int
    num_train: int
    windows: int
    refused: int
    bytes_up: int
    bytes_down: int
    forward_seconds: float
    peak_memory_bytes: float
    strikes: Mapping[str, int]
    failures: int
    dropped: str


@dataclass(frozen=True)
class Forgotten(Event, kind="forgotten"):
    """Samples of a device were deleted from the cache: by hand, or because they were older than it keeps them."""

    device: str
    samples: int
