"""`mobillm report`: make a run's page again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mobillm_flower.cli.options import AsJson, RunPath
from mobillm_flower.cli.output import relative, say_json


def report(
    run: RunPath,
    out: Annotated[Path | None, typer.Option(help="The file; by default the report in the run's folder.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a run's report again, from its folder alone; the run may be in progress, or have failed."""
    from mobillm_flower.reports.html import write_report
    from mobillm_flower.runs.record import read_run

    file = write_report(run, out).resolve()
    outcome = read_run(run).outcome
    if as_json:
        say_json({"report": str(file), "run": str(run.expanduser().resolve()), "outcome": outcome})
    else:
        typer.echo(f"report: {relative(file)}   the run: {outcome}")
