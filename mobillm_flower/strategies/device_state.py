"""One device of a run that goes on: who it is, what it did, and how it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from logging import WARNING, getLogger

from mobillm_flower.runs import device_events
from mobillm_flower.runs.devices import DeviceRecord
from mobillm_flower.wire.masked import MaskedReply
from mobillm_flower.wire.messages import DeviceDescription
from mobillm_flower.wire.sums import SumsReply
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
    failures_in_a_row : int
        Answers that did not come since the last window that did.
    done : bool
        Whether it has no data left.
    window : int
        Samples it is asked for at once.
    asked_at, seen_at : float
        When it was last asked for a window, and last connected, on the strategy's clock.
    left : bool
        Whether it was dropped because it was away.
    last_forward_seconds : float
        Forward pass of its last window.

    Attributes
    ----------
    record : DeviceRecord
        What it did in this session, as its events tell it.
    """

    node_id: int
    description: DeviceDescription
    failures_in_a_row: int = 0
    done: bool = False
    window: int = 0
    asked_at: float = 0.0
    seen_at: float = 0.0
    left: bool = False
    last_forward_seconds: float = 0.0
    record: DeviceRecord = field(init=False)

    def __post_init__(self) -> None:
        self.record = DeviceRecord(self.description.pseudonym)

    @property
    def name(self) -> str:
        """The pseudonym's first 8 digits, for logs."""
        return self.record.name

    @property
    def active(self) -> bool:
        """Whether it is to be asked for more."""
        return not self.done and not self.record.dropped

    def take_window(self, window: Window, *, new: int, round_: int) -> device_events.Window:
        """Count a committed window, `new` of whose samples the cache did not hold, and return its event."""
        left = {"remaining": window.remaining, "refused": window.refused}
        event = self._count([window], round_=round_, samples=len(window.samples), new=new, **left)
        self.done = self.done or window.remaining == 0
        if self.done and window.refused:
            logger.log(WARNING, "device %s declines to release %d samples", self.name, window.refused)
        return event

    def take_sums(
        self, answers: Sequence[SumsReply | MaskedReply], *, samples: int, round_: int
    ) -> device_events.Window:
        """Count committed sums that came in one or more answers, with which the device is done; return their event."""
        self.done = True
        return self._count(answers, round_=round_, samples=samples, new=samples)

    def _count(
        self,
        answers: Sequence[Window | SumsReply | MaskedReply],
        *,
        round_: int,
        samples: int,
        new: int,
        remaining: int = 0,
        refused: int = 0,
    ) -> device_events.Window:
        """Count what was committed, and return its event."""
        event = device_events.Window(
            round=round_,
            device=self.record.device,
            window=self.record.windows + 1,
            samples=samples,
            new=new,
            remaining=remaining,
            refused=refused,
            bytes=sum(answer.num_bytes for answer in answers),
            forward_seconds=round(sum(answer.forward_seconds for answer in answers), 4),
        )
        self.record.take(event)
        peak = max(answer.peak_memory_bytes for answer in answers)
        self.record.peak_memory_bytes = max(self.record.peak_memory_bytes or 0.0, peak)
        self.failures_in_a_row = 0
        self.last_forward_seconds = event.forward_seconds
        return event
