"""A training step on a quiet machine and beside busy processes, as every simulation has them: devices that compute."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.overhead.synthetic import synthetic_spec
from benchmarks.overhead.trainer import fill_cache, train_epoch, training_plan
from mobillm_flower.core.placement import torch_threads
from mobillm_flower.core.targets import predict_square
from mobillm_flower.evaluation.turns import (
    Report,
    Seconds,
    Threshold,
    compare_seconds,
    take_turns,
    timed,
)
from mobillm_flower.server import ActivationCache

BUSY_BAR = 1.5


def bench_neighbours(
    *,
    pairs: int = 10,
    num_samples: int = 4096,
    blocks: int = 6,
    width: int = 384,
    num_classes: int = 12,
    num_threads: int = 1,
    say: Callable[[str], None] = lambda _text: None,
) -> Report:
    """Train an epoch on the quiet machine and one beside a busy process a core, in turns.

    Parameters
    ----------
    pairs : int
        Turns.
    num_samples, blocks, width, num_classes : int
        Samples, M, d_b and K; by default the shape of all-MiniLM-L6-v2 on the package's own data.
    num_threads : int
        torch's threads; 1 is what `trainer.num-threads=0` takes for a network of this size.

    Returns
    -------
    Report
        Bar `busy_ratio`: wall seconds of an epoch beside the busy processes over those without.
    """
    cores = os.cpu_count() or 1
    spin = os.environ.get("GOMP_SPINCOUNT", "")
    shape = {"blocks": blocks, "width": width, "classes": num_classes}
    report = Report(
        "neighbours",
        {
            "samples": num_samples,
            "shape": shape,
            "threads": num_threads,
            "pairs": pairs,
            "spin_count": spin,
            "neighbours": cores,
        },
    )
    spec = synthetic_spec("neighbours", pivot="mean", blocks=blocks, width=width)
    plan = training_plan(spec, num_classes, num_samples, epochs=2 * pairs + 2, num_threads=num_threads)
    with torch_threads(num_threads), tempfile.TemporaryDirectory() as folder:
        cache = ActivationCache(Path(folder) / "cache.sqlite")
        fill_cache(cache, spec, plan.contract, num_samples)
        trainer = plan.trainer(cache, scores=lambda side, base: predict_square(side, base, 1.0), memory_bytes=1 << 40)
        epoch = timed(lambda: train_epoch(trainer))

        def busy() -> Seconds:
            with busy_processes(cores):
                return epoch()

        take_turns({"quiet": epoch}, 1)
        measured = take_turns({"busy": busy, "quiet": epoch}, pairs, say=say)
        cache.close()
    report.comparisons |= {
        f"epoch{clock}": comparison
        for clock, comparison in compare_seconds(measured["busy"], measured["quiet"], "quiet machine").items()
    }
    report.bars["busy_ratio"] = Threshold(report.comparisons["epoch"].ratio, BUSY_BAR, at_most=True)
    return report


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Keep so many processes busy for as long as the context lasts."""
    processes = [
        subprocess.Popen([sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE)
        for _ in range(count)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        yield
    finally:
        for process in processes:
            process.kill()
            process.communicate()
