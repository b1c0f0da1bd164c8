"""Memory of this process and of the machine, and how a backbone runs within it."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

_MMAP_THRESHOLD = -3  # of mallopt: M_MMAP_THRESHOLD


@dataclass(frozen=True)
class MemoryPlan:
    """How a backbone runs within a budget. All sizes are of memory that no file backs (on Linux RssAnon), in bytes.

    Parameters
    ----------
    budget : int
        What the process may take.
    process : int
        What it takes before the model is loaded: Python, torch, the device's own data.
    outer, layer, num_layers : int
        Weights beside the layers and the token table; of the largest layer; how many layers there are.
    whole : int
        What the process would take with the whole model in memory.
    work : int
        Of one batch of `tokens` in one layer.
    tokens : int
        Most tokens of a batch, padding included.
    streamed : bool
        Whether layers come from disk one after the other.
    ahead : bool
        Whether the next layer is read while one computes: two are then in memory.
    hidden : int
        Hidden states of the batches of a pass that stay in memory; larger ones lie in a temporary file.
    """

    budget: int
    process: int
    outer: int
    layer: int
    num_layers: int
    whole: int
    work: int
    tokens: int
    streamed: bool
    ahead: bool
    hidden: int

    def __str__(self) -> str:
        """Return the plan in a sentence or two."""
        taken = f"memory budget {mib(self.budget)}, {mib(self.process)} taken before the model is loaded"
        if not self.streamed:
            return f"whole in memory, about {mib(self.whole)} in all; {self.tokens:,} tokens a batch; {taken}"
        held = "two in memory, the next read ahead" if self.ahead else "one in memory"
        return (
            f"streamed: {self.num_layers} layers of {mib(self.layer)}, {held}; {self.tokens:,} tokens a batch, all "
            f"batches through a layer before the next; hidden states in memory up to {mib(self.hidden)}; {taken}"
        )


def peak_memory_bytes() -> float:
    """Return the peak memory of this process: what torch allocated where it uses CUDA, else the resident set's."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return float(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if status.exists():  # Linux: ru_maxrss would count what the parent held when it started this process
        return float(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    info = psutil.Process().memory_info()
    peak = getattr(info, "peak_wset", None)  # Windows
    if peak is None:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: bytes
    return float(peak)


def available_bytes() -> float:
    """Return the memory that a new process could take: on CUDA the device's, otherwise the machine's."""
    if torch.cuda.is_available():
        return float(torch.cuda.mem_get_info()[0])
    return float(psutil.virtual_memory().available)


def anonymous_bytes() -> int:
    """Return the memory of this process that no file backs (RssAnon); beside Linux its resident set."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("RssAnon:")[1].split()[0]) * 1024
    return int(psutil.Process().memory_info().rss)


def give_back_at_once() -> None:
    """Let the allocator of this process give freed blocks of 1 MiB and more back to the system at once (glibc).

    Otherwise it keeps up to 32 MiB of each size that was ever freed: 150 MB of a streamed pass of OPT-1.3B.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 1 << 20)


def keep_few_kernels() -> None:
    """Let oneDNN keep what it made for the last 16 shapes of a product, in place of 1,024, in this process.

    Torch computes with it in bf16, and it makes 0.4 MB of code and packed data for each product of each new shape of a
    batch. A forward pass uses few, and comes back to few. It holds if nothing was computed with oneDNN before; a value
    that the user gave to ``ONEDNN_PRIMITIVE_CACHE_CAPACITY`` stays.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")


def mib(size: float) -> str:
    """Return a size as text, in MiB."""
    return f"{size / (1 << 20):,.0f} MiB"
