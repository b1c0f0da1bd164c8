"""Where tensors are computed on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

CPU = torch.device("cpu")


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; to CUDA from pinned memory, so that the copy runs beside what is computed there."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
