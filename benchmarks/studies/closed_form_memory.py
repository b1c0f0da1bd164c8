"""The memory of a closed form from many rows: it does not grow with them.

    .venv/bin/python -m benchmarks.studies.closed_form_memory --json benchmarks/results/closed_form_memory.json

Each size is a process of its own, on one thread. Rows are drawn in parts, as a cache gives them. Peak: the most
resident memory (VmHWM) less what is resident before the first part. Results that are in the file are kept.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from mobillm_flower.core.side_networks.ridge import HELD_OUT, Ridge
from mobillm_flower.evaluation.fresh_process import status_bytes

PART = 1024
SIZES = ((10_000, 1920, 10), (20_000, 4608, 10), (100_000, 4608, 10))  # n, D, K


def bound(rows: int, width: int) -> int:
    """Return the bytes that a fit of more rows than columns may take."""
    return 32 * width**2 + 36 * width * min(rows, max(width, HELD_OUT))


def measure(rows: int, width: int, outputs: int) -> dict[str, Any]:
    """Solve for random rows; return the peak and the processor's seconds."""
    torch.set_num_threads(1)
    torch.linalg.cholesky(torch.eye(8).double())  # loads the library
    generator, idle, started = torch.Generator().manual_seed(0), status_bytes("VmRSS"), time.process_time()
    ridge = Ridge(width, outputs)
    for start in range(0, rows, PART):
        part = torch.randn(min(PART, rows - start), width, generator=generator)
        ridge.add(
            part,
            part[:, :outputs] + 0.5 * torch.randn(len(part), outputs, generator=generator),
            part.new_ones(len(part)),
        )
    solution = ridge.solve()
    return {
        "rows": rows,
        "columns": width,
        "outputs": outputs,
        "peak_bytes": status_bytes("VmHWM") - idle,
        "bound_bytes": bound(rows, width),
        "seconds": round(time.process_time() - started, 1),
        "largest_error": float((solution.weight[:, :outputs] - torch.eye(outputs)).abs().max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--size", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.size:
        print(json.dumps(measure(*map(int, arguments.size.split(",")))))
        return
    out = json.loads(arguments.json.read_text()) if arguments.json.exists() else []
    for size in SIZES:
        if [size[0], size[1]] in [[row["rows"], row["columns"]] for row in out]:
            continue
        command = [sys.executable, "-m", __spec__.name, "--json", "-", "--size", ",".join(map(str, size))]
        out.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        print(out[-1], flush=True)
        arguments.json.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
