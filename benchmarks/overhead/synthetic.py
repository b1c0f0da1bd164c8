"""Uploads and training plans of backbones that are not there, for benchmarks of the server alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from mobillm_flower.core.side_networks import SideNetworkConfig
from mobillm_flower.core.targets import automatic_scale
from mobillm_flower.server import TrainerOptions
from mobillm_flower.server.plan import TrainingPlan
from mobillm_flower.wire.contract import ExtractionSpec, TaskContract

BATCH = 32
"""What `trainer.batch-size=0` means where labels are predicted."""


def synthetic_spec(name: str, *, pivot: str, blocks: int, width: int) -> ExtractionSpec:
    """Return what a backbone of that name, M sampled layers and width d_b would upload, in NF4."""
    return ExtractionSpec(
        backbone=hashlib.sha256(name.encode()).hexdigest(),
        width=width,
        num_vectors=2 if pivot == "first+mean" else 1,
        layers=tuple(range(1, blocks + 1)),
        pivot=pivot,
        codec="nf4",
        standardise="",
        clip_norm=0.0,
        sigma=0.0,
        keep=1.0,
        objective="difference",
        send_base=False,
    )


def synthetic_plan(
    specs: Sequence[ExtractionSpec], options: TrainerOptions, *, num_classes: int, num_threads: int
) -> TrainingPlan:
    """Return the plan of a run with the square loss whose devices upload `specs`."""
    side = SideNetworkConfig.of(
        {spec.backbone: spec.alignment for spec in specs},
        name="additive",
        num_blocks=len(specs[0].layers),
        bottleneck=64,
        num_outputs=num_classes,
        seed=0,
    )
    contract = TaskContract(
        kind="classification",
        labels=tuple(f"class {i}" for i in range(num_classes)),
        prompt="",
        label_words=(),
        max_length=128,
        label_range=(),
        metric="accuracy",
    )
    return TrainingPlan(
        contract=contract,
        specs={spec.backbone: spec for spec in specs},
        side_config=side,
        objective="difference",
        loss="square",
        scale=automatic_scale(num_classes),
        options=options,
        num_threads=num_threads,
    )
