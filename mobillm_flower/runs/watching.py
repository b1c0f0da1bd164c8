"""What whoever watches a run is told beside the events of its log."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mobillm_flower.runs.events import Event


@dataclass(frozen=True)
class Submitted(Event, kind="submitted"):
    """Flower accepted a run; `run` is its id."""


@dataclass(frozen=True)
class FolderSeen(Event, kind="folder-seen"):
    """The run's folder is on this machine."""

    folder: Path


@dataclass(frozen=True)
class Said(Event, kind="said"):
    """A line that the strategy printed or logged."""

    text: str


@dataclass(frozen=True)
class FlowerStatus(Event, kind="flower-status"):
    """Flower's word for the run has changed."""

    status: str
