"""bitsandbytes' functions, imported in a tenth of a second.

Its import wraps four functions by `torch.compile`, none of which is used here, and for that alone torch loads its
compilers: 2.4 s of a core in every process, and a SuperNode starts a process for each message.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def _nothing_is_compiled() -> Iterator[None]:
    def as_it_is(function: Callable[..., Any] | None = None, **_options: Any) -> Any:
        return as_it_is if function is None else function

    compiled = torch.compile
    torch.compile = as_it_is  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compiled


# On processors with AVX512-BF16 it looks for a faster product in a package that is not needed, and warns when imported.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
with _nothing_is_compiled():
    import bitsandbytes.functional as functional

__all__ = ["functional"]
