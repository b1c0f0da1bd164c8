"""Print `docs/reference/benchmarks.md` from the benchmarks' JSON: `python docs/generate_benchmarks.py > …`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from blocks import table

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
NAMES = ("device", "codecs", "cache", "trainer", "neighbours", "fleet_scale", "limit")

INTRODUCTION = """\
# Benchmarks

How fast the library is, and how much memory it takes, compared with the same work without the library. This page is
generated from the JSON files named below, which hold every repetition. Do not edit it by hand:

    make bench
    python -m benchmarks limit --json benchmarks/results/bench_limit.json
    python docs/generate_benchmarks.py > docs/reference/benchmarks.md

`python -m benchmarks device|codecs|cache|trainer|neighbours|fleet-scale|limit --json FILE` measures one of them
([options](benchmark-commands.md#python-m-benchmarks-device)).

- Read the ratios, not the absolute times, since the speed of a shared machine varies.
- Except for `fleet-scale`, both sides are measured in turns (A B A B …) in one process, memory in fresh processes, in
  ten turns or more.
- A *ratio* is the median of our side over the median of the other side. Its *spread* is the quartiles of the ratios
  turn by turn.
- A *bar* is a limit that we set for a ratio. Bars apply to wall time. Figures with `_cpu` are processor time, which
  other processes disturb less. The page states each bar that does not hold. Commands end with 0 in either case.
"""

MEANINGS = {
    "device": """\
256 texts of `phone-messages`, all-MiniLM-L6-v2 in fp32, every layer sampled, batches by length under 4,096 tokens.

- `forward_ratio`: `Backbone.extract` (sorting, padding, hooks, pivots, copies to the CPU) over the bare, truncated
  model in inference mode on the same, padded batches.
- `memory_ratio`: the peak of all work for a message (tokens, forward pass, pivots, NF4, ledger) over the bare model's
  forward pass without LM head on the same batches. Both are above the loaded, idle model: before, every weight is
  read and one sample runs, so that the mapped model file and the libraries' code do not count as activations. The
  allocator gives freed blocks back at once (`MALLOC_MMAP_THRESHOLD_`), so the figure is what a side needs and not
  what the allocator keeps.
- `memory_beside_hidden-states`: ours over `output_hidden_states=True`, which keeps every layer's hidden states.
- `memory_beside_lora`: ours over a LoRA training step (peft, r = 8, query and value, AdamW) on the same batches.
  LoRA could use smaller batches and less memory. This compares the same batches; it is not the least memory that
  LoRA needs.

`--backbone opt-125m` measures that model's shape with random weights, which is right for seconds and bytes.
""",
    "codecs": """\
Samples of 12 × 768 standard normal values, each encoded on its own.

- `bits_per_value`: bits of NF4's real bytes, scales and offset included, a value.
- In the table, bits and speed count the values of the whole sample, masks included, and the error ‖x − x̂‖/‖x‖ holds
  the values that were not kept to be 0: for these random values it says how much of them is in the tail. Million
  values a second are of one thread; the JSON has each codec's ratio to fp32, taken in turns.
""",
    "cache": """\
200,000 rows of 12 × 768 NF4 samples, really encoded, undecoded when read; the file is in the system's page cache.

- `rows_per_s`: `ActivationCache.read` of random rows in batches of 32, as the trainer reads; beside it one plain
  SELECT a row on the same file. Rows beyond the first 2 GiB of a file are not mapped, and are read by system calls.
- `rss_growth`: anonymous memory (RssAnon) of a process that opens the cache, splits its rows for training and reads
  10,000 of them, with 200,000 rows over the same with 10,000. The mapped file is not part of it: the system takes
  those pages back when it needs them. Python and torch themselves are; `anonymous_bytes_a_row` is what a row adds.
""",
    "trainer": """\
1,024 random samples in the decoded memory tier, 6 blocks of width 384, 12 classes, default settings (batch of 32,
fused AdamW, dropout, clipping, running average); an epoch a turn.

- `step_ratio`: seconds of a step over those of a loop that one would write by hand for two tensors: `index_select`,
  the same network, dropout, loss, clipping, optimizer and average. `identical` says that both ended with the same
  weights, bit by bit, after all turns: the mathematics is the same.
- `step_ratio_mean`: the same with pivot `mean`, whose network has no alignment to train: the smallest step there is.
""",
    "neighbours": """\
An epoch of training on one thread, 4,096 random samples, 6 blocks of width 384, pivot `mean`, with a busy process on
every core and without, in turns.

- `busy_ratio`: wall seconds of an epoch beside the busy processes over those on the quiet machine. On two cores, two
  busy processes leave two thirds of a core to a single thread, so that 1.5 is what a fair scheduler gives; the
  processor's seconds (`_cpu`) say how much of the rest is the work's own.
""",
    "fleet_scale": """\
Fleets of synthetic devices of three backbone types, each in a fresh process: descriptions, requests, packets and their
full check as in a run, the cache on disk, 8 overlapping steps a 20 devices, then an epoch with its validation. Flower's
transport and the devices' forward pass are not part of it; for the transport see
[many devices](../explanation/many-devices.md).
The reference, 100 devices, is measured again after the largest fleet; the faster of the two counts.

- `time_per_sample`: seconds of all that the server did a sample, largest fleet over the reference.
- `ingest_per_device`: seconds of taking in a device (description, request, check, commit, event), likewise.
- `memory_per_device`: bytes of anonymous memory (RssAnon) that a device more adds, with its 8 samples; the tensors of
  decoded samples apart, whose budget is a setting.
- Figures that end in `_cpu` are of the processor's clock, which other processes disturb less.
""",
    "limit": """\
How small a device may be, and how fast, and what the server's work is beside the processor's limits. What the parts
say is in [a model that does not fit](../how-to/small-memory.md#what-it-costs),
[engines](../how-to/engines.md#how-fast-it-is) and [the server's
speed](../explanation/many-devices.md#how-near-the-hardware-the-server-is).

- `opt-1.3b_…_peak_anonymous_gb`: OPT-1.3B's shape with random weights, bf16 on disk, streamed within a budget, pivots
  of all 24 layers for 16 samples of 256 tokens: peak RssAnon of the whole, fresh process. With NF4, of the process
  after the one that packed the layers. VmHWM counts mapped files too.
- `opt-350m_streamed_…`: OPT-350M's shape in fp32 with half of the memory that it takes, 64 samples of 64 tokens,
  beside the model in memory, each in a fresh process; the model file is in the system's page cache. For
  `opt-350m_cold_…` it is dropped from there before.
- Engines: MiniLM on texts of `phone-messages`, beside torch in fp32; accuracy is that of side-tuning on each engine's
  activations. The first file's three seeds cannot tell 0.3 points from nothing, hence the second's twenty.
- `window_…`: making a device's window of all of `phone-messages` beside the tokenizing and forward passes within the
  same call, as they ran beside the encoding.
- The server's bounds: the longer of a call's operations at the speed of a large product, and of its bytes at that of
  a large copy, measured in the same turns. For training it is counted as if each operation took all of its bytes from
  memory; what stays in the processor's cache, or is fused, may be faster than it.
""",
}


def generate() -> str:
    """Return the page."""
    parts = [INTRODUCTION]
    for name in NAMES:
        files = sorted(RESULTS.glob(f"bench_{name}*.json"))
        parts += [f"## {name}\n", MEANINGS[name]]
        for file in files:
            parts += [_figures(file, json.loads(file.read_text("utf-8")))]
    return "\n".join(parts)


def _figures(file: Path, found: dict[str, Any]) -> str:
    settings, machine, versions = found["settings"], found["machine"], found["versions"]
    what = f"{settings['backbone']}, {settings['samples']} texts; " if "backbone" in settings else ""
    changed = " and changes after it" if found["changed_since"] else ""
    head = (
        f"[`benchmarks/results/{file.name}`](../../benchmarks/results/{file.name}): {what}{_turns(settings)}, "
        f"{settings['threads']} thread, {machine['cores']} cores, load {machine['load_before']} before and "
        f"{machine['load_after']} after; torch {versions['torch']}, Python {versions['python']}, SQLite "
        f"{versions['sqlite']}; commit {(found['commit'] or 'unknown')[:12]}{changed}."
    )
    rows = ["| figure | value | bar | holds |", "|---|---|---|---|"]
    for name, bar in found["bars"].items():
        held = "yes" if bar["holds"] else "**no**"
        rows.append(f"| `{name}` | {_number(bar['value'])} | {bar['rule']} {_number(bar['bar'])} | {held} |")
    parts = [head, "", *rows, ""]
    if "codecs" in found["figures"]:
        parts += _codecs(found["figures"]["codecs"])
    elif "fleets" in found["figures"]:
        parts += _fleets(found["figures"])
    elif found.get("tables"):
        parts += [f"**{one['title']}**\n\n{table(one['columns'], one['rows'])}" for one in found["tables"]]
        parts += _sides(found)
    else:
        parts += _sides(found)
    return "\n".join(parts) + "\n"


def _sides(found: dict[str, Any]) -> list[str]:
    rows = ["| sides | ratio | spread | ours | other |", "|---|---|---|---|---|"]
    for name, sides in found["comparisons"].items():
        low, high = sides["ratio_quartiles"]
        ours, other = (_with_unit(sides[f"{side}_median"], sides["unit"]) for side in ("ours", "other"))
        rows.append(
            f"| `{name}` | {sides['ratio']:.3f} | {low:.3f} to {high:.3f} | {ours} | {other}, {sides['other_name']} |"
        )
    single = {name: value for name, value in found["figures"].items() if isinstance(value, float | int)}
    others = [f"- `{name}`: {_number(value)}" for name, value in single.items()]
    skipped = [f"- `{name}` was not measured: {reason}" for name, reason in found["skipped"].items()]
    lines = [*others, *skipped]
    return [*rows, "", *lines, ""] if lines else [*rows, ""]


def _codecs(found: list[dict[str, Any]]) -> list[str]:
    rows = ["| codec | kept | bits a value | relative error | encoded, million/s | decoded, million/s |"]
    rows.append("|---|---|---|---|---|---|")
    for row in found:
        rows.append(
            f"| `{row['codec']}` | {row['keep']:g} | {row['bits_per_value']:.3f} | {row['relative_error']:.4f} | "
            f"{row['encode_values_per_s'] / 1e6:.2f} | {row['decode_values_per_s'] / 1e6:.2f} |"
        )
    return [*rows, ""]


def _turns(settings: dict[str, Any]) -> str:
    if "pairs" in settings:
        return f"{settings['pairs']} pairs"
    if "parts" in settings:
        return f"{', '.join(settings['parts'])}; ten turns where there are turns"
    return f"{settings['samples_per_device']} samples a device, one run a fleet"


def _fleets(figures: dict[str, Any]) -> list[str]:
    rows = [
        "| devices | samples | ingested a second | ms a device | of it commit | overlapping steps a second | epoch, s "
        "| epoch's steps a second | ms a sample, all | its cpu ms | RssAnon, MB | disk, MB |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in figures["fleets"]:
        cells = [
            f"{row['devices']:,}",
            f"{row['samples']:,}",
            f"{row['samples_ingested_a_s']:,.0f}",
            f"{1e3 * row['ingest_s_a_device']:.2f}",
            f"{1e3 * row['commit_s_a_device']:.2f}",
            f"{row['overlap_steps_a_s']:.1f}",
            f"{row['epoch_s']:.2f}",
            f"{row['epoch_steps_a_s']:.1f}",
            f"{1e3 * row['seconds_a_sample']:.2f}",
            f"{1e3 * row['cpu_seconds_a_sample']:.2f}",
            f"{row['anonymous_bytes'] / 1e6:.0f}",
            f"{row['disk_bytes'] / 1e6:.1f}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    others = [f"- `{name}`: {_number(value)}" for name, value in figures.items() if name != "fleets"]
    return [*rows, "", *others, ""]


def _number(value: float | bool) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3f}"


def _with_unit(value: float, unit: str) -> str:
    return f"{value / 1e6:.2f} MB" if unit == "bytes" else f"{value:.3f} {unit}"


if __name__ == "__main__":
    sys.stdout.write(generate().rstrip("\n") + "\n")
