"""How small a device may be, and how fast: memory below the model's own size, what that costs, engines compared."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.overhead.engines import compare_engines, compare_metrics
from benchmarks.overhead.pipeline import window_beside_forward
from benchmarks.overhead.random_models import random_opt
from benchmarks.overhead.roofline import server_roofline
from mobillm_flower.backbones import plan_memory
from mobillm_flower.core.placement import torch_threads
from mobillm_flower.evaluation.turns import (
    Report,
    Seconds,
    Table,
    Threshold,
    compare_seconds,
    run_fresh,
    take_turns,
)

_MB = 1e6
_BUDGETS = {"bf16": (900, 1.0), "nf4": (640, 0.7)}  # MiB that are set, and GB that are not to be passed


def bench_limit(
    *,
    parts: Sequence[str] = (),
    pairs: int = 10,
    num_threads: int = 1,
    folder: Path | None = None,
    say: Callable[[str], None] = lambda _text: None,
) -> Report:
    """Measure parts of `PARTS`, by default all of them.

    Parameters
    ----------
    parts : sequence of str
        Names in `PARTS`.
    pairs : int
        Turns of what is measured in turns.
    num_threads : int
        Threads of torch.
    folder : Path, optional
        Where to put models with random weights, about 6 GB; by default with temporary files. What is there is kept.
    """
    report = Report("limit", {"threads": num_threads, "parts": list(parts or PARTS)})
    with tempfile.TemporaryDirectory() as temporary:
        setting = Setting(folder or Path(temporary), pairs, num_threads, say)
        for name in parts or PARTS:
            PARTS[name](report, setting)
    return report


@dataclass(frozen=True)
class Setting:
    """What the parts share; see `bench_limit`."""

    folder: Path
    pairs: int
    num_threads: int
    say: Callable[[str], None]

    def model(self, shape: str, dtype: torch.dtype, copy: str = "") -> str:
        """Return the folder of a model of a shape in `SHAPES` with random weights, made where it is not there yet."""
        made = self.folder / f"{str(dtype).removeprefix('torch.')}{copy}" / shape
        if not (made / "tokenizer.json").exists():
            self.say(f"making {shape} with random weights in {made.parent.name}")
            random_opt(made.parent, shape, dtype=dtype)
        return str(made)

    def one_pass(self, request: Mapping[str, object]) -> dict[str, Any]:
        """Run `benchmarks.overhead.one_pass` in a fresh process; packed layers are kept in the folder."""
        environment = {"OMP_NUM_THREADS": str(self.num_threads), "XDG_CACHE_HOME": str(self.folder / "cache")}
        return run_fresh("benchmarks.overhead.one_pass", json.dumps(request), environment=environment)


def _memory(report: Report, setting: Setting) -> None:
    """OPT-1.3B's shape, bf16 on disk, 16 samples of 256 tokens, all layers: peak RssAnon of a fresh process."""
    backbone = setting.model("opt-1.3b", torch.bfloat16)
    rows = []
    for precision, (budget_mib, bar) in _BUDGETS.items():
        request = {
            "backbone": backbone,
            "precision": precision,
            "budget_mib": budget_mib,
            "num_samples": 16,
            "tokens": 256,
            "threads": setting.num_threads,
        }
        found = setting.one_pass(request)
        if precision != "bf16":  # that process packed the layers; the next one finds them
            report.figures[f"opt-1.3b_{precision}_packing"] = found
            found = setting.one_pass(request)
        setting.say(f"{precision}: {found['peak_bytes'] / _MB:,.0f} MB; {found['plan']}")
        report.figures[f"opt-1.3b_{precision}"] = found
        report.bars[f"opt-1.3b_{precision}_peak_anonymous_gb"] = Threshold(found["peak_bytes"] / 1e9, bar, at_most=True)
        sizes = [found[name] for name in ("idle_bytes", "loading_peak_bytes", "peak_bytes", "resident_set_peak_bytes")]
        rows.append([precision, str(budget_mib), *(f"{size / _MB:,.0f}" for size in sizes)])
    columns = ["precision", "budget, MiB", "Python and torch", "while loading", "peak", "VmHWM"]
    report.tables.append(Table("OPT-1.3B streamed, 16 samples of 256 tokens: MB of RssAnon", columns, rows))


def _streaming(report: Report, setting: Setting) -> None:
    """OPT-350M's shape, fp32, 64 samples of 64 tokens: seconds streamed beside in memory, page cache warm and cold.

    Each in a fresh process, since streaming sets the allocator of its process.
    """
    backbone = setting.model("opt-350m", torch.float32)
    whole = plan_memory(backbone, budget_mib=1 << 20, max_length=64).whole >> 20
    request = {"backbone": backbone, "precision": "fp32", "num_samples": 64, "tokens": 64}
    request |= {"threads": setting.num_threads, "budget_mib": 0, "cold": False}

    def side(**changes: object) -> Callable[[], Seconds]:
        def run() -> Seconds:
            found = setting.one_pass({**request, **changes})
            return Seconds(found["seconds"], found["cpu_seconds"])

        return run

    streamed = {"budget_mib": whole // 2}
    sides = {"streamed": side(**streamed), "cold": side(**streamed, cold=True), "resident": side()}
    found = take_turns(sides, setting.pairs, say=setting.say)
    for name in ("streamed", "cold"):
        for ending, comparison in compare_seconds(found[name], found["resident"], "in memory").items():
            report.comparisons[f"opt-350m_{name}_seconds{ending}"] = comparison
    ratio = report.comparisons["opt-350m_streamed_seconds"].ratio
    report.bars["opt-350m_streamed_over_in_memory"] = Threshold(ratio, 1.3, at_most=True)


def _engines(report: Report, setting: Setting) -> None:
    """MiniLM's forward pass on each engine, beside torch in fp32."""
    with torch_threads(setting.num_threads):
        compare_engines(report, pairs=setting.pairs, say=setting.say)


def _engine_metrics(report: Report, setting: Setting) -> None:
    """Accuracy that side-tuning reaches with each engine's activations."""
    with torch_threads(setting.num_threads):
        compare_metrics(report, say=setting.say)


def _pipeline(report: Report, setting: Setting) -> None:
    """Set a device's whole window beside its forward passes."""
    with torch_threads(setting.num_threads):
        window_beside_forward(report, pairs=setting.pairs, say=setting.say)


def _server(report: Report, setting: Setting) -> None:
    """Set the server's decoding and training beside the processor's limits, and try `torch.compile`."""
    with torch_threads(setting.num_threads):
        server_roofline(report, pairs=setting.pairs, say=setting.say)


PARTS: Mapping[str, Callable[[Report, Setting], None]] = {
    "memory": _memory,
    "streaming": _streaming,
    "engines": _engines,
    "engine-metrics": _engine_metrics,
    "pipeline": _pipeline,
    "server": _server,
}
"""What is measured, by name: each part adds its figures to the report."""
