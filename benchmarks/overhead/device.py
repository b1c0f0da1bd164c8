"""A device's forward pass beside the bare backbone: seconds in turns, peak memory in fresh processes."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.overhead.random_models import SHAPES, random_opt
from mobillm_flower.backbones import Backbone, load_backbone
from mobillm_flower.config import Settings, load_settings, to_yaml
from mobillm_flower.core.placement import torch_threads
from mobillm_flower.evaluation.device_cost import can_measure, peak_bytes, tokens
from mobillm_flower.evaluation.turns import (
    Comparison,
    Report,
    Threshold,
    compare_seconds,
    take_turns,
    timed,
)
from mobillm_flower.tasks import load_local_data
from mobillm_flower.tasks.extraction import extraction_spec
from mobillm_flower.wire.contract import ExtractionSpec

FORWARD_BAR, MEMORY_BAR = 1.05, 1.10
Say = Callable[[str], None]


def bench_device(
    *,
    backbone: str = "minilm",
    layers: int = 0,
    pairs: int = 10,
    num_samples: int = 256,
    num_threads: int = 1,
    memory: bool = True,
    say: Say = lambda _text: None,
) -> Report:
    """Measure what pivots, hooks, batching and encoding cost beside the bare, truncated backbone.

    Parameters
    ----------
    backbone, layers : str, int
        A backbone's name, or one of `SHAPES`; how many of its layers (0: all).
    pairs : int
        Turns.
    num_samples : int
        Texts of the package's own data, `phone-messages`.
    memory : bool
        Whether to measure memory too: four fresh processes a turn.

    Returns
    -------
    Report
        Bars `forward_ratio` (`Backbone.extract` over the bare model on the same padded batches, made before) and
        `memory_ratio` (a device's whole window over the bare model, above the loaded model).
    """
    with tempfile.TemporaryDirectory() as folder, torch_threads(num_threads):
        path = Path(folder)
        name = str(random_opt(path, backbone)) if backbone in SHAPES else backbone
        settings = load_settings(
            {
                "backbone.name": name,
                "backbone.layers": layers,
                "data.label-column": "intent",
                "data.max-samples": num_samples,
            }
        )
        (path / "settings.yaml").write_text(to_yaml(settings), "utf-8")
        loaded = load_backbone(name, layers=layers, token_budget=settings.backbone.token_budget)
        data = load_local_data(settings, 0, 1)
        samples = tokens(loaded, data)
        spec = extraction_spec(loaded.info, settings, num_blocks=settings.activations.num_blocks, num_outputs=1)
        report = Report("device", _describe(backbone, loaded, samples, spec, settings))
        report.settings |= {"threads": num_threads, "pairs": pairs}
        _forward_seconds(report, loaded, samples, spec, pairs=pairs, say=say)
        del loaded
        if not memory:
            report.skipped["memory"] = "not asked for"
        elif not can_measure():
            report.skipped["memory"] = "the peak of a process can be reset on Linux alone"
        else:
            _memory(report, path, pairs=pairs, num_samples=num_samples, num_threads=num_threads, say=say)
    return report


def _forward_seconds(
    report: Report,
    backbone: Backbone,
    samples: list[dict[str, list[int]]],
    spec: ExtractionSpec,
    *,
    pairs: int,
    say: Say,
) -> None:
    batches = list(backbone.padded_batches(samples))

    def ours() -> None:
        backbone.extract(samples, layers=spec.layers, pivot=spec.pivot)  # ends on the CPU

    @torch.inference_mode()
    def bare() -> None:
        for inputs in batches:
            backbone.model(**inputs)
        if backbone.device.type == "cuda":
            torch.cuda.synchronize()

    sides = {"ours": timed(ours), "bare": timed(bare)}
    take_turns(sides, 1)  # so that neither side pays for being first
    say("seconds")
    found = take_turns(sides, pairs, say=say)
    for ending, comparison in compare_seconds(found["ours"], found["bare"], "bare backbone").items():
        report.comparisons[f"forward{ending}"] = comparison
    report.bars["forward_ratio"] = Threshold(report.comparisons["forward"].ratio, FORWARD_BAR, at_most=True)


def _memory(report: Report, path: Path, *, pairs: int, num_samples: int, num_threads: int, say: Say) -> None:
    names = ["ours", "plain", "hidden-states"]
    if importlib.util.find_spec("peft") is None:
        report.skipped["lora"] = "peft is not installed: pip install 'mobillm-flower[bench]'"
    else:
        names.append("lora")

    def side(name: str) -> Callable[[], float]:
        return lambda: float(peak_bytes(path, name, num_samples=num_samples, num_threads=num_threads))

    say("memory, each side in a fresh process")
    found = take_turns({name: side(name) for name in names}, pairs, say=say)
    report.comparisons["memory"] = Comparison("bytes", found["ours"], found["plain"], "bare backbone")
    for name in names[2:]:
        report.comparisons[f"memory_beside_{name}"] = Comparison("bytes", found["ours"], found[name], name)
    report.bars["memory_ratio"] = Threshold(report.comparisons["memory"].ratio, MEMORY_BAR, at_most=True)


def _describe(
    name: str, backbone: Backbone, samples: list[dict[str, list[int]]], spec: ExtractionSpec, settings: Settings
) -> dict[str, object]:
    lengths = [len(sample["input_ids"]) for sample in samples]
    return {
        "backbone": name,
        "family": backbone.info.family,
        "layers": backbone.info.depth,
        "width": backbone.info.width,
        "dtype": backbone.info.precision,
        "device": str(backbone.device),
        "sampled_layers": list(spec.layers),
        "pivot": spec.pivot,
        "codec": spec.codec,
        "data": settings.data.source,
        "samples": len(samples),
        "tokens": sum(lengths),
        "longest": max(lengths),
        "max_length": settings.task.max_length,
        "token_budget": backbone.token_budget,
        "batches": [list(inputs["input_ids"].shape) for inputs in backbone.padded_batches(samples)],
        "lora": "r=8, query and value, one AdamW step a batch",
    }
