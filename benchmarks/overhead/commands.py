"""`python -m benchmarks`: what the library costs beside the bare thing, measured in turns."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mobillm_flower.cli.output import print_rows, relative

if TYPE_CHECKING:
    from benchmarks.measuring import BenchReport

app = typer.Typer(no_args_is_help=True, help="What the library costs beside the bare thing, measured in turns.")
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write everything, each repetition too, to this file.")]
Pairs = Annotated[int, typer.Option(min=10, help="Turns: how often each side is measured.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of torch.")]


@app.command()
def device(
    backbone: Annotated[
        str, typer.Option(help="A backbone's name, or opt-125m: that model's shape with random weights.")
    ] = "minilm",
    layers: Annotated[int, typer.Option(min=0, help="Its first layers; 0: all.")] = 0,
    samples: Annotated[int, typer.Option(min=1, help="Texts of the package's own data.")] = 256,
    pairs: Pairs = 10,
    threads: Threads = 1,
    json_file: JsonFile = None,
) -> None:
    """Measure a device's forward pass and memory beside the bare backbone, hidden states, and a LoRA step."""
    from benchmarks.overhead.device import bench_device

    report = bench_device(
        backbone=backbone, layers=layers, pairs=pairs, num_samples=samples, num_threads=threads, say=say
    )
    finish(report, json_file)


@app.command()
def codecs(
    samples: Annotated[int, typer.Option(min=1, help="Random samples, encoded and decoded in each turn.")] = 64,
    pairs: Pairs = 10,
    threads: Threads = 1,
    json_file: JsonFile = None,
) -> None:
    """Measure every codec: bits a value, relative error, values encoded and decoded a second."""
    from benchmarks.overhead.codecs import bench_codecs

    finish(bench_codecs(pairs=pairs, num_samples=samples, num_threads=threads, say=say), json_file)


@app.command()
def cache(
    pairs: Pairs = 10,
    folder: Annotated[
        Path | None, typer.Option(help="Where to put about 1 GB for a while; by default with temporary files.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Measure random rows a second from a warm cache, and memory as the cache grows."""
    from benchmarks.overhead.cache import bench_cache

    finish(bench_cache(pairs=pairs, folder=folder, say=say), json_file)


@app.command()
def trainer(pairs: Pairs = 10, threads: Threads = 1, json_file: JsonFile = None) -> None:
    """Measure the trainer's step from the memory tier beside a bare torch loop of the same mathematics."""
    from benchmarks.overhead.trainer import bench_trainer

    finish(bench_trainer(pairs=pairs, num_threads=threads, say=say), json_file)


@app.command()
def neighbours(pairs: Pairs = 10, threads: Threads = 1, json_file: JsonFile = None) -> None:
    """Measure a training step beside one busy process a core, against the same on the quiet machine."""
    from benchmarks.overhead.neighbours import bench_neighbours

    finish(bench_neighbours(pairs=pairs, num_threads=threads, say=say), json_file)


@app.command(name="fleet-scale")
def fleet_scale(
    devices: Annotated[str, typer.Option(help="Sizes of the fleet, with commas between.")] = "10,100,1000,10000",
    samples_per_device: Annotated[int, typer.Option(min=1, help="Samples that each device sends, in one window.")] = 8,
    threads: Threads = 1,
    folder: Annotated[
        Path | None, typer.Option(help="Where to put about 100 MB for a while; by default with temporary files.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Measure the server's time, memory and disk as the fleet grows: ingestion, overlapping steps, an epoch."""
    from benchmarks.overhead.fleet_scale import bench_fleet_scale

    if not re.fullmatch(r"\d{1,7}(,\d{1,7})*", devices):
        raise typer.BadParameter("give whole numbers with commas between, e.g. 10,100", param_hint="--devices")
    report = bench_fleet_scale(
        devices=[int(size) for size in devices.split(",")],
        samples_per_device=samples_per_device,
        num_threads=threads,
        folder=folder,
        say=say,
    )
    finish(report, json_file)


@app.command()
def limit(
    parts: Annotated[
        str,
        typer.Option(
            help="What to measure, with commas between: memory, streaming, engines, engine-metrics, pipeline, server."
        ),
    ] = "",
    pairs: Pairs = 10,
    threads: Threads = 1,
    folder: Annotated[
        Path | None,
        typer.Option(help="Where to put, and keep, 6 GB of models; by default with temporary files."),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Measure how small a device may be, and how fast: memory below the model's size, streaming, engines."""
    from benchmarks.overhead.limit import PARTS, bench_limit

    names = [name for name in parts.split(",") if name]
    if not set(names) <= PARTS.keys():
        raise typer.BadParameter(f"give names out of {', '.join(PARTS)}", param_hint="--parts")
    finish(bench_limit(parts=names, pairs=pairs, num_threads=threads, folder=folder, say=say), json_file)


@app.command()
def gpu(
    tiny: Annotated[bool, typer.Option("--tiny", help="Small shapes, to try the script on a CPU.")] = False,
    parts: Annotated[str, typer.Option(help="What to measure, with commas between; empty: all.")] = "",
    json_file: JsonFile = None,
) -> None:
    """Compare a GPU with the CPU and with what it could do; the file is written after each part."""
    from benchmarks.overhead.gpu import PARTS, bench_gpu

    names = tuple(name for name in parts.split(",") if name)
    if not set(names) <= PARTS.keys():
        raise typer.BadParameter(f"give names out of {', '.join(PARTS)}", param_hint="--parts")
    finish(bench_gpu(tiny=tiny, parts=names, json_file=json_file, say=say), json_file)


def say(text: str) -> None:
    """Tell how far a benchmark is, on standard error."""
    typer.echo(text, err=True)


def finish(report: BenchReport, json_file: Path | None) -> None:
    """Print what a benchmark found, and write it to a file if one is given."""
    found = report.to_dict()
    print_rows(f"Bench: {report.bench}", ("figure", "value", "remark"), _rows(found))
    write_json(found, json_file)


def write_json(found: dict[str, Any], json_file: Path | None) -> None:
    """Write all figures to a file, if one is given."""
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(_as_text(found), "utf-8")
        typer.echo(f"all figures: {relative(json_file.resolve())}")


def _rows(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    rows = []
    for name, bar in found["bars"].items():
        verdict = "holds" if bar["holds"] else "DOES NOT HOLD"
        rows.append((name, f"{bar['value']:,.4g}", f"bar {bar['rule']} {bar['bar']:,g}: {verdict}"))
    comparisons = {} if "codecs" in found["figures"] else found["comparisons"]  # thirty of them: in the file alone
    for name, sides in comparisons.items():
        low, high = sides["ratio_quartiles"]
        medians = f"{sides['ours_median']:,.4g} beside {sides['other_median']:,.4g} {sides['unit']}"
        spread = f"quartiles {low:.3f} to {high:.3f}, {sides['pairs']} pairs"
        rows.append((f"{name}, ratio", f"{sides['ratio']:.3f}", f"{medians} of {sides['other_name']}; {spread}"))
    for name, value in found["figures"].items():
        if name == "codecs":
            for row in value:
                rows.append((f"{row['codec']} keep={row['keep']:g}", f"{row['bits_per_value']:.3f}", _codec(row)))
        elif name == "fleets":
            for row in value:
                rows.append((f"{row['devices']:,} devices", f"{row['samples_ingested_a_s']:,.4g}", _fleet(row)))
        else:
            rows.append((name, f"{value:,.6g}" if isinstance(value, float) else str(value), ""))
    return rows + [(name, "not measured", reason) for name, reason in found["skipped"].items()]


def _codec(row: dict[str, Any]) -> str:
    encode, decode = row["encode_values_per_s"] / 1e6, row["decode_values_per_s"] / 1e6
    speed = f"million values a second: {encode:.2f} encoded, {decode:.2f} decoded"
    return f"bits a value; relative error {row['relative_error']:.4f}; {speed}"


def _fleet(row: dict[str, Any]) -> str:
    ingest, epoch = 1e3 * row["ingest_s_a_device"], f"{row['epoch_s']:.1f} s, {row['epoch_steps_a_s']:.0f} steps/s"
    size = f"{row['anonymous_bytes'] / 1e6:.0f} MB memory, {row['disk_bytes'] / 1e6:.1f} MB disk"
    return f"samples ingested a second; {ingest:.1f} ms a device; epoch {epoch}; {size}"


def _as_text(found: dict[str, Any]) -> str:
    """Return indented JSON, lists of numbers on one line."""
    text = json.dumps(found, indent=1, ensure_ascii=False)
    return re.sub(r"\[\s+([^\[\]{}\"]*?)\s+\]", lambda match: f"[{' '.join(match[1].split())}]", text) + "\n"
