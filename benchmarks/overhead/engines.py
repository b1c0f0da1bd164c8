"""Engines beside one another: seconds in turns, what bounds them, and the metric of what is trained on each."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch
from torch import nn

from mobillm_flower.backbones import Backbone, load_backbone
from mobillm_flower.clients.device import Device
from mobillm_flower.clients.releases import make_window
from mobillm_flower.config import Settings, load_settings
from mobillm_flower.evaluation.device_cost import tokens
from mobillm_flower.evaluation.turns import Report, Seconds, Table, Threshold, compare_seconds, take_turns, timed
from mobillm_flower.models.side_tuned import SideTunedModel
from mobillm_flower.privacy.device_folder import DeviceFolder
from mobillm_flower.server import ActivationCache
from mobillm_flower.strategies.run_plan import make_plan, prediction_rule
from mobillm_flower.tasks import LocalData, load_central_data, load_local_data
from mobillm_flower.tasks.extraction import extraction_spec

ENGINES: Mapping[str, Mapping[str, Any]] = {
    "torch fp32": {},
    "torch bf16": {"backbone.precision": "bf16"},
    "onnx fp32": {"backbone.engine": "onnx"},
    "onnx int8": {"backbone.engine": "onnx", "backbone.precision": "int8"},
}
"""Settings by name; the first is what the others stand beside."""

BEST_BAR, FP32_BAR, METRIC_BAR = 1.8, 1.2, 0.003
_BASE = {"data.label-column": "intent", "preset": "pae"}


def compare_engines(
    report: Report, *, pairs: int, num_samples: int = 256, say: Callable[[str], None] = lambda _text: None
) -> None:
    """Add how fast each engine runs MiniLM forward on texts of phone-messages, beside torch's fp32.

    Bars `engine_speed` (the fastest) and `engine_speed_fp32` (ONNX Runtime's fp32). `fp32_speed_bound` is the forward
    pass over its linear products alone, on the same shapes: what an engine of the same products cannot pass.

    Parameters
    ----------
    report : Report
        To which it is added.
    pairs : int
        Turns.
    num_samples : int
        Texts.
    """
    sides: dict[str, Callable[[], Seconds]] = {}
    for name, changes in ENGINES.items():
        settings = load_settings({**_BASE, **changes, "data.max-samples": num_samples})
        backbone = _loaded(settings)
        samples = tokens(backbone, load_local_data(settings, 0, 1))
        spec = extraction_spec(backbone.info, settings, num_blocks=settings.activations.num_blocks, num_outputs=1)
        if backbone.computed_by(spec.layers, spec.pivot) != settings.backbone.engine.value:
            report.skipped[f"engine {name}"] = "torch computes in its place; see the warning"
            continue
        sides[name] = timed(_side(backbone, samples, list(spec.layers), spec.pivot))
        if name == "torch fp32":
            sides["products"] = timed(linear_products(backbone, samples))
            report.settings["engines"] = {
                "backbone": settings.backbone.name,
                "samples": len(samples),
                "tokens": sum(len(sample["input_ids"]) for sample in samples),
                "layers": list(spec.layers),
                "pivot": spec.pivot,
            }
    take_turns(sides, 1)  # so that no side pays for being first
    say("seconds of engines")
    found = take_turns(sides, pairs, say=say)
    eager = found["torch fp32"]
    speeds, rows = {}, []
    for name in found:
        if name == "torch fp32":
            continue
        for ending, comparison in compare_seconds(found[name], eager, "torch fp32").items():
            report.comparisons[f"engine_{name.replace(' ', '_')}{ending}"] = comparison
        ratios = [a.cpu / b.cpu for a, b in zip(eager, found[name], strict=True)]
        speeds[name] = median(a.cpu for a in eager) / median(b.cpu for b in found[name])
        rows.append([name, f"{speeds[name]:.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}"])
    report.figures["fp32_speed_bound"] = speeds.pop("products")
    report.figures |= {f"speed_{name.replace(' ', '_')}": speed for name, speed in speeds.items()}
    report.bars["engine_speed"] = Threshold(max(speeds.values()), BEST_BAR, at_most=False)
    if "onnx fp32" in speeds:
        report.bars["engine_speed_fp32"] = Threshold(speeds["onnx fp32"], FP32_BAR, at_most=False)
    title = "Times as many samples a second as torch in fp32 (processor seconds)"
    report.tables.append(Table(title, ["engine", "speed", "range over turns"], rows))


def compare_metrics(report: Report, *, seeds: int = 20, say: Callable[[str], None] = lambda _text: None) -> None:
    """Add the test accuracy of side-tuning on phone-messages, trained and read with each engine's activations.

    Bar `engine_metric_change`: the largest difference of an engine's mean over the seeds from torch's in fp32. Of 440
    test texts one is 0.23 points, and seeds differ by a point: three of them cannot tell 0.3 points from nothing.

    Parameters
    ----------
    report : Report
        To which it is added.
    seeds : int
        Trainings with each engine, which differ in weights and order.
    """
    found: dict[str, list[float]] = {}
    for name, changes in ENGINES.items():
        settings = load_settings({**_BASE, **changes})
        found[name] = _trained(settings, load_central_data(settings), seeds)
        say(f"{name}: {mean(found[name]):.4f}")
    report.figures["engine_metrics"] = found
    exact = mean(found["torch fp32"])
    worst = max(abs(mean(values) - exact) for values in found.values())
    report.figures["engine_metric_change"] = worst
    report.bars["engine_metric_change"] = Threshold(worst, METRIC_BAR, at_most=True)
    rows = [[name, f"{mean(v):.4f}", f"{stdev(v):.4f}" if len(v) > 1 else "–"] for name, v in found.items()]
    report.tables.append(Table("Test accuracy on phone-messages", ["engine", "mean", "deviation"], rows))


def linear_products(backbone: Backbone, samples: list[dict[str, list[int]]]) -> Callable[[], None]:
    """Return a call of a forward pass's linear products alone, on random states of the same shapes."""
    made: list[tuple[nn.Linear, torch.Size]] = []
    linear = [module for module in backbone.model.modules() if isinstance(module, nn.Linear)]
    hooks = [m.register_forward_pre_hook(lambda m, given: made.append((m, given[0].shape))) for m in linear]
    backbone.extract(samples, layers=[backbone.info.depth], pivot="first")
    for hook in hooks:
        hook.remove()
    states = {shape: torch.randn(shape) for _, shape in made}

    @torch.inference_mode()
    def run() -> None:
        for module, shape in made:
            module(states[shape])

    return run


def _side(backbone: Backbone, samples: list[dict[str, list[int]]], layers: list[int], pivot: str) -> Callable[[], None]:
    def run() -> None:
        backbone.extract(samples, layers=layers, pivot=pivot)

    return run


def _loaded(settings: Settings) -> Backbone:
    named = settings.backbone
    return load_backbone(
        named.name,
        precision=named.precision.value,
        device="cpu",
        engine=named.engine.value,
        token_budget=named.token_budget,
    )


def _trained(settings: Settings, data: LocalData, seeds: int) -> list[float]:
    """Return the test metric of side networks trained on one device's window of all samples, one a seed."""
    metrics = []
    with tempfile.TemporaryDirectory() as folder:
        device = Device(settings, data, DeviceFolder(Path(folder) / "device"))
        info = device.backbone.info
        cache = ActivationCache(Path(folder) / "cache.sqlite")
        for seed in range(seeds):
            settings.run.seed = seed
            plan = make_plan(
                settings,
                data.contract,
                {info.fingerprint: info},
                [len(data.train)],
            )
            spec = plan.specs[info.fingerprint]
            if not seed:
                made = make_window(device, spec, held=frozenset(), size=len(data.train), max_bytes=1 << 40)
                cache.add(device.folder.pseudonym, made.samples, backbone=spec.backbone, round_=1)
            rule = prediction_rule(plan, send_base=settings.loss.send_base)
            trainer = plan.trainer(cache, scores=rule.scores, memory_bytes=1 << 30)
            trainer.run_epochs()
            model = SideTunedModel(device.backbone, trainer.network, spec=spec, contract=data.contract, rule=rule)
            metrics.append(model.evaluate(data.test))
        cache.close()
        device.folder.close()
    return metrics
