"""`mobillm status`: how a run stands."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mobillm_flower.cli.options import AsJson, RunPath
from mobillm_flower.cli.output import print_rows, relative, say_json
from mobillm_flower.cli.run_paths import require_run

if TYPE_CHECKING:
    from mobillm_flower.runs.status import RunStatus

_LOOK_S = 1.0
_COLUMNS = ("device", "held", "of", "windows", "strikes", "failures", "backbone", "state")


def status(
    run: RunPath,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until the run is over.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show how a run stands: phase, devices, samples held, rate, failures, time left; from its log alone."""
    path = require_run(run)
    if not watch:
        found, in_use = _look(path)
        _say(found, in_use, as_json=as_json)
    elif as_json or not Console().is_terminal:
        for found, in_use in _changes(path):
            if as_json:
                _say(found, in_use, as_json=True)
            else:
                typer.echo(_line(found, in_use))
    else:
        with Live(console=Console(), auto_refresh=False) as live:
            for found, in_use in _looks(path):
                live.update(Group(_table(_rows(found, in_use)), _devices(found)), refresh=True)
    if watch and not as_json and not found.over:
        typer.echo(f"{relative(path)} was interrupted; started again with the same settings and folder, it goes on")


def _look(path: Path) -> tuple[RunStatus, bool]:
    """Return how a run stands, and whether a process of this machine holds its folder."""
    from mobillm_flower.runs.folder import RunFolder
    from mobillm_flower.runs.record import read_run
    from mobillm_flower.runs.status import run_status

    holder = RunFolder(path).holder()  # before the log is read: a run that ends in between is over, not interrupted
    return run_status(read_run(path), now=time.time()), holder is not None


def _looks(path: Path) -> Iterator[tuple[RunStatus, bool]]:
    """Yield how a run stands every second, until it is over or nobody goes on with it."""
    while True:
        found, in_use = _look(path)
        yield found, in_use
        if found.over or not in_use:
            return
        time.sleep(_LOOK_S)


def _changes(path: Path) -> Iterator[tuple[RunStatus, bool]]:
    """Yield the same when something happened since the last."""
    before: tuple[Any, ...] = ()
    for found, in_use in _looks(path):
        now = (found.phase_text, found.held, found.strikes, found.failures, len(found.devices), in_use)
        if now != before:
            before = now
            yield found, in_use


def _say(found: RunStatus, in_use: bool, *, as_json: bool) -> None:
    if as_json:
        say_json({**found.to_dict(), "in_use": in_use})
        return
    print_rows("Status", ("what", "figure", "remark"), _rows(found, in_use))
    if found.devices:
        print_rows("Devices", _COLUMNS, _device_rows(found))


def _rows(found: RunStatus, in_use: bool) -> list[tuple[str, str, str]]:
    from mobillm_flower.reports.units import bytes_text, seconds_text

    at_work = sum(device.state in ("part sent", "nothing sent") for device in found.devices)
    left = "not known" if found.seconds_left is None else seconds_text(found.seconds_left)
    rows = [
        ("phase", _phase(found, in_use), found.reason),
        ("run", found.run_id or "not known", f"for {seconds_text(found.seconds)}"),
        ("devices", str(len(found.devices)), f"{at_work} with data left, {found.refused} nodes refused"),
        ("samples held", f"{found.held:,}", f"{found.share:.1%} of {found.total:,}, in {found.windows:,} windows"),
        ("samples a second", f"{found.samples_per_s:.2f}", "over the last minute of ingestion"),
        ("strikes, failures", f"{found.strikes}, {found.failures}", "bad packets, answers that did not come"),
        ("cache", "not known" if found.cache_bytes is None else bytes_text(found.cache_bytes), "after the last round"),
    ]
    if not found.over:
        rows.append(("time left", left, "estimate, for this phase"))
    return rows


def _phase(found: RunStatus, in_use: bool) -> str:
    return found.phase_text if found.over or in_use else f"{found.phase_text}; no process here goes on with it"


def _device_rows(found: RunStatus) -> list[tuple[str, ...]]:
    return [
        (
            device.device[:8],
            f"{device.held:,}",
            f"{device.num_train:,}",
            str(device.windows),
            str(device.strikes),
            str(device.failures),
            device.backbone,
            device.state,
        )
        for device in found.devices
    ]


def _line(found: RunStatus, in_use: bool) -> str:
    from mobillm_flower.reports.units import seconds_text

    left = "" if found.seconds_left is None else f", {seconds_text(found.seconds_left)} left"
    return (
        f"{_phase(found, in_use)}: {len(found.devices)} devices, {found.held:,} of {found.total:,} samples, "
        f"{found.samples_per_s:.2f} a second, {found.strikes} strikes, {found.failures} failures{left}"
    )


def _table(rows: list[tuple[str, str, str]]) -> Table:
    table = Table(show_header=False)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _devices(found: RunStatus) -> Table:
    """Return the devices' table; where there are many, those with trouble and the slowest."""
    table = Table()
    for column in _COLUMNS:
        table.add_column(column)
    order = sorted(found.devices, key=lambda d: (not d.dropped, d.held / max(1, d.num_train)))
    kept = {device.device[:8] for device in order[:20]}
    for row in _device_rows(found):
        if row[0] in kept:
            table.add_row(*map(Text, row))
    if len(found.devices) > len(kept):
        table.caption = f"{len(kept)} of {len(found.devices)}: those that sent least"
    return table
