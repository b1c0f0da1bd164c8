"""`python -m benchmarks`: side-tuning beside its peers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from benchmarks.overhead.commands import JsonFile, Threads, app, say, write_json
from mobillm_flower.cli.output import print_rows, relative, write_file

if TYPE_CHECKING:
    from benchmarks.comparison.variants import Variants
    from mobillm_flower.evaluation.compare.curves import Plan
    from mobillm_flower.evaluation.compare.task import ComparedTask
    from mobillm_flower.reports.comparison import Report

PageFile = Annotated[Path | None, typer.Option("--report", help="Write a page with tables and figures to this file.")]
Tasks = Annotated[str, typer.Option(help="Tasks, with commas between.")]
Task = Annotated[str, typer.Option(help="The task.")]
Methods = Annotated[str, typer.Option(help="Methods, with commas between; empty: all.")]
Data = Annotated[Path | None, typer.Option(help="Folder of data sets; needed by all tasks but phone-messages.")]
Work = Annotated[Path, typer.Option(help="Where finished runs are kept; the same folder goes on where it was.")]
Seeds = Annotated[int, typer.Option(min=1, help="How many seeds.")]
Devices = Annotated[int, typer.Option(min=1, help="Devices of the fleet.")]
Rounds = Annotated[int, typer.Option(min=1, help="Rounds of a peer.")]
Before = Annotated[
    Path | None,
    typer.Option("--from", exists=True, dir_okay=False, help="Take finished runs from what --json wrote before."),
]
Quick = Annotated[bool, typer.Option("--quick", help="Minutes: three methods, no trials, one seed, three devices.")]
QuickVariants = Annotated[bool, typer.Option("--quick", help="Minutes: two variants, one seed, three devices.")]
Precision = Annotated[str, typer.Option(help="Of every method's backbone; bf16 is faster on processors that have it.")]
UpMbit = Annotated[float, typer.Option(min=1e-3, help="Modelled uplink of a device, Mbit/s.")]
DownMbit = Annotated[float, typer.Option(min=1e-3, help="Modelled downlink of a device, Mbit/s.")]
Slowdown = Annotated[float, typer.Option(min=1e-3, help="Modelled: how much slower a device computes than this one.")]
_WORK = Path("runs/curves")
_QUICK_SETTINGS = {"backbone.layers": "2"}
__all__ = ["app"]


@app.command(name="cost-to-target")
def cost_to_target(
    tasks: Tasks = "phone-messages",
    methods: Methods = "",
    data: Data = None,
    work: Work = _WORK,
    seeds: Seeds = 3,
    devices: Devices = 10,
    rounds: Rounds = 15,
    precision: Precision = "fp32",
    up_mbit: UpMbit = 10.0,
    down_mbit: DownMbit = 50.0,
    slowdown: Slowdown = 1.0,
    quick: Quick = False,
    before: Before = None,
    json_file: JsonFile = None,
    page: PageFile = None,
) -> None:
    """Measure what a device pays until a target is reached: side-tuning and its peers, IID and Dirichlet 0.1."""
    from benchmarks.comparison.cost_to_target import cost_to_target as measured
    from benchmarks.comparison.restore import restore
    from mobillm_flower.evaluation.compare.cost_to_target import Link
    from mobillm_flower.evaluation.compare.curves import draw_curves

    plan = _plan(_tasks(tasks, data), Words(methods, work, seeds, devices, rounds, precision, quick=quick))
    link = Link(up_mbit=up_mbit, down_mbit=down_mbit, slowdown=slowdown)
    result = json.loads(before.read_text("utf-8")) if before else None
    taken = restore(result, plan) if result else {}
    for task, names in taken.items():
        say(f"{task}: runs of {', '.join(names)} are taken from {before}")
    report = measured(plan, draw_curves(plan, say=say), link)
    if result and taken:
        report.settings["runs taken over"] = {"commit": result["commit"], "methods": taken}
    show(report, json_file, page)


@app.command(name="quality-under-budget")
def quality_under_budget(
    tasks: Tasks = "phone-messages",
    methods: Methods = "",
    data: Data = None,
    work: Work = _WORK,
    seeds: Seeds = 3,
    devices: Devices = 10,
    rounds: Rounds = 15,
    precision: Precision = "fp32",
    quick: Quick = False,
    json_file: JsonFile = None,
    page: PageFile = None,
) -> None:
    """Measure the best metric within 1, 10, 100 MB and 1, 3, 10 forward passes of a device, of the same runs."""
    from benchmarks.comparison.quality_under_budget import quality_under_budget as measured
    from mobillm_flower.evaluation.compare.curves import draw_curves

    plan = _plan(_tasks(tasks, data), Words(methods, work, seeds, devices, rounds, precision, quick=quick))
    show(measured(plan, draw_curves(plan, say=say)), json_file, page)


@app.command()
def quantization(
    task: Task = "phone-messages",
    data: Data = None,
    work: Work = _WORK,
    seeds: Seeds = 3,
    devices: Devices = 10,
    quick: QuickVariants = False,
    json_file: JsonFile = None,
    page: PageFile = None,
) -> None:
    """Measure codecs and sparsification of uploads: bytes, error, metric."""
    from benchmarks.comparison.variants import QUANTIZATION

    show(_variants("quantization", QUANTIZATION, task, data, work, seeds, devices, quick=quick), json_file, page)


@app.command()
def ablation(
    task: Task = "phone-messages",
    data: Data = None,
    work: Work = _WORK,
    seeds: Seeds = 3,
    devices: Devices = 10,
    quick: QuickVariants = False,
    json_file: JsonFile = None,
    page: PageFile = None,
) -> None:
    """Measure side-tuning with one setting changed at a time: blocks, bottleneck, activation, gates, pivot, width."""
    from benchmarks.comparison.variants import ABLATION

    show(_variants("ablation", ABLATION, task, data, work, seeds, devices, quick=quick), json_file, page)


@app.command()
def robustness(
    task: Task = "phone-messages",
    methods: Methods = "",
    data: Data = None,
    work: Work = _WORK,
    seeds: Seeds = 3,
    devices: Devices = 10,
    rounds: Rounds = 15,
    precision: Precision = "fp32",
    up_mbit: UpMbit = 10.0,
    down_mbit: DownMbit = 50.0,
    slowdown: Slowdown = 1.0,
    quick: Annotated[bool, typer.Option("--quick", help="Minutes: half of four devices vanish, one seed.")] = False,
    json_file: JsonFile = None,
    page: PageFile = None,
) -> None:
    """Measure what is lost when devices vanish, when one is ten times slower, and when backbones differ."""
    from benchmarks.comparison.robustness import METHODS, SHARES, Fleets, bench_robustness
    from mobillm_flower.evaluation.compare.cost_to_target import Link
    from mobillm_flower.evaluation.compare.methods import methods as compared

    names = methods.split(",") if methods else list(METHODS[1:] if quick else METHODS)
    for name in names:
        if name not in METHODS:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(METHODS)}", param_hint="--methods")
    (result,) = _tasks(task, data)
    fleets = Fleets(
        task=result,
        methods=compared(3 if quick else rounds, names, trials=False),
        seeds=range(1 if quick else seeds),
        alpha=0.1,
        num_devices=4 if quick else devices,
        common=_common(precision, quick=quick),
        shares=SHARES[-1:] if quick else SHARES,
        choices=("minilm@1", "minilm@2") if quick else ("minilm@3", "minilm@6"),
        turns=1 if quick else 5,
        work=work,
    )
    link = Link(up_mbit=up_mbit, down_mbit=down_mbit, slowdown=slowdown)
    show(bench_robustness(fleets, link, say=say), json_file, page)


@app.command()
def memory(
    models: Annotated[
        str, typer.Option(help="Backbones, or opt-125m, opt-350m, opt-1.3b: their shapes with random weights.")
    ] = "opt-125m,opt-350m",
    lengths: Annotated[str, typer.Option(help="Tokens of a sample, with commas between.")] = "128,256,512",
    batches: Annotated[str, typer.Option(help="Samples of a batch, with commas between.")] = "1,4,16",
    sides: Annotated[str, typer.Option(help="What to measure, with commas between; empty: everything.")] = "",
    work: Work = _WORK,
    threads: Threads = 1,
    json_file: JsonFile = None,
    page: PageFile = None,
) -> None:
    """Measure a device's peak memory: inference, side-tuning, LoRA, checkpointed LoRA, BitFit, full fine-tuning."""
    from benchmarks.overhead.memory import SIDES, bench_memory

    chosen = sides.split(",") if sides else list(SIDES)
    if unknown := [side for side in chosen if side not in SIDES]:
        raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(SIDES)}", param_hint="--sides")
    report = bench_memory(
        models=models.split(","),
        lengths=_numbers(lengths, "--lengths"),
        batches=_numbers(batches, "--batches"),
        sides=chosen,
        num_threads=threads,
        work=work,
        say=say,
    )
    show(report, json_file, page)


@app.command()
def network(
    backbone: Annotated[
        str, typer.Option(help="A backbone, or opt-125m, opt-350m, opt-1.3b: their shapes with random weights.")
    ] = "opt-125m",
    length: Annotated[int, typer.Option(min=1, help="Tokens of a sample.")] = 128,
    batches: Annotated[str, typer.Option(help="Samples of a batch, with commas between.")] = "12,16,20,24,30",
    uplinks: Annotated[str, typer.Option(help="Modelled uplinks in Mbit/s, with commas between.")] = "1,10,60,100",
    turns: Annotated[int, typer.Option(min=1, help="How often each side is measured.")] = 3,
    slowdown: Slowdown = 1.0,
    threads: Threads = 1,
    json_file: JsonFile = None,
    page: PageFile = None,
) -> None:
    """Measure where transmission eats the gain: seconds a batch over uplinks, with and without overlap."""
    from benchmarks.overhead.network import bench_network

    report = bench_network(
        backbone=backbone,
        length=length,
        batches=_numbers(batches, "--batches"),
        uplinks=_numbers(uplinks, "--uplinks"),
        turns=turns,
        slowdown=slowdown,
        num_threads=threads,
        say=say,
    )
    show(report, json_file, page)


@app.command()
def fleet(
    curves: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="What cost-to-target wrote with --json.")],
    devices: Annotated[str, typer.Option(help="Sizes of the fleet, with commas between.")] = "100,1000,10000",
    task: Annotated[str, typer.Option(help="A task of the file; by default its first.")] = "",
    partition: Annotated[str, typer.Option(help="A partition of the file, such as iid; by default its first.")] = "",
    target: Annotated[
        float, typer.Option(min=0, help="Metric; 0: the best that side-tuning and fed-lora both reach.")
    ] = 0.0,
    seeds: Seeds = 3,
    on_minutes: Annotated[float, typer.Option(min=1e-3, help="How long a device is there at a time, mean.")] = 60.0,
    off_minutes: Annotated[float, typer.Option(min=0, help="How long it is then away, mean.")] = 120.0,
    deadline_s: Annotated[float, typer.Option(min=1e-3, help="How long a synchronous round waits.")] = 600.0,
    efficiency: Annotated[float, typer.Option(min=1e-3, max=1, help="Share of its peak that a device reaches.")] = 0.25,
    gflops: Annotated[
        float, typer.Option(min=0, help="Of the machine the file is from; 0: this machine's, measured for a second.")
    ] = 0.0,
    latency_ms: Annotated[float, typer.Option(min=0, help="Of a message and its answer.")] = 50.0,
    memory_share: Annotated[
        float, typer.Option(min=1e-6, max=1, help="Share of its memory that a device gives training.")
    ] = 0.1,
    json_file: JsonFile = None,
    page: PageFile = None,
) -> None:
    """Simulate fleets of real kinds of devices around measured costs: time to a target, bytes. All is modelled."""
    from benchmarks.comparison.fleet import bench_fleet
    from benchmarks.comparison.fleet_profiles import World
    from mobillm_flower.evaluation.plan import measured_gflops

    world = World(
        gflops=gflops or measured_gflops(),
        efficiency=efficiency,
        memory_share=memory_share,
        on_s=60 * on_minutes,
        off_s=60 * off_minutes,
        deadline_s=deadline_s,
        latency_s=latency_ms / 1000,
    )
    report = bench_fleet(
        curves,
        sizes=_numbers(devices, "--devices"),
        world=world,
        seeds=range(seeds),
        task=task,
        partition=partition,
        target=target,
        say=say,
    )
    show(report, json_file, page)


def _numbers(text: str, option: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r} must be whole numbers with commas between", param_hint=option) from None


def _variants(
    name: str,
    variants: Variants,
    task: str,
    data: Path | None,
    work: Path,
    seeds: int,
    devices: int,
    *,
    quick: bool,
) -> Report:
    from benchmarks.comparison.variants import bench_variants
    from mobillm_flower.evaluation.compare.methods import BY_STEPS

    (result,) = _tasks(task, data)
    return bench_variants(
        name,
        result,
        dict(list(variants.items())[:2]) if quick else variants,
        seeds=range(1 if quick else seeds),
        num_devices=3 if quick else devices,
        common={**BY_STEPS, **(_QUICK_SETTINGS if quick else {})},
        work=work,
        say=say,
    )


def _tasks(names: str, data: Path | None) -> list[ComparedTask]:
    from benchmarks.comparison.tasks import DATA_SETS, compared_task

    for name in names.split(","):
        if name not in DATA_SETS:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(DATA_SETS)}", param_hint="--tasks")
        if DATA_SETS[name].folder and data is None:
            raise typer.BadParameter(f"{name} needs --data, the folder of data sets", param_hint="--data")
    return [compared_task(name, data) for name in names.split(",")]


@dataclass(frozen=True)
class Words:
    """What the command line says of a comparison, in its own words."""

    methods: str
    work: Path
    seeds: int
    devices: int
    rounds: int
    precision: str
    quick: bool


def _plan(tasks: list[ComparedTask], words: Words) -> Plan:
    from benchmarks.comparison.tasks import METHODS, QUICK
    from mobillm_flower.evaluation.compare.curves import Plan
    from mobillm_flower.evaluation.compare.methods import methods as compared

    names = words.methods.split(",") if words.methods else list(QUICK if words.quick else METHODS)
    for name in names:
        if name not in METHODS:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(METHODS)}", param_hint="--methods")
    return Plan(
        tasks=tasks,
        methods=compared(3 if words.quick else words.rounds, names, trials=not words.quick),
        seeds=range(1 if words.quick else words.seeds),
        partitions=("alpha=0.1",) if words.quick else ("iid", "alpha=0.1"),
        num_devices=3 if words.quick else words.devices,
        common=_common(words.precision, quick=words.quick),
        turns=1 if words.quick else 5,
        work=words.work,
    )


def _common(precision: str, *, quick: bool) -> dict[str, str]:
    """Return the settings of all runs of a comparison."""
    return {"backbone.token-budget": "1024", "backbone.precision": precision, **(_QUICK_SETTINGS if quick else {})}


def show(report: Report, json_file: Path | None, page: Path | None) -> None:
    """Print a report's tables; write its figures and its page, if files are given."""
    from mobillm_flower.reports.comparison import comparison_page

    result = report.to_dict()
    for table in report.tables:
        print_rows(table.title, table.columns, table.rows, headed=True)
    write_json(result, json_file)
    if page is not None:
        write_file(page, comparison_page(f"Bench: {report.bench}", report, result))
        typer.echo(f"page: {relative(page.resolve())}")
