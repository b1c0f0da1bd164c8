"""How small a device may be: a forward pass below the model's own size, its memory and what it costs in time.

`python -m mobillm_flower.bench.limit REQUEST` runs one forward pass in this process and prints one JSON line.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from mobillm_flower.backbones import load_backbone, plan_memory
from mobillm_flower.bench.pairs import status_bytes
from mobillm_flower.bench.random_models import random_tokens

_MB = 1e6
_EVERY_S = 0.002


@contextmanager
def anonymous_peak() -> Iterator[list[int]]:
    """Yield a list whose one entry is the most RssAnon of this process so far, looked at every two milliseconds."""
    peak, done = [status_bytes("RssAnon")], threading.Event()

    def look() -> None:
        while not done.wait(_EVERY_S):
            peak[0] = max(peak[0], status_bytes("RssAnon"))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def _main(request: dict[str, Any]) -> int:
    """Load a backbone within a budget and run samples forward; prints what the process took."""
    torch.set_num_threads(request["threads"])
    samples = random_tokens(request["num_samples"], request["tokens"])
    idle = status_bytes("RssAnon")
    with anonymous_peak() as peak:
        plan = None
        if request["budget_mib"]:
            plan = plan_memory(
                request["backbone"],
                budget_mib=request["budget_mib"],
                layers=request["layers"],
                precision=request["precision"],
                max_length=request["tokens"],
            )
        backbone = load_backbone(
            request["backbone"], layers=request["layers"], precision=request["precision"], device="cpu", plan=plan
        )
        loaded, started = peak[0], time.perf_counter()
        layers = range(1, backbone.info.depth + 1)
        found = backbone.extract(samples, layers=layers, pivot=backbone.info.default_pivot)
        seconds = time.perf_counter() - started
    answer = {
        "idle_bytes": idle,
        "loading_peak_bytes": loaded,
        "peak_bytes": peak[0],
        "resident_set_peak_bytes": status_bytes("VmHWM"),
        "seconds": seconds,
        "plan": str(plan or "no budget"),
        "samples": len(found.activations),
    }
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(_main(json.loads(sys.argv[1])))
