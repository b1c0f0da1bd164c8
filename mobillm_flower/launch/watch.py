"""Watching a run: its events where its folder is on this machine, its status everywhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from mobillm_flower.errors import RunFailed
from mobillm_flower.launch.superlink import Connection
from mobillm_flower.runs.events import Event, Finished, OnEvent
from mobillm_flower.runs.folder import RunFolder
from mobillm_flower.runs.log import EventReader
from mobillm_flower.runs.plain import plain
from mobillm_flower.runs.watching import FlowerStatus, FolderSeen, Said

_LOOK_S = 0.2
_SILENCE_S = 60.0  # without events, ask Flower whether the run is still going; an answer costs seconds of a core
_START_S = 20.0  # the same before the first event
_ASK_S = 10.0  # the same for a run on a SuperLink that is not ours, while its events are not seen
_LOST_S = 120.0  # without an answer about the run, nothing is known of it any more
_WAITING = ("pending", "starting")  # Flower's words for a run that is not running yet
_PENDING_S = 600.0  # in one of these, without an event: what the run waits for does not come


class RunFollower:
    """Follows one Flower run's events in a log, which need not be there, or be that run's.

    Parameters
    ----------
    file : Path
        Where the events are, if they are on this machine.
    run_id : str
        Flower's; other runs' lines, such as those of the run that this one goes on with, are passed over.
    on_event : callable
        Called with each event.

    Attributes
    ----------
    begun : bool
        Whether an event of the run was seen.
    outcome, reason : str
        What its last event says of how it ended; empty while it goes on.
    """

    def __init__(self, file: Path, run_id: str, on_event: OnEvent) -> None:
        self._folder, self._run_id, self._on_event = file.parent, run_id, on_event
        self._log = EventReader(file)
        self._said = _LinesFrom(RunFolder(file.parent).log)
        self.begun = False
        self.outcome = ""
        self.reason = ""

    def read(self) -> bool:
        """Pass on new events of the run; returns whether there were any, of whatever run."""
        try:
            events = self._log.read()
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return False  # the ServerApp runs elsewhere, or has not begun
        for event in events:
            if event.run == self._run_id:
                self._take(event)
        for line in self._said.read() if self.begun else []:
            self._on_event(Said(line))
        return bool(events)

    def _take(self, event: Event) -> None:
        if not self.begun:
            self.begun = True
            self._on_event(FolderSeen(self._folder))
        if isinstance(event, Finished):
            self.outcome, self.reason = event.outcome, event.reason
        self._on_event(event)


class _LinesFrom:
    """Reads what a text file gets after this is made, as lines that no terminal obeys."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._at = file.stat().st_size if file.is_file() else 0

    def read(self) -> list[str]:
        try:
            with self._file.open("rb") as stream:
                stream.seek(self._at)
                data = stream.read()
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._at += len(whole)
        return [plain(line) for line in whole.decode("utf-8", "replace").splitlines() if line.strip()]


def watch(
    connection: Connection,
    run_id: str,
    seen: RunFollower,
    *,
    on_event: OnEvent,
    lost: Callable[[], str] | None = None,
    timeout_s: float | None = None,
) -> str:
    """Follow a run until it is over.

    Parameters
    ----------
    connection : Connection
        Where it was submitted.
    run_id : str
        Flower's.
    seen : RunFollower
        Where its events may be.
    on_event : callable
        Called with a `FlowerStatus` when Flower's word for the run has changed.
    lost : callable, optional
        Says why the run cannot go on any more, empty while it can; where the SuperLink is a child of this process.
    timeout_s : float, optional
        Longest time to wait.

    Returns
    -------
    str
        Flower's status, "finished:…", or "lost: …" with what `lost` said.

    Raises
    ------
    RunFailed
        It took longer than `timeout_s`, does not begin, or the SuperLink does not answer any more.
    """
    now = time.monotonic()
    deadline = now + timeout_s if timeout_s else None
    heard = asked = answered = changed = now
    known = ""
    foreign = lost is None
    while True:
        if seen.read():
            heard = time.monotonic()
        if lost is not None and (reason := lost()):
            return f"lost: {reason}"
        now = time.monotonic()
        late = deadline is not None and now > deadline
        patience = _SILENCE_S if seen.begun else _ASK_S if foreign else _START_S
        if seen.outcome or late or now - max(heard, asked) > patience:
            status = connection.status(run_id)
            asked = time.monotonic()
            if status != "unknown":
                answered = asked
            if status.startswith("finished"):
                seen.read()
                return status
            if late:
                raise RunFailed(
                    f"the run took longer than timeout_s={timeout_s:g} and was stopped; it can go on in its folder"
                )
            if asked - answered > _LOST_S:
                raise RunFailed(
                    f"the SuperLink of {connection.name!r} does not answer for {_LOST_S:g} s; the run may go on: ask "
                    f"flwr list {connection.name} --run-id {run_id}"
                )
            if status not in (known, "unknown"):
                known, changed = status, asked
                if not seen.begun:  # a run that has begun says itself how far it is
                    on_event(FlowerStatus(status))
            if known in _WAITING and not seen.begun and asked - changed > _PENDING_S:
                raise RunFailed(_not_begun(connection.name, run_id, known, is_submitted=foreign))
        time.sleep(_LOOK_S)


def _not_begun(name: str, run_id: str, status: str, *, is_submitted: bool) -> str:
    """Say that a run does not begin, and what to look at."""
    what = f"the run has been {status} for {_PENDING_S:g} s: the SuperLink has not started its ServerApp"
    if not is_submitted:
        return what
    return (
        f"{what}. Another run may be ahead of it, or nobody executes runs there. It stays submitted: "
        f"`flwr list {name}` shows the others, `flwr stop {run_id} {name}` takes it back"
    )
