"""`mobillm audit`: attack what a server holds, and say what it could learn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mobillm_flower.cli.options import Config
from mobillm_flower.cli.output import print_rows, relative

if TYPE_CHECKING:
    from mobillm_flower.audit.audit import Subject

JsonFile = Annotated[
    Path | None,
    typer.Option("--json", help="Write everything to this file; by default, for a run, into its folder."),
]


def audit(
    subject: Annotated[Path, typer.Argument(help="A run's folder, a YAML file of settings, or a Flower app's folder.")],
    config: Config = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few samples and strengths: to see that it works.")] = False,
    json_file: JsonFile = None,
    plot: Annotated[Path | None, typer.Option(help="Write privacy against accuracy to this SVG file.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 2,
    own: Annotated[
        Path | None,
        typer.Option("--app", help="Of a run whose devices load their own rows: the app's folder, to ask it for them."),
    ] = None,
) -> None:
    """Attack what a server holds under a run's or other settings, and say what it could learn."""
    from mobillm_flower.audit.audit import run_audit
    from mobillm_flower.core.placement import torch_threads
    from mobillm_flower.reports.audit import frontier_file

    stack = ExitStack()
    audited = _subject(subject.expanduser(), config or [], stack, own)
    with stack, torch_threads(threads):
        result = run_audit(audited, quick=quick, say=lambda line: typer.echo(line, err=True))
    _print(result)
    target = json_file or (audited.run.audit if audited.run else None)
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")
        typer.echo(f"all figures: {relative(target.resolve())}")
    if plot is not None and "cells" in result:
        plot.parent.mkdir(parents=True, exist_ok=True)
        plot.write_text(frontier_file(result), "utf-8")
        typer.echo(f"plot: {relative(plot.resolve())}")
    if audited.run is not None and target == audited.run.audit:
        from mobillm_flower.reports.html import write_report

        typer.echo(f"report: {relative(write_report(audited.run.path).resolve())}")


def _subject(path: Path, config: Sequence[str], stack: ExitStack, app_of_run: Path | None = None) -> Subject:
    from mobillm_flower.audit.audit import Subject
    from mobillm_flower.config import load_settings
    from mobillm_flower.errors import SettingsError
    from mobillm_flower.launch import gathered, read_app
    from mobillm_flower.runs.folder import RunFolder

    run = RunFolder(path)
    if run.settings.is_file():
        if config:
            raise SettingsError("-c changes what a run was; audit its app or a settings file with -c instead")
        rows: list[str] = []
        if app_of_run is not None:
            number = load_settings(file=run.settings).data.num_devices
            rows = stack.enter_context(gathered(read_app(app_of_run), [f"data.num-devices={number}"]))
            if not rows:
                raise SettingsError(f"--app {app_of_run}: its devices load no rows of their own; leave it out")
        return Subject(lambda words: load_settings(file=run.settings, overrides=[*rows, *words]), run=run)
    if app_of_run is not None:
        raise SettingsError(f"--app goes with a run's folder, and {path} is none; name the app in its place")
    if (path / "pyproject.toml").is_file():
        app = read_app(path)
        own = stack.enter_context(gathered(app, config))  # rows that its devices load by themselves
        return Subject(lambda words: app.settings([*config, *own, *words]))
    if path.is_file():
        return Subject(lambda words: load_settings(file=path, overrides=[*config, *words]))
    raise SettingsError(f"{path} is no run's folder, settings file or app's folder; name one of these")


def _print(result: dict[str, Any]) -> None:
    for cell in result.get("sums", ()):
        refused = ", which devices refuse" if cell["refused"] else ""
        rows = [(name, f"{one['value']:.3f}", _interval(one)) for name, one in cell["attacks"].items()]
        noise = f", with the noise of ε = {result['epsilon']:g}" if cell["noised"] else ""
        print_rows(f"A sum of {cell['samples']:,} samples{noise}{refused}", ("attack", "value", "remark"), rows)
    if "cells" in result:
        _print_cells(result)
    checks = [
        (
            f"{check['mechanism']}, claimed ε = {check['claimed']:g}",
            f"{check['lower']:.3f}",
            f"lower bound from {check['draws']:,} draws: " + ("holds" if check["holds"] else "BROKEN"),
        )
        for check in result["epsilon_checks"]
    ]
    if checks:
        print_rows("Empirical ε of the mechanisms", ("mechanism", "value", "remark"), checks)
    _say(result)


def _print_cells(result: dict[str, Any]) -> None:
    for cell in result["cells"]:
        if cell["skipped"]:
            print_rows(cell["name"], ("figure", "value", "remark"), [("skipped", "", cell["skipped"])])
            continue
        print_rows(cell["name"], ("figure", "value", "remark"), _rows(cell, result["metric"]))
    of_pivots = [
        (f"pivot {one['pivot']}, layer {one['layer']}: {what}", f"{of['value']:.3f}", _interval(of))
        for one in result["pivots"]
        for what, of in (("words", one), ("sequence", one.get("sequence")))
        if of
    ]
    print_rows("Text recovered from clean activations, by pivot", ("vectors", "value", "remark"), of_pivots)
    print_rows(
        "The argmax attack under randomized labels, on draws of their own",
        ("mechanism", "value", "remark"),
        [
            (
                f"argmax Δy, {check['mechanism']} at ε = {check['epsilon']:g}",
                f"{check['value']:.4f}",
                f"theory {check['theory']:.4f}; {check['count']:,} labels",
            )
            for check in result["label_checks"]
        ],
    )


def _say(result: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False, soft_wrap=not Console().is_terminal)
    for title, text in result["plain_words"]:
        console.print(f"\n{title}", style="bold")
        console.print(text)
    for remark in result["remarks"]:
        console.print(f"\nNote: {remark}")


def _rows(cell: dict[str, Any], metric: str) -> list[tuple[str, str, str]]:
    quality, epsilon = cell["quality"], cell["epsilon"]["total"]
    named = "none" if epsilon is None else f"{epsilon:.4g}"
    rows = [
        ("cell", cell["name"], f"ε: {named}"),
        (f"task: {metric}", f"{quality['value']:.3f}", f"{quality['low']:.3f} to {quality['high']:.3f}"),
        ("bytes a sample", f"{cell['bytes_a_sample']:,.0f}", ""),
        ("device seconds a sample", f"{cell['device_seconds_a_sample']:.4f}", ""),
    ]
    for name, one in cell["attacks"].items():
        theory = "" if one["theory"] is None else f"; theory {one['theory']:.3f}"
        rows.append((name, f"{one['value']:.3f}", _interval(one) + theory))
    for layer in cell["layers"]:
        for what in ("words", "sequence", "nearest"):
            rows.append((f"layer {layer['layer']}: {what}", f"{layer[what]['value']:.3f}", ""))
    return rows


def _interval(one: dict[str, Any]) -> str:
    return f"{one['low']:.3f} to {one['high']:.3f}; without uploads {one['baseline']:.3f}"
