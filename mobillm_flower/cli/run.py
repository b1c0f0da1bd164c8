"""`mobillm run`: run a Flower app, watch it, print its results."""

from __future__ import annotations

import json
import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mobillm_flower.cli.options import AppFolder, AsJson, Config
from mobillm_flower.cli.output import print_rows, relative, say_json, told
from mobillm_flower.cli.watch import Watcher
from mobillm_flower.errors import MobiLLMError, SettingsError
from mobillm_flower.runs.folder import RunFolder

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from mobillm_flower.config import Settings
    from mobillm_flower.launch import App, RunOutcome
    from mobillm_flower.runs.record import RunRecord

_NOT_ALL = 3  # exit code of a run that completed without some devices


def run(
    folder: AppFolder,
    config: Config = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The run's folder; by default runs/TIME below the current one, and with --superlink where "
            "the ServerApp puts it."
        ),
    ] = None,
    superlink: Annotated[
        str | None,
        typer.Option(help="Run on this SuperLink, a connection in Flower's config.toml, instead of in simulation."),
    ] = None,
    flwr_home: Annotated[
        Path | None, typer.Option(help="The folder of config.toml; by default FLWR_HOME, or .flwr in the home folder.")
    ] = None,
    as_json: AsJson = False,
    references: Annotated[
        bool | None,
        typer.Option(
            help="Measure references afterwards, which need all texts on this machine; by default only those that take "
            "no longer than the run did."
        ),
    ] = None,
) -> None:
    """Run a Flower app in simulation or on a SuperLink, watch it, print its results; the exit code tells the truth."""
    from mobillm_flower.launch import gathered, read_app, run_app, run_on

    flower_app = read_app(folder)
    words = list(config or [])
    settings = flower_app.settings(words)
    if flwr_home is not None and superlink is None:
        raise SettingsError("--flwr-home says where the connection of --superlink is; name that, too")
    words += _earlier_run(settings) if superlink is None else []
    for note in _look_at_data(flower_app, settings, words) if superlink is None else ():
        if not as_json:
            typer.echo(f"note: {note}", err=True)
    with Watcher(quiet=as_json) as watcher:
        try:
            if superlink is None:
                named = out or (Path(settings.run.folder) if settings.run.folder else None)
                path = (named or Path("runs") / time.strftime("%Y%m%d-%H%M%S")).expanduser().resolve()
                watcher.follow(path)
                outcome = run_app(flower_app, words, run_path=path, on_event=watcher.event)
            else:
                words += [f"run.folder={out.expanduser().resolve()}"] if out else []
                outcome = run_on(flower_app, words, superlink=superlink, on_event=watcher.event, home=flwr_home)
            none: list[str] = []
            own = nullcontext(none) if superlink else gathered(flower_app, words)
            results = _results(outcome, watcher, references, own)
        except BaseException as error:  # stopped by the keyboard, too
            watcher.stop()
            page = _report(watcher.run_path)
            if page:
                typer.echo(f"report: {relative(page)}", err=True)
            if superlink and watcher.run_id and not isinstance(error, Exception):
                typer.echo(f"the run goes on; to stop it: flwr stop {watcher.run_id} {superlink}", err=True)
            elif page and not isinstance(error, Exception):
                typer.echo(f"stopped; the same command with --out {relative(page.parent)} goes on", err=True)
            raise
    page = _report(outcome.run_path)
    if as_json:
        say_json({**results, "report": page and str(page)})
        raise typer.Exit(results["exit_code"])
    print_rows("Results", ("what", "figure", "remark"), results["table"])
    if outcome.run_path:
        run = RunFolder(outcome.run_path)
        files = {"side network": run.side_network, "all figures": run.results, "report": page}
        typer.echo("   ".join(f"{name}: {relative(file)}" for name, file in files.items() if file))
    raise typer.Exit(results["exit_code"])


def _look_at_data(app: App, settings: Settings, words: list[str]) -> list[str]:
    """Refuse what a simulation's devices could not read; return what to know.

    Of devices that load rows of their own the first is asked, and nothing is refused: others may have other rows.
    """
    from mobillm_flower.evaluation.first_look import preflight
    from mobillm_flower.launch.own_rows import app_loader, gathered

    try:
        own = app_loader(app)
    except MobiLLMError:  # what is wrong with the app's module, Flower says
        return []
    if own is None:
        return preflight(settings)
    try:
        with gathered(app, [word for word in words if not word.startswith("data.source=")], at_most=1) as of_first:
            return [f"of the first device, {note}" for note in preflight(app.settings([*words, *of_first]))]
    except MobiLLMError as error:
        return [f"the first device would be refused: {told(error)}"]


def _earlier_run(settings: Settings) -> list[str]:
    """Return where the run that is gone on with is, for a process that starts elsewhere; refuse one that cannot be."""
    from mobillm_flower.strategies.continual import Earlier

    if not settings.continual.after:
        return []
    Earlier.read(settings)
    return [f"continual.after={Path(settings.continual.after).expanduser().resolve()}"]


def _report(path: Path | None) -> Path | None:
    """Write the report where there are events; the run's outcome stands, whatever becomes of its page."""
    from mobillm_flower.reports.html import write_report

    if path is None or not RunFolder(path).events.exists():
        return None
    try:
        return write_report(path)
    except Exception as error:
        typer.echo(f"the report was not written: {error}", err=True)
        return None


def _results(
    outcome: RunOutcome, watcher: Watcher, references: bool | None, rows: AbstractContextManager[list[str]]
) -> dict[str, Any]:
    """Return what is known of a run that completed; where its folder is here, it is written there, too."""
    from mobillm_flower.reports.table import not_used, results_rows
    from mobillm_flower.runs.record import read_run

    path = outcome.run_path
    measured: dict[str, Any] = {}
    unused: dict[str, str] = {}
    if path is None:
        table = [
            ("run", outcome.run_id, "Flower's id"),
            ("status", outcome.status, f"after {outcome.seconds:.0f} s"),
            ("metric, bytes, memory", "not known here", "the run folder is where the ServerApp ran: mobillm report"),
        ]
    else:
        run = read_run(path)
        if references is not False:
            measured = _references(run, watcher, rows, at_most=math.inf if references else outcome.seconds)
        table, unused = results_rows(run, measured), not_used(run)
    results = {
        "run": path and str(path),
        "run_id": outcome.run_id,
        "references": measured,
        "table": [list(row) for row in table],
        "status": outcome.status,
        "seconds": round(outcome.seconds, 1),
        "exit_code": _NOT_ALL if unused else 0,
    }
    if path is not None:
        RunFolder(path).results.write_text(json.dumps(results, indent=2) + "\n", "utf-8")
    return results


def _references(
    run: RunRecord, watcher: Watcher, rows: AbstractContextManager[list[str]], *, at_most: float
) -> dict[str, Any]:
    """Return references beside which a run is shown, each of at most so many seconds; empty where there are none."""
    from mobillm_flower.evaluation.device_cost import measure_memory
    from mobillm_flower.evaluation.references import measure_references, reference_seconds
    from mobillm_flower.evaluation.responses import measure_language
    from mobillm_flower.models.saved import saved_contract
    from mobillm_flower.reports.table import reference_names

    measured: dict[str, Any] = {}
    path, estimates = run.folder.path, reference_seconds(run)
    left_out = {name: seconds for name, seconds in estimates.items() if seconds > at_most}
    try:
        names = reference_names(numbers=not saved_contract(run.folder.side_network).labels)
        chosen = [f"{names[key]} (about {s:.0f} s)" for key, s in estimates.items() if key not in left_out]
        watcher.say(f"measuring references: {', '.join([*chosen, 'memory'])}")
        with rows as overrides:
            measured = measure_references(path, left_out=left_out, overrides=overrides)
            if measured:
                measured["memory"] = measure_memory(path)
                measured |= measure_language(path, overrides)
        if not measured:
            watcher.say("no references: the devices' samples are not those of data.source")
    except Exception as error:  # the run itself went well, whatever its references do
        watcher.say(f"references were not measured: {error}")
    return measured
