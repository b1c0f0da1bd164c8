"""One record of each device of a run: counters that a strategy fills as it goes, and readers rebuild from events."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from mobillm_flower.runs import device_events, events
from mobillm_flower.runs.record import RunRecord


@dataclass
class DeviceRecord:
    """One device of a run.

    Parameters
    ----------
    device : str
        Its pseudonym.
    backbone, layers : str, int
        What it runs.
    chosen : str
        Which of several backbones it chose, and why; empty: its settings named one.
    num_train, num_test : int
        Samples that it said it has.
    samples, windows : int, int
        Committed samples that were new to the cache, and windows.
    forgotten : int
        Samples of it that were deleted from the cache by hand.
    remaining : int or None
        Samples that it has left to send, as it said with its last window; None: it sent none yet.
    bytes_up, forward_seconds : int, float
        Records of its answers, and the time in the forward pass.
    bytes_down, peak_memory_bytes : int or None, float or None
        Messages to it; peak memory of its process. None: not known before the run ends.
    strikes : Counter of str
        Packets that were rejected, by rule.
    failures, refused : int, int
        Answers that did not come; samples that it declines to release.
    dropped : str
        Why it is asked nothing more; empty: it is.
    loss, agreement, outlier : float or None, float or None, bool
        Under the trained side network: mean loss on its cached samples, share of its labels that are predicted, and
        whether the loss is far above the other devices'. None: not measured.
    used : int or None
        Samples of it that were trained on.
    """

    device: str
    backbone: str = ""
    layers: int = 0
    chosen: str = ""
    num_train: int = 0
    num_test: int = 0
    samples: int = 0
    windows: int = 0
    forgotten: int = 0
    remaining: int | None = None
    bytes_up: int = 0
    forward_seconds: float = 0.0
    bytes_down: int | None = None
    peak_memory_bytes: float | None = None
    strikes: Counter[str] = field(default_factory=Counter)
    failures: int = 0
    refused: int = 0
    dropped: str = ""
    loss: float | None = None
    agreement: float | None = None
    outlier: bool = False
    used: int | None = None

    @property
    def name(self) -> str:
        """The pseudonym's first 8 digits."""
        return self.device[:8]

    @property
    def held(self) -> int:
        """Samples of it that the server holds."""
        return max(0, self.samples - self.forgotten)

    @property
    def troubled(self) -> bool:
        """Whether anything went wrong with it."""
        return bool(self.strikes or self.failures or self.dropped)

    @property
    def state(self) -> str:
        """How far it got: "dropped: …", "all sent", "part sent" or "nothing sent"."""
        if self.dropped:
            return f"dropped: {self.dropped}"
        if self.remaining == 0 or (self.num_train and self.held >= self.num_train):
            return "all sent"
        return "part sent" if self.windows else "nothing sent"

    def summary(self) -> device_events.DeviceSummary:
        """Return what it did, for the log of a session whose events alone were counted here."""
        return device_events.DeviceSummary(
            device=self.device,
            backbone=self.backbone,
            layers=self.layers,
            samples=self.samples,
            num_train=self.num_train,
            windows=self.windows,
            refused=self.refused,
            bytes_up=self.bytes_up,
            bytes_down=self.bytes_down or 0,
            forward_seconds=round(self.forward_seconds, 4),
            peak_memory_bytes=self.peak_memory_bytes or 0.0,
            strikes=dict(self.strikes),
            failures=self.failures,
            dropped=self.dropped,
        )

    def take(self, event: events.Event) -> None:
        """Count an event of this device."""
        match event:
            case device_events.DeviceMet():
                self.backbone, self.layers, self.chosen = event.backbone, event.layers, event.chosen
                self.num_train, self.num_test = event.num_train, event.num_test
                self.dropped = ""  # met again in another session
            case device_events.Window():
                self.samples += event.new
                self.windows += 1
                self.bytes_up += event.bytes
                self.forward_seconds += event.forward_seconds
                self.remaining, self.refused = event.remaining, event.refused
            case device_events.Rejected():
                self.strikes[event.rule] += 1
            case device_events.Failure():
                self.failures += 1
            case device_events.Dropped():
                self.dropped = event.reason
            case device_events.Returned():
                self.dropped = ""
            case device_events.Forgotten():
                self.forgotten += min(event.samples, self.held)
            case device_events.Diagnosis():
                self.loss, self.agreement, self.outlier = event.loss, event.agreement, event.outlier
                self.used = event.used
            case device_events.DeviceSummary():
                self.bytes_down = (self.bytes_down or 0) + event.bytes_down
                self.peak_memory_bytes = max(self.peak_memory_bytes or 0.0, event.peak_memory_bytes)


def device_records(run: RunRecord) -> list[DeviceRecord]:
    """Return the devices that a run met over all its sessions, in the order in which it met them."""
    records: dict[str, DeviceRecord] = {}
    for event in run.events:
        if name := device_of(event):
            records.setdefault(name, DeviceRecord(name)).take(event)
    return list(records.values())


def device_of(event: events.Event) -> str:
    """Return the pseudonym of the device that an event is about; empty: it is about none."""
    return str(getattr(event, "device", ""))
