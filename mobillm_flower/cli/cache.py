"""`mobillm cache`: what a run's activation cache holds, whether it is whole, and forgetting a device."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mobillm_flower.cli import completion
from mobillm_flower.cli.options import AsJson, RunPath
from mobillm_flower.cli.output import print_rows, relative, say_json
from mobillm_flower.cli.run_paths import run_cache, run_settings
from mobillm_flower.errors import CacheError, RunFailed, SettingsError

if TYPE_CHECKING:
    from mobillm_flower.runs.record import RunRecord
    from mobillm_flower.server import ActivationCache, Holding

app = typer.Typer(no_args_is_help=True, help="What a run's activation cache holds; checking it; forgetting a device.")


@app.command("ls")
def list_devices(run: RunPath, as_json: AsJson = False) -> None:
    """List the devices in a run's cache: samples, bytes, backbone, task, when the first and the last sample came."""
    file = run_cache(run)
    from mobillm_flower.runs.folder import RunFolder
    from mobillm_flower.server import ActivationCache
    from mobillm_flower.server.plan import TrainingPlan

    with closing(ActivationCache(file)) as cache:  # without the retention time: looking deletes nothing
        holdings = cache.holdings()
        plan = TrainingPlan.of(cache)
    tasks = plan.tasks.names if plan and plan.tasks else ()
    deleted = _deleted(run)
    names = _backbone_names(run)
    rules = _rules(run)
    holder = RunFolder(file.parent).holder()
    if as_json:
        devices = [
            {
                "device": held.device,
                **({"task": tasks[held.task]} if tasks else {}),
                "samples": held.samples,
                "bytes": held.num_bytes,
                "backbone": names.get(held.device),
                "fingerprint": held.backbone,
                "first": round(held.first, 3),
                "last": round(held.last, 3),
            }
            for held in holdings
        ]
        kept = {"tasks": list(tasks), "deleted": deleted} if tasks else {}
        say_json({"run": str(run), "devices": devices, **kept, **rules, "in_use_by": holder})
        return
    print_rows(
        "Activation cache",
        ("device", *(["task"] if tasks else []), "samples", "bytes", "backbone", "first", "last"),
        [
            [
                held.device,
                *([tasks[held.task]] if tasks else []),
                f"{held.samples:,}",
                f"{held.num_bytes:,}",
                f"{names.get(held.device, '?')} ({held.backbone[:12]})",
                _when(held.first),
                _when(held.last),
            ]
            for held in holdings
        ],
    )
    for number, task in enumerate(tasks):
        count = sum(held.samples for held in holdings if held.task == number)
        gone = deleted.get(task)
        said = f"; {gone['deleted']:,} were deleted when it was learned (continual.keep={gone['keep']})" if gone else ""
        typer.echo(f"task {task}: {count:,} samples{said}")
    typer.echo(_summary(holdings, rules) + ("" if holder is None else f"; in use by process {holder or 'unknown'}"))


@app.command()
def verify(run: RunPath, as_json: AsJson = False) -> None:
    """Check every row of a run's cache against the hash it was committed with; exit code 1 where one is damaged."""
    file = run_cache(run)
    from mobillm_flower.server import ActivationCache

    with closing(ActivationCache(file)) as cache:
        damaged = cache.verify()
        rows = None if damaged else len(cache)
    if as_json:
        damages = [{"row": d.row, "device": d.device or None, "problem": d.problem} for d in damaged]
        say_json({"run": str(run), "rows": rows, "damages": damages})
    elif rows is not None:
        typer.echo(f"{rows:,} rows, all as they were committed")
    for damage in [] if as_json else damaged:
        typer.echo(str(damage))
    if damaged:
        if not as_json:
            typer.echo(f"restore {relative(file)} from a copy, or forget the devices named and train again")
        raise typer.Exit(1)


@app.command()
def forget(
    run: RunPath,
    device: Annotated[
        str,
        typer.Argument(help="A device's pseudonym, or how it alone begins.", autocompletion=completion.devices),
    ],
    retrain: Annotated[
        bool, typer.Option("--retrain", help="Train the side network again from the other devices' samples.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; needed in a pipe.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete a device's samples from a run's cache and overwrite their pages; what was trained on them stays.

    With --retrain the side network is trained again without them, as if the device had never been there.
    """
    file = run_cache(run)
    from mobillm_flower.runs.device_events import Forgotten
    from mobillm_flower.runs.folder import RunFolder
    from mobillm_flower.server import ActivationCache

    folder = RunFolder(file.parent)
    with folder.hold(), closing(ActivationCache(file)) as cache:
        held: Counter[str] = Counter()
        for holding in cache.holdings():  # of every task
            held[holding.device] += holding.samples
        _require_no_group(cache, device)
        name = _one_device(device, list(held))
        if retrain:
            from mobillm_flower.config import load_settings
            from mobillm_flower.strategies.retrain import discard_trained, require_retrainable
            from mobillm_flower.strategies.retrain import retrain as train_again

            settings = load_settings(file=run_settings(run))
            require_retrainable(cache, settings, without=name)
    if not yes:
        _confirm(f"Delete {held[name]:,} samples of device {name}?", as_json=as_json)
    with folder.hold(), closing(ActivationCache(file)) as cache:  # not while somebody thinks about the answer
        if retrain:
            discard_trained(folder)
        count, on_disk = held[name], None
        try:
            count = cache.forget(name)
        except CacheError as error:  # the rows are gone, their bytes not yet
            if any(holding.device == name for holding in cache.holdings()):
                raise
            on_disk = error
        folder.append(Forgotten(name, count))
        steps = train_again(folder, cache, settings) if retrain else None
    if on_disk is not None:
        raise on_disk
    if steps is not None:
        if as_json:
            say_json({"run": str(run), "device": name, "samples": count, "retrained_steps": steps})
            return
        typer.echo(
            f"{count:,} samples of device {name} are deleted, and their pages overwritten. The side network in "
            f"{relative(folder.side_network)} is trained anew without them, in {steps:,} steps. The run's figures and "
            "its report are still those from before."
        )
        return
    left = [path.name for path in (folder.side_network, folder.checkpoint.parent) if path.exists()]
    if as_json:
        say_json({"run": str(run), "device": name, "samples": count, "trained_with_it": left})
        return
    typer.echo(f"{count:,} samples of device {name} are deleted, and their pages overwritten.")
    if left:
        typer.echo(
            f"Still made with them: {' and '.join(left)} in {relative(folder.path)}, and the run's figures. To train "
            f"without them, delete {' and '.join(left)} and start the run again with the same settings and "
            f"--out {relative(folder.path)}; it trains from what is held."
        )


@app.command()
def expire(
    run: RunPath,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; needed in a pipe.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete the samples that are older than cache.retention-days of the run's settings, by this machine's clock.

    A run that starts in the folder does so itself, unless all samples are that old: then the clock may be wrong, and
    the run is refused.
    """
    file = run_cache(run)
    from mobillm_flower.config import load_settings
    from mobillm_flower.runs.device_events import Forgotten
    from mobillm_flower.runs.folder import RunFolder
    from mobillm_flower.server import ActivationCache

    folder, retention_s = RunFolder(file.parent), 86400 * load_settings(file=run_settings(run)).cache.retention_days
    with folder.hold(), closing(ActivationCache(file)) as cache:
        old, held, now = sum(cache.expired(retention_s).values()), len(cache), time.time()
    if old and not yes:
        _confirm(f"It is {_when(now)}. Delete {old:,} of {held:,} samples?", as_json=as_json)
    expired: dict[str, int] = {}
    if old:
        with folder.hold(), closing(ActivationCache(file)) as cache:
            expired = cache.expire(retention_s, now=now, certain=True)
            for device, count in expired.items():
                folder.append(Forgotten(device, count))
    count = sum(expired.values())
    if as_json:
        say_json({"run": str(run), "samples": count, "devices": len(expired), "left": held - count})
        return
    left = f"{held - count:,} are left" if retention_s else "cache.retention-days is 0: they are kept for ever"
    typer.echo(f"{count:,} samples of {len(expired)} devices are deleted; {left}.")


def _require_no_group(cache: ActivationCache, start: str) -> None:
    """Say which group's sum is to be forgotten for a device that sent a secure sum; raises CacheError."""
    from mobillm_flower.strategies.secure_groups import groups_held

    for group, devices in groups_held(cache).items():
        if start and any(name.startswith(start.lower()) for name in devices):
            raise CacheError(
                f"device {start} is in the sum of group {group[:12]}, with {len(devices) - 1} others, and cannot be "
                "taken out of it; forget the group, and start the run again without the device: the others "
                "are summed afresh"
            )


def _one_device(start: str, held: list[str]) -> str:
    """Return the one device whose pseudonym begins so; raises CacheError where there is none, or several."""
    matching = [name for name in held if start and name.startswith(start.lower())]
    if len(matching) == 1:
        return matching[0]
    if not held:
        raise CacheError("the cache holds no device")
    if matching:
        raise CacheError(f"{len(matching)} devices begin with {start!r}: {', '.join(matching[:5])}; give more of it")
    raise CacheError(f"the cache holds no device {start!r}; it holds {', '.join(held[:5])}{' …' * (len(held) > 5)}")


def _confirm(question: str, *, as_json: bool) -> None:
    if as_json or not sys.stdin.isatty():
        raise CacheError("nobody can be asked here, and nothing was deleted; give --yes to delete without a question")
    if not typer.confirm(question, err=True):
        typer.echo("nothing was deleted", err=True)
        raise typer.Exit(1)


def _record(run: Path) -> RunRecord | None:
    """Return the run as its log tells it; None where there is no log."""
    from mobillm_flower.runs.record import read_run

    with contextlib.suppress(RunFailed):
        return read_run(run)
    return None


def _backbone_names(run: Path) -> dict[str, str]:
    """Return each device's backbone as the run's log names it."""
    from mobillm_flower.runs.device_events import DeviceMet

    record = _record(run)
    return {met.device: met.backbone for met in record.all(DeviceMet)} if record else {}


def _deleted(run: Path) -> dict[str, dict[str, Any]]:
    """Return what was deleted of each task when it was learned, in this run and in those that it goes on with."""
    from mobillm_flower.runs.events import TaskKept
    from mobillm_flower.runs.sequence import runs_before

    record = _record(run)
    if record is None:
        return {}
    earlier = [before for _, before in runs_before(record) if before is not None]
    kept = [event for one in (*earlier, record) for event in one.all(TaskKept) if event.deleted]
    return {event.task: {"keep": event.keep, "deleted": event.deleted} for event in kept}


def _rules(run: Path) -> dict[str, Any]:
    """Return quota and retention of the run's settings; empty where it has none."""
    from mobillm_flower.config import load_settings

    try:
        cache = load_settings(file=run_settings(run)).cache
    except SettingsError:
        return {}
    return {"quota_mib": cache.quota_mib, "retention_days": cache.retention_days}


def _summary(holdings: list[Holding], rules: dict[str, Any]) -> str:
    size = sum(held.num_bytes for held in holdings)
    text = f"{len({held.device for held in holdings})} devices, {sum(held.samples for held in holdings):,} samples, "
    text += f"{size:,} bytes"
    if rules.get("quota_mib"):
        text += f" of {rules['quota_mib']} MiB"
    if rules.get("retention_days"):
        text += f"; a run deletes rows older than {rules['retention_days']:g} days when it starts"
    elif rules:
        text += "; kept until they are forgotten"
    return text


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
