"""`mobillm compare`: side-tuning and its baselines on an app's own rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mobillm_flower.cli.options import AppFolder, Config, DownMbit, UpMbit
from mobillm_flower.cli.output import print_rows, relative, write_file

if TYPE_CHECKING:
    from mobillm_flower.config import Settings
    from mobillm_flower.evaluation.compare.cost_to_target import Link
    from mobillm_flower.evaluation.compare.curves import Plan
    from mobillm_flower.evaluation.plan import Forecast


def compare(
    app: AppFolder,
    config: Config = None,
    methods: Annotated[
        str, typer.Option(help="Methods, with commas between; by default the app's preset beside LoRA.")
    ] = "",
    quick: Annotated[
        bool, typer.Option("--quick", help="Minutes: few rows, one seed, three devices, no trials of learning rates.")
    ] = False,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 3,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of a baseline, each one pass over a device's rows.")] = 15,
    work: Annotated[
        Path, typer.Option(help="Where finished runs are kept; the same folder goes on where it was.")
    ] = Path("runs/compare"),
    up_mbit: UpMbit = 10.0,
    down_mbit: DownMbit = 50.0,
    slowdown: Annotated[
        float, typer.Option(min=1e-3, help="Modelled: how many times as long as this machine a device computes.")
    ] = 1.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every figure to this file.")] = None,
    page: Annotated[Path | None, typer.Option("--report", help="The page; by default compare.html in --work.")] = None,
) -> None:
    """Compare methods on your rows: the same partition and seeds, one table, one page, one recommendation."""
    from mobillm_flower.evaluation.compare.cost_to_target import Link
    from mobillm_flower.evaluation.compare.curves import draw_curves
    from mobillm_flower.evaluation.compare.of_app import Extent, plan_of_app
    from mobillm_flower.evaluation.compare.summary import summary
    from mobillm_flower.evaluation.first_look import preflight
    from mobillm_flower.launch import gathered, read_app
    from mobillm_flower.reports.comparison import comparison_page

    flower_app, words = read_app(app), list(config or [])
    names = [name.strip() for name in methods.split(",") if name.strip()]
    with gathered(flower_app, words, work / "rows") as own:
        words += own
        settings = flower_app.settings(words)
        for note in preflight(settings):
            typer.echo(f"note: {note}", err=True)
        plan = plan_of_app(flower_app, words, names, Extent(seeds=seeds, rounds=rounds, quick=quick, work=work))
        link = Link(up_mbit=up_mbit, down_mbit=down_mbit, slowdown=slowdown)
        (drawn,) = draw_curves(plan, say=lambda line: typer.echo(line, err=True)).values()
        report = summary(plan, drawn, link, _forecast(settings, plan, link, rounds), quick=quick)
    for table in report.tables:
        print_rows(table.title, table.columns, table.rows, headed=True)
    typer.echo("")
    for note in report.notes:
        typer.echo(note)
    everything = report.to_dict()
    page = page or work / "compare.html"
    title = f"{flower_app.folder.name}: methods compared"
    write_file(page, comparison_page(title, report, everything, report.notes))
    typer.echo(f"page: {relative(page.resolve())}")
    if json_file is not None:
        write_file(json_file, json.dumps(everything, indent=1) + "\n")


def _forecast(settings: Settings, plan: Plan, link: Link, rounds: int) -> Forecast | str:
    """Return what `mobillm plan` says of the rows that are compared; or why it does not."""
    from mobillm_flower.config import load_settings
    from mobillm_flower.errors import MobiLLMError
    from mobillm_flower.evaluation.plan import Workload, forecast, measured_gflops, sample_lengths
    from mobillm_flower.tasks import load_central_data

    (task,) = plan.tasks
    try:
        data = load_central_data(load_settings(overrides=[f"{key}={word}" for key, word in task.settings.items()]))
        work = Workload(
            num_samples=min(task.num_train, len(data.train)),
            num_devices=plan.num_devices,
            **sample_lengths(settings, data),
            rounds=rounds,
            link=link,
            gflops=measured_gflops(),
        )
        return forecast(settings, data.contract, work)
    except MobiLLMError as error:
        return f"Where bytes break even is not known: {error}."
