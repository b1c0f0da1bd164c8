"""How large the work of the GPU benchmark is, and how a GPU's time and memory are measured."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.measuring import take_turns


@dataclass(frozen=True)
class Scale:
    """How large the work is: `FULL` on a GPU, `TINY` where only the script itself is tried.

    Parameters
    ----------
    shape : str
        A name in `random_models.SHAPES`.
    layers, batch, length : int
        Of the device's forward pass; 0 layers: all.
    dtype : torch.dtype
        Of the backbone.
    repeats : int
        Turns.
    samples : int
        Of the server's epoch.
    vocabulary, tokens : int
        Of the language-model head.
    rows, width : int
        n and D of the closed form.
    """

    shape: str
    layers: int
    batch: int
    length: int
    dtype: torch.dtype
    repeats: int
    samples: int
    vocabulary: int
    tokens: int
    rows: int
    width: int


FULL = Scale("opt-1.3b", 0, 8, 512, torch.bfloat16, 10, 4096, 150_000, 4096, 100_000, 4_608)
TINY = Scale("opt-125m", 2, 2, 16, torch.float32, 2, 64, 1_000, 32, 300, 64)


def device() -> torch.device:
    """Return the GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def clocked(work: Callable[[], object]) -> float:
    """Return a call's seconds, on a GPU by the device's own events."""
    if not torch.cuda.is_available():
        began = time.perf_counter()
        work()
        return time.perf_counter() - began
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def in_turns(sides: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Return each side's seconds, taken in turns after one turn that is not counted."""
    clocks = {name: partial(clocked, work) for name, work in sides.items()}
    take_turns(clocks, 1)
    return take_turns(clocks, repeats)


def peak(work: Callable[[], object]) -> int:
    """Return the bytes that a call allocates on the GPU at most, above what is there before it; 0 without a GPU."""
    if not torch.cuda.is_available():
        return 0
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated() - before)
