"""One forward pass within a memory budget, in this process: what it takes. Imports no more than a backbone needs.

`python -m benchmarks.overhead.one_pass REQUEST` prints one JSON line.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mobillm_flower.backbones import load_backbone, plan_memory
from mobillm_flower.evaluation.fresh_process import status_bytes

_EVERY_S = 0.002


def random_tokens(count: int, length: int) -> list[dict[str, list[int]]]:
    """Return tokenized samples of exactly `length` tokens, as `Backbone.tokenize` does."""
    drawn = torch.randint(3, 4096, (count, length), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row} for row in drawn.tolist()]


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
                layers=request.get("layers", 0),
                precision=request["precision"],
                max_length=request["tokens"],
            )
        backbone = load_backbone(
            request["backbone"],
            layers=request.get("layers", 0),
            precision=request["precision"],
            device="cpu",
            plan=plan,
        )
        loaded = peak[0]
        backbone.extract(samples[:1], layers=[backbone.info.depth], pivot="last")  # libraries warm up
        if request.get("cold"):
            _drop(Path(request["backbone"]))
        started, used = time.perf_counter(), time.process_time()
        sampled = range(1, backbone.info.depth + 1)
        found = backbone.extract(samples, layers=sampled, pivot=backbone.info.default_pivot)
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - used
    answer = {
        "idle_bytes": idle,
        "loading_peak_bytes": loaded,
        "peak_bytes": peak[0],
        "resident_set_peak_bytes": status_bytes("VmHWM"),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "plan": str(plan or "no budget"),
        "samples": len(found.activations),
    }
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


def _drop(folder: Path) -> None:
    """Let the system forget what it keeps in memory of a folder's weights, so that they come from the disk."""
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    sys.exit(_main(json.loads(sys.argv[1])))
