"""Memory of this process and of the machine, on the device that the backbone runs on."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch


def peak_memory_bytes() -> float:
    """Return the peak memory of this process: on CUDA what torch allocated, otherwise the resident set's peak."""
    if torch.cuda.is_available():
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
