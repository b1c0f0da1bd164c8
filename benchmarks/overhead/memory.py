"""Peak memory of a device: plain inference, side-tuning and ways of training, over models, lengths and batches."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measuring import BenchReport
from benchmarks.overhead.random_models import SHAPES, long_texts, random_opt
from mobillm_flower.backbones.skeleton import skeleton
from mobillm_flower.config import load_settings, to_yaml
from mobillm_flower.errors import RunFailed
from mobillm_flower.evaluation.device_cost import can_measure, peak_bytes
from mobillm_flower.reports.comparison import Table

SIDES = ("plain", "ours", "streamed", "lora", "lora-checkpointed", "bitfit", "full")


def bench_memory(
    *,
    models: Sequence[str] = ("opt-125m", "opt-350m"),
    lengths: Sequence[int] = (128, 256, 512),
    batches: Sequence[int] = (1, 4, 16),
    sides: Sequence[str] = SIDES,
    num_threads: int = 1,
    work: Path,
    say: Callable[[str], None] = lambda _text: None,
) -> BenchReport:
    """Measure each cell in a fresh process: peak bytes above the loaded, idle model (random weights, fp32).

    A side that does not fit into the machine's memory is skipped and named. Finished cells lie in `work`.

    Parameters
    ----------
    models : sequence of str
        Backbones, or names in `SHAPES`.
    lengths, batches : sequence of int
        Tokens of a sample, samples of a batch; every cell is one batch.
    sides : sequence of str
        Of `SIDES`; what they are is said by `mobillm_flower.evaluation.device_cost.peak_bytes`.

    Returns
    -------
    BenchReport
        `figures`: by model `weights_bytes`, of the loaded model, and `batches`: peak bytes by side. A streamed model is
        not loaded; its layers are in its peak.

    Raises
    ------
    RunFailed
        The system cannot reset the peak of a process (not Linux).
    """
    if not can_measure():
        raise RunFailed("the peak of a process can be reset on Linux alone")
    report = BenchReport(
        "memory", {"models": list(models), "dtype": "fp32", "threads": num_threads, "optimizer": "AdamW"}
    )
    for model in models:
        rows: list[dict[str, Any]] = []
        with tempfile.TemporaryDirectory() as folder:
            name = str(random_opt(Path(folder), model)) if model in SHAPES else model
            data = long_texts(Path(folder) / "data", max(batches))
            for length in lengths:
                for batch in batches:
                    found: dict[str, int | None] = {}
                    for side in sides:
                        kept = work / "memory" / _key(model, length, batch, side, num_threads)
                        what = f"{model}, {length} tokens, batch {batch}, {side}"
                        found[side] = _peak(kept, name, data, length, batch, side, num_threads)
                        say(f"{what}: {_text(found[side])}")
                        if found[side] is None:
                            report.skipped[what] = "the process was ended: it does not fit into this machine's memory"
                    rows.append({"length": length, "batch": batch, "peak_bytes": found})
            weights = sum(parameter.nbytes for parameter in skeleton(name)[0].parameters())
        report.figures[model] = {"weights_bytes": weights, "batches": rows}
        table = [[f"{row['length']} × {row['batch']}", *(_text(row["peak_bytes"][s]) for s in sides)] for row in rows]
        loaded = f"the loaded model, {_text(weights)} MB, which a streamed one lacks"
        title = f"{model}: peak MB above {loaded}, by tokens × samples of a batch"
        report.tables.append(Table(title, ["batch", *sides], table))
    return report


def _key(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16] + ".json"


def _peak(kept: Path, backbone: str, data: Path, length: int, batch: int, side: str, num_threads: int) -> int | None:
    if kept.exists():
        value: int | None = json.loads(kept.read_text("utf-8"))
        return value
    settings = load_settings(
        {
            "backbone.name": backbone,
            "backbone.token-budget": length * batch,
            "data.source": str(data),
            "task.max-length": length,
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "settings.yaml").write_text(to_yaml(settings), "utf-8")
        try:
            found: int | None = peak_bytes(Path(folder), side, num_samples=batch, num_threads=num_threads)
        except RunFailed as error:
            if "code -9" not in str(error):  # ended for want of memory
                raise
            found = None
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(found), "utf-8")
    return found


def _text(value: int | None) -> str:
    return "does not fit" if value is None else f"{value / 1e6:,.0f}"
