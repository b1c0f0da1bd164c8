"""How a run stands, from its events alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from mobillm_flower.runs import device_events, events
from mobillm_flower.runs.devices import DeviceRecord, device_of
from mobillm_flower.runs.record import RunRecord

RATE_S = 60.0
"""Seconds over which the rate is taken."""


@dataclass
class RunStatus:
    """How a run stands.

    Parameters
    ----------
    run_id : str
        Flower's id of the run that logged last; empty: it did not say.
    phase : str
        "meeting", "ingesting", "training", "evaluating", "completed" or "failed".
    reason : str
        Why it failed; empty: it did not.
    epoch, epochs : int, int
        The epoch that is being trained, from 1, and how many there are; 0: not training, or not known.
    devices : list of DeviceRecord
        In the order in which they were met.
    until_sent_s : mapping of str to float
        By device, the seconds until it has sent everything at its pace in this session, counted from its last window;
        a device of which it is not known is left out.
    refused : int
        Nodes that were not taken in.
    windows, held, total : int, int, int
        Windows committed; samples that the server holds; samples that the devices said they have.
    samples_per_s : float
        New samples a second, over the last minute of the ingestion so far.
    strikes, failures : int, int
        Packets that were rejected; answers that failed.
    cache_bytes : int or None
        Payload in the cache after the last round; None: no round is over.
    metrics : mapping of str to float
        Of the last evaluation on the devices' test samples; empty before there is one.
    seconds : float
        Since this session began, up to now or to its end.
    seconds_left : float or None
        Estimate until the end of this phase; None: not known.
    """

    run_id: str = ""
    phase: str = "meeting"
    reason: str = ""
    epoch: int = 0
    epochs: int = 0
    devices: list[DeviceRecord] = field(default_factory=list)
    until_sent_s: dict[str, float] = field(default_factory=dict)
    refused: int = 0
    windows: int = 0
    held: int = 0
    total: int = 0
    samples_per_s: float = 0.0
    strikes: int = 0
    failures: int = 0
    cache_bytes: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    seconds_left: float | None = None

    @property
    def share(self) -> float:
        """Share of the samples that the server holds."""
        return self.held / self.total if self.total else 0.0

    @property
    def over(self) -> bool:
        """Whether the run has said how it ended."""
        return self.phase in ("completed", "failed")

    @property
    def phase_text(self) -> str:
        """The phase with its epoch: "training, epoch 3 of 20"."""
        if self.phase == "training" and self.epoch:
            return f"training, epoch {self.epoch}" + (f" of {self.epochs}" if self.epochs else "")
        return self.phase

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        values = {name: value for name, value in vars(self).items() if name not in ("devices", "until_sent_s")}
        devices = [
            {
                "device": device.device,
                "backbone": device.backbone,
                "num_train": device.num_train,
                "held": device.held,
                "windows": device.windows,
                "strikes": device.strikes.total(),
                "failures": device.failures,
                "remaining": device.remaining,
                "dropped": device.dropped,
                "seconds_left": self.until_sent_s.get(device.device),
                "state": device.state,
            }
            for device in self.devices
        ]
        return {**values, "share": self.share, "devices": devices}


def run_status(run: RunRecord, *, now: float) -> RunStatus:
    """Return how a run stands.

    Parameters
    ----------
    run : RunRecord
        From `read_run`.
    now : float
        Unix seconds; for a run that is over, its last event counts instead.
    """
    reader = _Reader()
    for event in run.events:
        reader.take(event)
    return reader.status(now)


class _Reader:
    """Goes through a run's events once; a session is what one Flower run of the folder did."""

    def __init__(self) -> None:
        self._status = RunStatus()
        self._devices: dict[str, DeviceRecord] = {}
        self._sent: Counter[str] = Counter()  # new samples of each device in this session
        self._last_window: dict[str, float] = {}
        self._began = self._prepared = self._ingested = self._last = 0.0
        self._arrivals: list[tuple[float, int]] = []  # of this session: time, new samples
        self._ends: dict[int, tuple[float, int]] = {}  # of epochs: time, step

    def take(self, event: events.Event) -> None:
        status, self._last = self._status, event.time
        status.run_id = event.run or status.run_id
        if device := device_of(event):
            self._devices.setdefault(device, DeviceRecord(device)).take(event)
        match event:
            case events.Started():
                status.phase, status.reason = "meeting", ""
                self._began, self._arrivals = event.time, []
            case events.Prepared():
                status.phase, self._prepared = "ingesting", event.time
                kept = event.resumed_steps
                self._ends = {number: end for number, end in self._ends.items() if end[1] <= kept}
            case events.Ingested():
                status.phase, self._ingested = "training", event.time
                status.epochs = event.epochs
            case events.Epoch():
                if status.phase != "training":  # logs of runs that do not say that they have ingested
                    status.phase, self._ingested = "training", event.time
                self._ends[event.epoch] = event.time, event.step
            case events.Trained():
                status.phase = "evaluating"
            case events.Evaluation():
                status.metrics = events.figures(event.metrics)
            case events.Finished():
                status.phase, status.reason = event.outcome, event.reason
            case device_events.NodeRefused():
                status.refused += 1
            case events.Round():
                status.held = status.held if event.num_held is None else event.num_held
                status.cache_bytes = event.cache_bytes
            case device_events.DeviceMet():
                self._sent[event.device] = 0
            case device_events.Window():
                self._take_window(event)
            case device_events.Rejected():
                status.strikes += 1
            case device_events.Failure():
                status.failures += 1
            case device_events.Forgotten():
                status.held -= event.samples

    def _take_window(self, window: device_events.Window) -> None:
        self._status.windows += 1
        self._status.held += window.new
        self._arrivals.append((window.time, window.new))
        self._sent[window.device] += window.new
        self._last_window[window.device] = window.time

    def status(self, now: float) -> RunStatus:
        """Return what was read, with rates and estimates."""
        status = self._status
        now = self._last if status.over else max(now, self._last)
        status.devices = list(self._devices.values())
        status.total = sum(device.num_train for device in status.devices)
        status.seconds = now - self._began
        until = now if status.phase in ("meeting", "ingesting") else self._ingested or self._last
        since = max(until - RATE_S, self._prepared)
        if self._arrivals and until > since:
            status.samples_per_s = sum(new for time, new in self._arrivals if time >= since) / (until - since)
        if status.phase == "ingesting":
            status.seconds_left = self._until_ingested(now)
        elif status.phase == "training":
            done = max(self._ends, default=0)
            status.epoch = min(done + 1, status.epochs) if status.epochs else done + 1
            status.seconds_left = self._until_trained(done, now)
        return status

    def _until_ingested(self, now: float) -> float | None:
        """Return the seconds that the slowest device needs for what it has left, at its own pace in this session."""
        left = self._status.until_sent_s
        for name, device in self._devices.items():
            sent, last = self._sent[name], self._last_window.get(name, 0.0)
            if sent and device.remaining is not None and not device.dropped:
                pace = (last - self._prepared) / sent
                left[name] = max(0.0, device.remaining * pace - (now - last))
        return max(left.values(), default=None)

    def _until_trained(self, done: int, now: float) -> float | None:
        """Return the seconds that the epochs left need, at the mean pace of this session's."""
        own = [time for time, _ in self._ends.values() if time >= self._ingested]
        if not own or not self._status.epochs or max(own) <= self._ingested:
            return None
        pace = (max(own) - self._ingested) / len(own)
        return max(0.0, (self._status.epochs - done) * pace - (now - max(own)))
