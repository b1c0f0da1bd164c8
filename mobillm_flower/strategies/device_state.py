"""What the server knows of one device of a run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from logging import WARNING, getLogger

from mobillm_flower.runs import events
from mobillm_flower.wire.messages import DeviceDescription
from mobillm_flower.wire.window import Window

logger = getLogger("flwr")


@dataclass
class DeviceState:
    """One device of a run.

    Parameters
    ----------
    node_id : int
        Flower's node, which it authenticated as.
    description : DeviceDescription
        What it said of itself when it was met.
    refused : int
        Samples that it declines to release.
    samples, windows : int
        Committed samples that were new, and windows.
    bytes_up, bytes_down : int
        Records of its answers, and of the messages to it.
    forward_seconds, peak_memory_bytes : float
        As it reports them: the sum, and the largest.
    strikes : Counter of str
        Bad packets by the rule that was broken.
    failures, total_failures : int
        Answers that did not come: in a row, and altogether.
    done : bool
        Whether it has no data left.
    dropped : str
        Why it is asked nothing more; empty: it is.
    window : int
        Samples it is asked for at once.
    asked_at, seen_at : float
        When it was last asked for a window, and last connected, on the strategy's clock.
    left : bool
        Whether it was dropped because it was away.
    last_forward_seconds : float
        Forward pass of its last window.
    """

    node_id: int
    description: DeviceDescription
    refused: int = 0
    samples: int = 0
    windows: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    forward_seconds: float = 0.0
    peak_memory_bytes: float = 0.0
    strikes: Counter[str] = field(default_factory=Counter)
    failures: int = 0
    total_failures: int = 0
    done: bool = False
    dropped: str = ""
    window: int = 0
    asked_at: float = 0.0
    seen_at: float = 0.0
    left: bool = False
    last_forward_seconds: float = 0.0

    @property
    def name(self) -> str:
        """The pseudonym's first 8 digits, for logs."""
        return self.description.pseudonym[:8]

    @property
    def active(self) -> bool:
        """Whether it is to be asked for more."""
        return not self.done and not self.dropped

    def count(self, window: Window, added: int) -> None:
        """Note a committed window and how many of its samples are new."""
        self.failures = 0
        self.windows += 1
        self.samples += added
        self.refused = window.refused
        self.bytes_up += window.num_bytes
        self.forward_seconds += window.forward_seconds
        self.last_forward_seconds = window.forward_seconds
        self.peak_memory_bytes = max(self.peak_memory_bytes, window.peak_memory_bytes)
        self.done = self.done or window.remaining == 0
        if self.done and self.refused:
            logger.log(WARNING, "device %s declines to release %d samples", self.name, self.refused)

    def summary(self) -> events.DeviceSummary:
        """Return what it did in this session."""
        return events.DeviceSummary(
            device=self.description.pseudonym,
            backbone=self.description.backbone.name,
            layers=self.description.backbone.depth,
            samples=self.samples,
            num_train=self.description.num_train,
            windows=self.windows,
            refused=self.refused,
            bytes_up=self.bytes_up,
            bytes_down=self.bytes_down,
            forward_seconds=round(self.forward_seconds, 4),
            peak_memory_bytes=self.peak_memory_bytes,
            strikes=dict(self.strikes),
            failures=self.total_failures,
            dropped=self.dropped,
        )
