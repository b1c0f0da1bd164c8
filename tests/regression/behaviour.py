"""Hashes of what small runs train, as JSON: equal before and after a change that is meant to change nothing.

    PYTHONPATH=. python -m tests.regression.behaviour [--demo] > after.json

On one machine and one set of libraries they are the same each time. On another machine rounding may differ, and so
may all of them; `behaviour.json` is what one machine had, and no test reads it.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from flwr.app import ArrayRecord
from safetensors.torch import load_file

import mobillm_flower
from tests.regression.small_runs import RUNS, make_workplace, small_run
from tests.unit.wire import test_golden_packet

ROOT = Path(__file__).parents[2]


def main() -> None:
    """Print everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", action="store_true", help="run examples/quickstart, too: about a minute")
    assert Path(mobillm_flower.__file__).is_relative_to(ROOT), (
        "another copy of the package is in the way: set PYTHONPATH"
    )
    with_demo = parser.parse_args().demo
    torch.set_num_threads(1)
    found: dict[str, Any] = {"machine": machine(), "packets": packets(), "runs": {}}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        workplace = make_workplace(Path(folder))
        for name in RUNS:
            sys.stderr.write(f"{name}\n")
            found["runs"][name] = of_side_network(small_run(name, workplace) / "side_network")
        if with_demo:
            sys.stderr.write("demo\n")
            found["demo"] = demo(Path(folder) / "demo")
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


def machine() -> dict[str, str]:
    """What rounding depends on."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text("utf-8").splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def packets() -> dict[str, str]:
    """A window as the package packs it, and as it is pinned."""
    return {"packed": of_records(test_golden_packet.packed()), "golden": of_records(test_golden_packet.golden())}


def of_records(content: Any) -> str:
    """Hash a RecordDict, in the order of names."""
    digest = hashlib.sha256()
    for name, record in sorted(content.items()):
        for key, value in sorted(record.items()):
            if isinstance(record, ArrayRecord):
                described = f"{value.dtype} {value.shape} {value.stype} {hashlib.sha256(value.data).hexdigest()}"
            else:
                described = repr(value)
            digest.update(f"{name} {key} {described}\n".encode())
    return digest.hexdigest()


def of_side_network(folder: Path) -> dict[str, str]:
    """Hash a saved side network: its weights' bytes in the order of their names, and what is saved beside them."""
    digest = hashlib.sha256()
    for _, tensor in sorted(load_file(folder / "model.safetensors").items()):
        digest.update(tensor.contiguous().numpy().tobytes())
    return {"weights": digest.hexdigest(), "config": hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()}


def demo(folder: Path) -> dict[str, str]:
    """Hash what the quickstart trains by steps, as it did when these hashes were made, run as from a shell."""
    command = [
        str(Path(sys.executable).with_name("mobillm")),
        "run",
        "examples/quickstart",
        "--no-references",
        "--json",
        *("-c", "side-network.name=additive", "-c", "activations.pivot=first+mean"),
    ]
    environment = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "FLWR_HOME": str(folder / "flwr"),
        "MOBILLM_HOME": str(folder / "mobillm"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "OMP_NUM_THREADS": "1",
    }
    subprocess.run(
        [*command, "-c", "trainer.num-threads=1", "--out", str(folder / "run")],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=sys.stderr,
        check=True,
    )
    return of_side_network(folder / "run" / "side_network")


if __name__ == "__main__":
    main()
