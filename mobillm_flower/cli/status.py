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
        standing, in_use = _look(path)
        _say(standing, in_use, as_json=as_json)
    elif as_json or not Console().is_terminal:
        for standing, in_use in _changes(path):
            if as_json:
                _say(standing, in_use, as_json=True)
            else:
                typer.echo(_line(standing, in_use))
    else:
        with Live(console=Console(), auto_refresh=False) as live:
            for standing, in_use in _looks(path):
                live.update(Group(_table(_rows(standing, in_use)), _devices(standing)), refresh=True)
    if watch and not as_json and not standing.over:
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
        standing, in_use = _look(path)
        yield standing, in_use
        if standing.over or not in_use:
            return
        time.sleep(_LOOK_S)


def _changes(path: Path) -> Iterator[tuple[RunStatus, bool]]:
    """Yield the same when something happened since the last."""
    before: tuple[Any, ...] = ()
    for standing, in_use in _looks(path):
        now = (standing.phase_text, standing.held, standing.strikes, standing.failures, len(standing.devices), in_use)
        if now != before:
            before = now
            yield standing, in_use


def _say(standing: RunStatus, in_use: bool, *, as_json: bool) -> None:
    if as_json:
        say_json({**standing.to_dict(), "in_use": in_use})
        return
    print_rows("Status", ("what", "figure", "remark"), _rows(standing, in_use), headed=True)
    if standing.devices:
        print_rows("Devices", _COLUMNS, _device_rows(standing), headed=True)


def _rows(standing: RunStatus, in_use: bool) -> list[tuple[str, str, str]]:
    from mobillm_flower.reports.units import bytes_text, seconds_text

    at_work = sum(device.state in ("part sent", "nothing sent") for device in standing.devices)
    left = "not known" if standing.seconds_left is None else seconds_text(standing.seconds_left)
    rows = [
        ("phase", _phase(standing, in_use), standing.reason),
        ("run", standing.run_id or "not known", f"for {seconds_text(standing.seconds)}"),
        ("devices", str(len(standing.devices)), f"{at_work} with data left, {standing.refused} nodes refused"),
        (
            "samples held",
            f"{standing.held:,}",
            f"{standing.share:.1%} of {standing.total:,}, in {standing.windows:,} windows",
        ),
        ("samples a second", f"{standing.samples_per_s:.2f}", "over the last minute of ingestion"),
        ("strikes, failures", f"{standing.strikes}, {standing.failures}", "bad packets, answers that did not come"),
        (
            "cache",
            "not known" if standing.cache_bytes is None else bytes_text(standing.cache_bytes),
            "after the last round",
        ),
    ]
    rows += [(name, f"{value:.4f}", "on the devices' test samples") for name, value in standing.metrics.items()]
    if not standing.over:
        rows.append(("time left", left, "estimate, for this phase"))
    return rows


def _phase(standing: RunStatus, in_use: bool) -> str:
    return standing.phase_text if standing.over or in_use else f"{standing.phase_text}; no process here goes on with it"


def _device_rows(standing: RunStatus) -> list[tuple[str, ...]]:
    return [
        (
            device.device[:8],
            f"{device.held:,}",
            f"{device.num_train:,}",
            str(device.windows),
            str(device.strikes.total()),
            str(device.failures),
            device.backbone,
            device.state,
        )
        for device in standing.devices
    ]


def _line(standing: RunStatus, in_use: bool) -> str:
    from mobillm_flower.reports.units import seconds_text

    left = "" if standing.seconds_left is None else f", {seconds_text(standing.seconds_left)} left"
    return (
        f"{_phase(standing, in_use)}: {len(standing.devices)} devices, "
        f"{standing.held:,} of {standing.total:,} samples, "
        f"{standing.samples_per_s:.2f} a second, {standing.strikes} strikes, {standing.failures} failures{left}"
    )


def _table(rows: list[tuple[str, str, str]]) -> Table:
    table = Table(show_header=False)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _devices(standing: RunStatus) -> Table:
    """Return the devices' table; where there are many, those with trouble and the slowest."""
    table = Table()
    for column in _COLUMNS:
        table.add_column(column)
    order = sorted(standing.devices, key=lambda d: (not d.dropped, d.held / max(1, d.num_train)))
    kept = {device.device[:8] for device in order[:20]}
    for row in _device_rows(standing):
        if row[0] in kept:
            table.add_row(*map(Text, row))
    if len(standing.devices) > len(kept):
        table.caption = f"{len(kept)} of {len(standing.devices)}: those that sent least"
    return table
