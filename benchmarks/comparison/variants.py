"""Side-tuning with one setting changed at a time: codecs, and the parts of the side network and of what it reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from safetensors import safe_open

from mobillm_flower.backbones import load_backbone
from mobillm_flower.config import load_settings
from mobillm_flower.core.codecs import CODECS
from mobillm_flower.core.sparse import decode_samples, encode_sample
from mobillm_flower.evaluation.compare.cells import Cell
from mobillm_flower.evaluation.compare.task import IID, ComparedTask
from mobillm_flower.evaluation.device_cost import tokens
from mobillm_flower.evaluation.turns import Report, Table
from mobillm_flower.tasks import load_local_data
from mobillm_flower.tasks.extraction import extraction_spec

Variants = Mapping[str, Mapping[str, str]]

QUANTIZATION: Variants = {
    "none (fp32)": {"activations.codec": "fp32"},
    "fp16": {"activations.codec": "fp16"},
    "fp8": {"activations.codec": "fp8"},
    "int8": {"activations.codec": "int8"},
    "nf4": {},
    "fp4": {"activations.codec": "fp4"},
    "nf4, top 25 %": {"activations.keep": "0.25"},
    "nf4, top 10 %": {"activations.keep": "0.1"},
}
"""Codecs and shares of values kept."""

ABLATION: Variants = {
    "default": {},
    "M = 1": {"activations.num-blocks": "1"},
    "M = 2": {"activations.num-blocks": "2"},
    "M = 3": {"activations.num-blocks": "3"},
    "M = 3, top-heavy": {"activations.num-blocks": "3", "activations.sampling": "top-heavy"},
    "r = 8": {"side-network.bottleneck": "8"},
    "r = 16": {"side-network.bottleneck": "16"},
    "r = 128": {"side-network.bottleneck": "128"},
    "relu": {"side-network.activation": "relu"},
    "silu": {"side-network.activation": "silu"},
    "d = 96": {"side-network.width": "96"},
    "d = 192": {"side-network.width": "192"},
    "pivot first": {"activations.pivot": "first"},
    "pivot mean": {"activations.pivot": "mean"},
    "pivot last": {"activations.pivot": "last"},
    "pivot all": {"activations.pivot": "all"},
    "full alignment": {"side-network.name": "additive"},
    "full alignment, gates held at 1/2": {"side-network.name": "fixed-gates"},
}
"""M blocks, bottleneck r, activation function, side width d, pivot, rank of the alignment, gates."""


def bench_variants(
    name: str,
    task: ComparedTask,
    variants: Variants,
    *,
    seeds: Sequence[int],
    num_devices: int,
    common: Mapping[str, str],
    work: Path,
    say: Callable[[str], None],
) -> Report:
    """Run each variant of `pae` for each seed, IID, and return metric, bytes, operations and parameters.

    Parameters
    ----------
    name : str
        Of the benchmark.
    variants : mapping
        Settings by the variant's name.
    common : mapping
        Settings of all.

    Returns
    -------
    Report
        `figures["variants"]`: by name the settings, the metrics, bytes up a sample, the share ‖x − x̂‖/‖x‖ that its
        codec loses of real activations, megabytes down, and parameters of the side network.
    """
    result: dict[str, Any] = {}
    for variant, changed in variants.items():
        settings = {**common, **changed}
        cells = [Cell(task, "pae", IID, seed, num_devices, "test", settings) for seed in seeds]
        points = [cell.run(work)[-1] for cell in cells]
        with safe_open(work / "cells" / cells[0].key() / "side_network" / "model.safetensors", "pt") as file:
            parameters = sum(file.get_tensor(key).numel() for key in file.keys())  # noqa: SIM118 - it is no mapping
        result[variant] = {
            "settings": dict(changed),
            "metrics": [point.metric for point in points],
            "bytes_a_sample": mean(point.bytes_up / point.samples for point in points),
            "relative_error": relative_error(cells[0], work),
            "mb_down": mean(point.bytes_down for point in points) / 1e6,
            "gflops": mean(point.flops for point in points) / 1e9,
            "parameters": parameters,
        }
        say(f"{variant}: {mean(result[variant]['metrics']):.4f}")
    shared = {"task": task.name, "num_train": task.num_train, "seeds": list(seeds), "num_devices": num_devices}
    report = Report(name, {**shared, "common": dict(common)}, figures={"variants": result})
    columns = ["variant", "metric", "bytes a sample", "error", "MB down", "GFLOP", "parameters"]
    report.tables.append(Table(f"{task.name}: {name}", columns, [_row(*item) for item in result.items()]))
    return report


def relative_error(cell: Cell, work: Path, *, num_samples: int = 64) -> float:
    """Return ‖x − x̂‖/‖x‖ over all values of the first samples' activations, encoded and decoded as the cell does."""
    settings = load_settings(overrides=cell.words(work))
    local = load_local_data(settings, 0, settings.data.num_devices)
    backbone = load_backbone(settings.backbone.name, layers=settings.backbone.layers)
    spec = extraction_spec(backbone.info, settings, num_blocks=settings.activations.num_blocks, num_outputs=1)
    samples = tokens(backbone, local)[:num_samples]
    exact = backbone.extract(samples, layers=spec.layers, pivot=spec.pivot).activations
    codec, width = CODECS[spec.codec], exact[0].shape[-1]
    blobs = [encode_sample(sample, codec, spec.keep) for sample in exact]
    decoded = decode_samples(blobs, [sample.numel() // width for sample in exact], width, codec, spec.keep)
    whole = torch.cat([sample.reshape(-1, width) for sample in exact])
    return float(torch.linalg.vector_norm(decoded.reshape(whole.shape) - whole) / torch.linalg.vector_norm(whole))


def _row(name: str, result: Mapping[str, Any]) -> list[str]:
    metrics = result["metrics"]
    spread = f" ± {stdev(metrics):.4f}" if len(metrics) > 1 else ""
    return [
        name,
        f"{mean(metrics):.4f}{spread}",
        f"{result['bytes_a_sample']:,.0f}",
        f"{result['relative_error']:.3f}",
        f"{result['mb_down']:.2f}",
        f"{result['gflops']:,.0f}",
        f"{result['parameters']:,}",
    ]
