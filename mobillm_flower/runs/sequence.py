"""Runs that go on with one another: the tasks that a side network learned, in order."""

from __future__ import annotations

from pathlib import Path

from mobillm_flower.errors import RunFailed
from mobillm_flower.runs.events import TaskBegun
from mobillm_flower.runs.record import RunRecord, read_run

_MOST = 1000  # folders that name one another in a circle end somewhere


def runs_before(run: RunRecord) -> list[tuple[str, RunRecord | None]]:
    """Return the tasks and the runs that a run goes on with, the first one first; None where a folder is gone."""
    begun = run.last(TaskBegun)
    if begun is None:
        return []
    found: dict[str, RunRecord | None] = dict.fromkeys(begun.earlier)
    for _ in range(_MOST):
        if begun is None or not begun.earlier or begun.earlier[-1] not in found:
            break
        try:
            before = read_run(Path(begun.after))
        except RunFailed:
            break
        found[begun.earlier[-1]] = before
        begun = before.last(TaskBegun)
    return list(found.items())
