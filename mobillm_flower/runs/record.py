"""A run as its events tell it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mobillm_flower.errors import RunFailed
from mobillm_flower.runs.events import Event, Finished, Started
from mobillm_flower.runs.folder import RunFolder
from mobillm_flower.runs.log import EventReader

E = TypeVar("E", bound=Event)


@dataclass(frozen=True)
class RunRecord:
    """A run as its events tell it.

    Parameters
    ----------
    folder : RunFolder
        The run's folder.
    events : list of Event
        In order of time.
    """

    folder: RunFolder
    events: list[Event]

    def all(self, kind: type[E]) -> list[E]:
        """Return events of a kind."""
        return [event for event in self.events if isinstance(event, kind)]

    def last(self, kind: type[E]) -> E | None:
        """Return the last event of a kind, or None."""
        return next((event for event in reversed(self.events) if isinstance(event, kind)), None)

    @property
    def session(self) -> RunRecord:
        """The events since the run was last started: one that was interrupted has several sessions."""
        starts = [i for i, event in enumerate(self.events) if isinstance(event, Started)]
        return RunRecord(self.folder, self.events[starts[-1] if starts else 0 :])

    @property
    def before(self) -> RunRecord:
        """The events until the run was last started."""
        return RunRecord(self.folder, self.events[: len(self.events) - len(self.session.events)])

    @property
    def outcome(self) -> str:
        """How it ended: "completed" or "failed"; "in progress" where neither was said since it was last started."""
        finished = self.session.last(Finished)
        return finished.outcome if finished else "in progress"


def read_run(path: str | Path) -> RunRecord:
    """Read a run's events.

    Raises
    ------
    RunFailed
        The folder holds no log of events, one without any event, or one that is damaged.
    """
    folder = RunFolder(path)
    try:
        events = EventReader(folder.events).read()
    except OSError as error:
        raise RunFailed(f"{folder.path} holds no readable {folder.events.name}; name a run's folder") from error
    if not events:
        raise RunFailed(f"{folder.events} holds no event yet; wait for the run's first, or name another run's folder")
    return RunRecord(folder, events)
