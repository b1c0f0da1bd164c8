"""What each device of a run did, added up from the events: also while it runs, and over all its sessions."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from mobillm_flower.runs.events import RunRecord


@dataclass
class DeviceTotals:
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
    samples, windows, bytes_up, forward_seconds : int, int, int, float
        Samples that were new to the cache; windows, their bytes and the time in the forward pass.
    bytes_down, peak_memory_bytes : int or None, float or None
        Requests and side network; peak memory of its process. None: not known before the run ends.
    strikes : Counter
        Packets that were rejected, by rule.
    failures, refused : int, int
        Answers that failed; samples that it declines to release.
    dropped : str
        Why it was passed over; empty: it was not.
    loss, agreement, outlier : float or None, float or None, bool
        Under the trained side network: mean loss on its cached samples, share of its labels that are predicted, and
        whether the loss is far above the other devices'. None: not measured.
    """

    device: str
    backbone: str = ""
    layers: int = 0
    chosen: str = ""
    num_train: int = 0
    num_test: int = 0
    samples: int = 0
    windows: int = 0
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

    @property
    def name(self) -> str:
        """The pseudonym's first 8 digits."""
        return self.device[:8]

    @property
    def troubled(self) -> bool:
        """Whether anything went wrong with it."""
        return bool(self.strikes or self.failures or self.dropped)


def device_totals(run: RunRecord) -> list[DeviceTotals]:
    """Return the devices that a run met, in the order in which it met them."""
    found: dict[str, DeviceTotals] = {}
    for event in run.events:
        if "device" not in event:
            continue
        totals = found.setdefault(event["device"], DeviceTotals(event["device"]))
        match event["event"]:
            case "device":
                totals.backbone, totals.layers = event["backbone"], event["layers"]
                totals.chosen = event.get("chosen", "")
                totals.num_train, totals.num_test = event["num_train"], event["num_test"]
                totals.dropped = ""  # met again in another session
            case "window":
                totals.samples += event["new"]
                totals.windows += 1
                totals.bytes_up += event["bytes"]
                totals.forward_seconds += event["forward_seconds"]
                totals.refused = event["refused"]
            case "rejected":
                totals.strikes[event["rule"]] += 1
            case "failure":
                totals.failures += 1
            case "dropped":
                totals.dropped = event["reason"]
            case "returned":
                totals.dropped = ""
            case "diagnosis":
                totals.loss, totals.agreement = event["loss"], event["agreement"]
                totals.outlier = event["outlier"]
            case "device-summary":
                totals.bytes_down = (totals.bytes_down or 0) + event["bytes_down"]
                totals.peak_memory_bytes = max(totals.peak_memory_bytes or 0.0, event["peak_memory_bytes"])
    return list(found.values())
