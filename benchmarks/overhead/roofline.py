"""The server's work beside what the processor could do: its operations and bytes against time (a roofline)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measuring import BenchReport, Seconds, compare_seconds, take_turns, timed
from benchmarks.overhead.synthetic import synthetic_spec
from benchmarks.overhead.trainer import BareLoop, fill_cache, train_epoch, training_plan
from mobillm_flower.core.codecs import CODECS
from mobillm_flower.core.sparse import decode_samples
from mobillm_flower.core.targets import predict_square
from mobillm_flower.reports.comparison import Table
from mobillm_flower.server import ActivationCache
from mobillm_flower.server.batches import BatchLoader

_SIDE = 1024
"""Rows and columns of the product that gives the processor's peak."""
_COPIED = 64 << 20
"""Bytes of the copy that gives its bandwidth: larger than its caches."""
_STEP_PASSES = 14
"""Times that a step reads or writes a parameter's bytes: the forward and backward pass read it; the gradient is
written, read and rewritten by clipping, and read by AdamW, which reads and writes weight and both moments; averaging
reads the weight, and reads and writes the average."""


@dataclass(frozen=True)
class Work:
    """What a call must do at least.

    Parameters
    ----------
    flops : float
        Floating-point operations.
    moved : float
        Bytes read and written.
    """

    flops: float
    moved: float


def server_roofline(
    report: BenchReport,
    *,
    pairs: int,
    num_samples: int = 1024,
    blocks: int = 6,
    width: int = 384,
    num_classes: int = 12,
    say: Callable[[str], None] = lambda _text: None,
) -> None:
    """Add how near the decoding of samples and an epoch of training come to this processor's limits.

    The bound of a call is the longer of its operations at the speed of a large product, and of its bytes at the speed
    of a large copy, both measured in the same turns. Comparisons: the epoch with `torch.compile` beside the same
    without.

    Parameters
    ----------
    report : BenchReport
        To which it is added.
    pairs : int
        Turns.
    num_samples, blocks, width, num_classes : int
        Samples, M, d_b and K; by default the shape of all-MiniLM-L6-v2 on the package's own data.
    """
    spec = synthetic_spec("roofline", pivot="first+mean", blocks=blocks, width=width)
    threads = torch.get_num_threads()
    plan = training_plan(spec, num_classes, num_samples, epochs=2 * pairs + 4, num_threads=threads)
    with tempfile.TemporaryDirectory() as folder:
        cache = ActivationCache(Path(folder) / "cache.sqlite")
        fill_cache(cache, spec, plan.contract, num_samples)
        trainer = plan.trainer(cache, scores=lambda side, base: predict_square(side, base, 1.0), memory_bytes=1 << 40)
        bare, compiled = BareLoop(plan, trainer), BareLoop(plan, trainer)
        compiled.network.compile(dynamic=True)
        fresh = BatchLoader(cache, plan.specs, plan.contract, memory_bytes=0)
        rows = cache.rows()
        blobs = [activations for activations, _ in cache.read(row.id for row in rows)]
        counts = [spec.vectors_per_row] * num_samples
        left, right = torch.randn(_SIDE, _SIDE), torch.randn(_SIDE, _SIDE)
        source, target = torch.empty(_COPIED, dtype=torch.uint8), torch.empty(_COPIED, dtype=torch.uint8)
        decoded = 4 * num_samples * spec.vectors_per_row * spec.row_shape[-1]
        packed = sum(map(len, blobs))
        weights = 4 * sum(parameter.numel() for parameter in trainer.network.parameters())
        steps = -(-num_samples // plan.options.batch_size)
        work: Mapping[str, Work] = {
            "decode": Work(0, packed + decoded),
            "read and decode": Work(0, 2 * packed + 2 * decoded),
            "train": Work(_flops(lambda: train_epoch(trainer)), steps * _STEP_PASSES * weights + 2 * decoded),
        }
        sides = {
            "product": timed(lambda: left @ right),
            "copy": timed(lambda: target.copy_(source)),
            "decode": timed(lambda: decode_samples(blobs, counts, spec.row_shape[-1], CODECS[spec.codec], spec.keep)),
            "read and decode": timed(lambda: fresh.load(rows)),
            "train": timed(lambda: train_epoch(trainer)),
            "bare": timed(bare.epoch),
            "compiled": timed(compiled.epoch),
        }
        take_turns(sides, 1)
        say("the server's work")
        found = take_turns(sides, pairs, say=say)
        cache.close()
    _add(report, found, work, threads)


def _add(report: BenchReport, found: Mapping[str, list[Seconds]], work: Mapping[str, Work], threads: int) -> None:
    seconds = {name: median(one.cpu for one in times) for name, times in found.items()}
    flops_s, bytes_s = 2 * _SIDE**3 / seconds["product"], 2 * _COPIED / seconds["copy"]
    report.figures |= {
        "server_peak_gflops": flops_s / 1e9,
        "server_copy_gb_s": bytes_s / 1e9,
        "server_threads": threads,
    }
    table = []
    for name, least in work.items():
        bound = max(least.flops / flops_s, least.moved / bytes_s)
        report.figures[f"server_{name.replace(' ', '_')}"] = {
            "gflop": least.flops / 1e9,
            "moved_mb": least.moved / 1e6,
            "bound_s": bound,
            "seconds": seconds[name],
            "share_of_bound": bound / seconds[name],
        }
        values = [least.flops / 1e9, least.moved / 1e6, 1e3 * bound, 1e3 * seconds[name], bound / seconds[name]]
        table.append([name, *(f"{value:.3g}" for value in values)])
    columns = ["work", "GFLOP", "MB moved", "bound, ms", "measured, ms", "share"]
    title = f"The server's work beside {flops_s / 1e9:.0f} GFLOP/s and {bytes_s / 1e9:.1f} GB/s (processor seconds)"
    report.tables.append(Table(title, columns, table))
    for ending, comparison in compare_seconds(found["compiled"], found["bare"], "not compiled").items():
        report.comparisons[f"server_compiled_epoch{ending}"] = comparison


def _flops(call: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())
