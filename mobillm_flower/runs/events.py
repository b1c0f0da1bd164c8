"""Reading a run's events.jsonl."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobillm_flower.errors import RunFailed


@dataclass(frozen=True)
class RunRecord:
    """A run as its events tell it.

    Parameters
    ----------
    path : Path
        The run's folder.
    events : list of dict
        In order of time.
    """

    path: Path
    events: list[dict[str, Any]]

    def all(self, kind: str) -> list[dict[str, Any]]:
        """Return events of a kind."""
        return [event for event in self.events if event["event"] == kind]

    def last(self, kind: str) -> dict[str, Any]:
        """Return the last event of a kind, or an empty dict."""
        found = self.all(kind)
        return found[-1] if found else {}

    @property
    def session(self) -> RunRecord:
        """The events since the run was last started: one that was interrupted has several sessions."""
        starts = [i for i, event in enumerate(self.events) if event["event"] == "started"]
        return RunRecord(self.path, self.events[starts[-1] if starts else 0 :])

    @property
    def outcome(self) -> str:
        """How it ended: "completed" or "failed"; "in progress" where neither was said since it was last started."""
        return str(self.session.last("finished").get("outcome", "in progress"))


def read_run(path: str | Path) -> RunRecord:
    """Read a run's events.

    Raises
    ------
    RunFailed
        The folder holds no events.jsonl, one without any event, or one that is damaged.
    """
    path = Path(path).expanduser()
    file = path / "events.jsonl"
    try:
        text = file.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise RunFailed(f"{path} holds no readable events.jsonl; name a run's folder") from error
    written = text.split("\n")[:-1]  # the last line of a run in progress may not be whole yet
    try:
        events = [json.loads(line) for line in written]
        if not all(isinstance(event["event"], str) and event["time"] >= 0 for event in events):
            raise TypeError
    except (ValueError, TypeError, KeyError) as error:
        raise RunFailed(f"{file} is damaged: a line is no event; name a run's folder") from error
    if not events:
        raise RunFailed(f"{file} holds no event yet; wait for the run's first, or name another run's folder")
    return RunRecord(path, events)
