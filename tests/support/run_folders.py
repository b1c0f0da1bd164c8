"""Run folders as a run leaves them, without running anything: written by the server's own parts."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from mobillm_flower.config import load_settings, to_yaml
from mobillm_flower.core.backbone_info import BackboneInfo
from mobillm_flower.core.prediction import PredictionRule
from mobillm_flower.core.side_networks import AlignmentSpec, SideNetworkConfig
from mobillm_flower.models.saved import save_side_network
from mobillm_flower.runs import device_events, events
from mobillm_flower.runs.folder import RunFolder
from tests.support.caches import BACKBONE, BLOCKS, WIDTH, make_spec
from tests.support.packets import make_contract

LABELS = ("alarm", "music", "weather")
ENDS = ("started", "met", "uploading", "training", "failed", "completed")
"""How far a run got, each further than the one before; a failed run has uploaded and trained."""


def write_run(
    path: Path,
    *,
    end: str = "completed",
    overrides: tuple[str, ...] = (),
    labels: tuple[str, ...] = LABELS,
    num_devices: int = 3,
    backbone: str = "minilm",
    losses: tuple[float, ...] = (1.5, 0.75, 0.875),
    reason: str = "no sample was received",
    base_prediction: str = "constant",
    references: dict[str, Any] | None = None,
) -> Path:
    """Write a run's folder up to `end`; labels of length 0 make it a regression."""
    run = RunFolder(path).make()
    settings = load_settings(overrides=overrides)
    run.settings.write_text(to_yaml(settings), "utf-8")
    run.append(events.Started("PaeMobiLLM"))
    if end == "started":
        return path
    devices = [f"{1 + i:08x}{'0' * 24}" for i in range(num_devices)]
    for device in devices:
        run.append(device_events.DeviceMet(device, backbone, layers=BLOCKS, num_train=20, num_test=5))
    if end == "met":
        return path
    prepared = events.Prepared(
        devices=num_devices,
        num_train=20 * num_devices,
        num_blocks=BLOCKS,
        width=WIDTH,
        parameters=1234,
        planned_steps=9,
        resumed_steps=0,
        layers={BACKBONE[:12]: [1, 2, 3]},
        pivots={BACKBONE[:12]: "all" if settings.activations.pivot == "all" else "mean"},
        scale=2.0,
    )
    run.append(prepared)
    for i, device in enumerate(devices):
        window = device_events.Window(
            round=1,
            device=device,
            window=1,
            samples=10,
            new=10,
            remaining=10,
            refused=0,
            bytes=5000 + 100 * i,
            forward_seconds=0.25 * (i + 1),
        )
        run.append(window)
    run.append(events.Round(1, 10 * num_devices, 10 * num_devices, num_rejected=0, cache_bytes=4096))
    if end == "uploading":
        return path
    for number, loss in enumerate(losses, start=1):
        run.append(events.Epoch(number, 3 * number, validation_loss=loss, validation_accuracy=0.5 + 0.1 * number))
    if end == "training":
        return path
    if end == "completed":
        run.append(events.Trained(steps=3 * len(losses), epochs=len(losses)))
        contract = make_contract(labels=labels) if labels else make_contract(label_range=(0.0, 1.0))
        _save(run.side_network, contract, backbone, base_prediction)
        run.append(events.Gates([0.25, 0.75]))
        run.append(events.Evaluation(1, 15, num_devices, {contract.metric: 0.625}))
    for i, device in enumerate(devices):
        run.append(_summary(device, backbone, 70_000 + i))
    if end == "failed":
        run.append(events.Finished("failed", 12.5, reason))
    else:
        (path / "results.json").write_text(json.dumps({"references": references or make_references(labels)}), "utf-8")
        run.append(events.Finished("completed", 75.25))
    return path


def _summary(device: str, backbone: str, bytes_down: int) -> device_events.DeviceSummary:
    return device_events.DeviceSummary(
        device=device,
        backbone=backbone,
        layers=BLOCKS,
        samples=10,
        num_train=20,
        windows=1,
        refused=0,
        bytes_up=5200,
        bytes_down=bytes_down,
        forward_seconds=0.25,
        peak_memory_bytes=9e8,
        strikes={},
        failures=0,
        dropped="",
    )


def make_references(labels: tuple[str, ...] = LABELS, *, seed: int = 0) -> dict[str, Any]:
    """What `measure_references` and `measure_memory` return, of 30 test samples a class."""
    memory = {"ours_bytes": 111_000_000, "plain_bytes": 100_000_000, "ratio": 1.11, "num_samples": 64}
    if not labels:
        return {"metric": "spearman", "num_test": 30, "num_train": 60, "tuned": -0.5, "majority": 0.0, "memory": memory}
    draw = random.Random(seed)
    counts = [[0] * len(labels) for _ in labels]
    for i in range(len(labels)):
        counts[i][i] = 24
        for _ in range(6):
            counts[i][(i + draw.randint(1, 4)) % len(labels)] += 1
    right, total = sum(counts[i][i] for i in range(len(labels))), 30 * len(labels)
    return {
        "metric": "accuracy",
        "num_test": total,
        "num_train": 20 * len(labels),
        "tuned": right / total,
        "base": None,
        "majority": 1 / len(labels),
        "logistic_regression": 0.7,
        "centralized": right / total,
        "identical": True,
        "labels": list(labels),
        "confusion": counts,
        "memory": memory,
    }


def _save(folder: Path, contract: Any, backbone: str, base_prediction: str) -> None:
    config = SideNetworkConfig.of(
        {BACKBONE: AlignmentSpec(WIDTH, 1)},
        name="additive",
        num_blocks=BLOCKS,
        bottleneck=4,
        num_outputs=contract.num_outputs,
    )
    info = BackboneInfo(
        name=backbone,
        family="bert",
        causal=False,
        depth=BLOCKS,
        width=WIDTH,
        precision="fp32",
        fingerprint=BACKBONE,
        base_prediction=base_prediction,
    )
    save_side_network(
        folder,
        state=config.build().state_dict(),
        side_config=config,
        specs={BACKBONE: make_spec()},
        backbones={BACKBONE: info},
        contract=contract,
        rule=PredictionRule("square", 2.0),
    )
