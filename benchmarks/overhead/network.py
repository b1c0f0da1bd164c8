"""Where transmission eats the gain: seconds a batch over uplinks, with and without overlap, beside a LoRA step.

Measured: seconds of the forward pass and of the LoRA step, bytes really encoded. Modelled: the uplink.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.overhead.random_models import SHAPES, long_texts, random_opt
from mobillm_flower.backbones import load_backbone
from mobillm_flower.config import Settings, load_settings, to_yaml
from mobillm_flower.core.codecs import CODECS
from mobillm_flower.core.sparse import encode_sample
from mobillm_flower.evaluation.device_cost import tokens, work_seconds
from mobillm_flower.evaluation.turns import Report, Table
from mobillm_flower.tasks import load_local_data
from mobillm_flower.tasks.extraction import extraction_spec

UPLOADS: Mapping[str, Mapping[str, str]] = {
    "pivot, nf4": {"activations.codec": "nf4"},
    "all tokens, nf4": {"activations.codec": "nf4", "activations.pivot": "all"},
    "all tokens, fp16": {"activations.codec": "fp16", "activations.pivot": "all"},
}
"""What is uploaded: our default, MobiLLM's every token in NF4, and as the paper's full precision is sent."""


def bench_network(
    *,
    backbone: str = "opt-125m",
    length: int = 128,
    batches: Sequence[int] = (12, 16, 20, 24, 30),
    uplinks: Sequence[float] = (1, 10, 60, 100),
    turns: int = 3,
    slowdown: float = 1.0,
    num_threads: int = 1,
    say: Callable[[str], None] = lambda _text: None,
) -> Report:
    """Return seconds a batch for each upload, batch size and uplink (Mbit/s).

    Parameters
    ----------
    backbone : str
        A backbone's name, or a shape of OPT with random weights.
    length : int
        Tokens of each sample.
    turns : int
        Repetitions of what is measured, forward pass and LoRA step in turns, in fresh processes.
    slowdown : float
        Modelled: how many times as long as this machine the device computes.
    """
    settings = {"backbone": backbone, "length": length, "turns": turns, "slowdown": slowdown, "threads": num_threads}
    report = Report("network", {**settings, "uplinks_mbit": list(uplinks)})
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        name = str(random_opt(path, backbone)) if backbone in SHAPES else backbone
        data = long_texts(path / "data", max(batches))
        for batch in batches:
            made = {
                "backbone.name": name,
                "backbone.token-budget": length * batch,
                "data.source": str(data),
                "task.max-length": length,
            }
            (path / "settings.yaml").write_text(to_yaml(load_settings(made)), "utf-8")
            seconds: dict[str, list[float]] = {"plain": [], "lora": []}
            for _ in range(turns):
                for side, found in seconds.items():
                    found.append(work_seconds(path, side, num_samples=batch, num_threads=num_threads))
            sizes = {upload: _bytes(load_settings({**made, **words}), batch) for upload, words in UPLOADS.items()}
            rows.append({"batch": batch, "bytes": sizes, "seconds": seconds})
            say(f"batch {batch}: forward {median(seconds['plain']):.2f} s, LoRA step {median(seconds['lora']):.2f} s")
    report.figures["batches"] = rows
    for upload in UPLOADS:
        report.tables.append(_table(upload, rows, uplinks, slowdown))
    return report


def _bytes(settings: Settings, batch: int) -> int:
    """Return the bytes of a batch's encoded activations."""
    data = load_local_data(settings, 0, 1)
    loaded = load_backbone(settings.backbone.name, token_budget=settings.backbone.token_budget)
    spec = extraction_spec(loaded.info, settings, num_blocks=settings.activations.num_blocks, num_outputs=1)
    found = loaded.extract(tokens(loaded, data)[:batch], layers=spec.layers, pivot=spec.pivot)
    return sum(len(encode_sample(sample, CODECS[spec.codec], spec.keep)) for sample in found.activations)


def _table(upload: str, rows: Sequence[Mapping[str, Any]], uplinks: Sequence[float], slowdown: float) -> Table:
    columns = ["batch", "KB", "forward s", "LoRA step s", "equal at Mbit/s"]
    for uplink in uplinks:
        columns += [f"{uplink:g} Mbit/s: overlapped", "one after the other"]
    lines = []
    for row in rows:
        forward, lora = (slowdown * median(row["seconds"][side]) for side in ("plain", "lora"))
        bits = 8 * row["bytes"][upload]
        line = [str(row["batch"]), f"{bits / 8e3:,.0f}", f"{forward:.2f}", f"{lora:.2f}", f"{bits / 1e6 / lora:.3g}"]
        for uplink in uplinks:
            sending = bits / 1e6 / uplink
            line += [f"{max(forward, sending):.2f}", f"{forward + sending:.2f}"]
        lines.append(line)
    return Table(f"{upload}: seconds a batch, beside training LoRA on the device", columns, lines)
