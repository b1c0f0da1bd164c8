"""How a run stands, from its events alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mobillm_flower.runs.events import RunRecord

RATE_S = 60.0
"""Seconds over which the rate is taken."""


@dataclass
class DeviceStatus:
    """One device of a run, over all its sessions.

    Parameters
    ----------
    device : str
        Its pseudonym.
    backbone : str
        What it runs.
    num_train : int
        Samples that it said it has.
    held, windows : int, int
        Samples of it that the server holds; windows that were committed.
    strikes, failures : int, int
        Packets that were rejected; answers that failed.
    remaining : int or None
        Samples that it has left to send, as it said with its last window; None: it sent none yet.
    dropped : str
        Why it is not asked any more; empty: it is.
    seconds_left : float or None
        Until it has sent everything at its pace in this session, counted from its last window; None: not known.
    """

    device: str
    backbone: str = ""
    num_train: int = 0
    held: int = 0
    windows: int = 0
    strikes: int = 0
    failures: int = 0
    remaining: int | None = None
    dropped: str = ""
    seconds_left: float | None = None
    _sent: int = field(default=0, repr=False)
    _last: float = field(default=0.0, repr=False)

    @property
    def state(self) -> str:
        """How far it got: "dropped: …", "all sent", "part sent" or "nothing sent"."""
        if self.dropped:
            return f"dropped: {self.dropped}"
        if self.remaining == 0 or (self.num_train and self.held >= self.num_train):
            return "all sent"
        return "part sent" if self.windows else "nothing sent"


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
    devices : list of DeviceStatus
        In the order in which they were met.
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
    devices: list[DeviceStatus] = field(default_factory=list)
    refused: int = 0
    windows: int = 0
    held: int = 0
    total: int = 0
    samples_per_s: float = 0.0
    strikes: int = 0
    failures: int = 0
    cache_bytes: int | None = None
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
        names = [name for name in vars(self) if name != "devices"]
        devices = [
            {**{name: value for name, value in vars(device).items() if name[0] != "_"}, "state": device.state}
            for device in self.devices
        ]
        return {**{name: getattr(self, name) for name in names}, "share": self.share, "devices": devices}


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
        self._devices: dict[str, DeviceStatus] = {}
        self._began = self._prepared = self._ingested = self._last = 0.0
        self._arrivals: list[tuple[float, int]] = []  # of this session: time, new samples
        self._ends: dict[int, tuple[float, int]] = {}  # of epochs: time, step

    def take(self, event: dict[str, Any]) -> None:
        status, self._last = self._status, event["time"]
        status.run_id = event.get("run", status.run_id)
        device = self._device(event["device"]) if "device" in event else None
        match event["event"]:
            case "started":
                status.phase, status.reason = "meeting", ""
                self._began, self._arrivals = event["time"], []
            case "prepared":
                status.phase, self._prepared = "ingesting", event["time"]
                kept = event["resumed_steps"]
                self._ends = {number: end for number, end in self._ends.items() if end[1] <= kept}
            case "ingested":
                status.phase, self._ingested = "training", event["time"]
                status.epochs = event["epochs"]
            case "epoch":
                if status.phase != "training":  # logs of runs that do not say that they have ingested
                    status.phase, self._ingested = "training", event["time"]
                self._ends[event["epoch"]] = event["time"], event["step"]
            case "trained":
                status.phase = "evaluating"
            case "finished":
                status.phase, status.reason = event["outcome"], event.get("reason", "")
            case "refused":
                status.refused += 1
            case "round":
                status.held, status.cache_bytes = event["num-held"], event["cache-bytes"]
            case "forgotten":
                status.held -= event["samples"]
        if device is not None:
            self._of_device(device, event)

    def _device(self, name: str) -> DeviceStatus:
        return self._devices.setdefault(name, DeviceStatus(name))

    def _of_device(self, device: DeviceStatus, event: dict[str, Any]) -> None:
        status = self._status
        match event["event"]:
            case "device":
                device.backbone, device.num_train = event["backbone"], event["num_train"]
                device.dropped, device._sent = "", 0
            case "window":
                status.windows += 1
                status.held += event["new"]
                self._arrivals.append((event["time"], event["new"]))
                device.windows += 1
                device.held += event["new"]
                device.remaining = event["remaining"]
                device._sent, device._last = device._sent + event["new"], event["time"]
            case "rejected":
                status.strikes += 1
                device.strikes += 1
            case "failure":
                status.failures += 1
                device.failures += 1
            case "dropped":
                device.dropped = event["reason"]
            case "returned":
                device.dropped = ""
            case "forgotten":
                device.held = max(0, device.held - event["samples"])

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
        for device in self._devices.values():
            if device._sent and device.remaining is not None and not device.dropped:
                pace = (device._last - self._prepared) / device._sent
                device.seconds_left = max(0.0, device.remaining * pace - (now - device._last))
        known = [device.seconds_left for device in self._devices.values() if device.seconds_left is not None]
        return max(known, default=None)

    def _until_trained(self, done: int, now: float) -> float | None:
        """Return the seconds that the epochs left need, at the mean pace of this session's."""
        own = [time for time, _ in self._ends.values() if time >= self._ingested]
        if not own or not self._status.epochs or max(own) <= self._ingested:
            return None
        pace = (max(own) - self._ingested) / len(own)
        return max(0.0, (self._status.epochs - done) * pace - (now - max(own)))
