"""Caches of random samples with a learnable rule, without any backbone."""

from __future__ import annotations

import hashlib
import random
import sqlite3
from pathlib import Path
from typing import Any

import torch

from mobillm_flower.core.codecs import CODECS
from mobillm_flower.core.side_networks import AlignmentSpec, SideNetworkConfig
from mobillm_flower.core.sparse import encode_sample
from mobillm_flower.core.targets import predict_square
from mobillm_flower.privacy.ledger import Release
from mobillm_flower.server import ActivationCache, TrainerOptions
from mobillm_flower.server.plan import TrainingPlan, note_round, plan_what_is_held
from mobillm_flower.server.rows import RowRef
from mobillm_flower.wire.contract import ExtractionSpec, TaskContract
from mobillm_flower.wire.target_bytes import encode_targets

WIDTH, BLOCKS, CLASSES = 32, 3, 4
BACKBONE = "a" * 64

CONTRACT = TaskContract(
    kind="classification",
    labels=tuple("wxyz"),
    prompt="",
    label_words=(),
    max_length=16,
    label_range=(),
    metric="accuracy",
)


def make_spec(
    *, pivot: str = "mean", backbone: str = BACKBONE, width: int = WIDTH, codec: str = "nf4", keep: float = 1.0
) -> Any:
    return ExtractionSpec(
        backbone=backbone,
        width=width,
        num_vectors=2 if pivot == "first+mean" else 1,
        layers=tuple(range(1, BLOCKS + 1)),
        pivot=pivot,
        codec=codec,
        standardise="",
        clip_norm=0.0,
        sigma=0.0,
        keep=keep,
        objective="difference",
        send_base=False,
    )


def make_samples(count: int, spec: ExtractionSpec, *, seed: int = 0) -> list[Release]:
    """Random activations whose class is a linear function of the last block."""
    generator = torch.Generator().manual_seed(seed)
    rule = torch.randn(CLASSES, spec.width, generator=torch.Generator().manual_seed(99))
    samples = []
    for i in range(count):
        tokens = 1 + i % 5 if spec.pivot == "all" else 1
        activations = torch.randn(tokens, BLOCKS, spec.num_vectors, spec.width, generator=generator)
        label = (rule @ activations[:, -1].mean((0, 1))).argmax().reshape(1)
        (target,) = encode_targets(label, torch.full((1, CLASSES), 1 / CLASSES), spec, CONTRACT)
        blob = encode_sample(activations, CODECS[spec.codec], spec.keep)
        release = hashlib.sha256(f"{seed}:{i}".encode()).digest()[:16]
        samples.append(Release(release, tokens, blob, target))
    return samples


def fill(
    file: Path,
    samples: list[Release],
    spec: ExtractionSpec,
    *,
    num_devices: int = 1,
    shuffle_seed: int = 0,
    num_rounds: int = 1,
) -> ActivationCache:
    """Commit samples in some order, dealt to devices, over rounds; a sample's round does not depend on the order."""
    cache = ActivationCache(file)
    order = list(enumerate(samples))
    random.Random(shuffle_seed).shuffle(order)
    for place, (number, sample) in enumerate(order):
        device = f"{place % num_devices:032x}"
        cache.add(device, [sample], backbone=spec.backbone, round_=1 + number % num_rounds)
    return cache


def make_plan(specs: list[ExtractionSpec], *, overlap_steps: int = 0, epochs: int = 3, seed: int = 5) -> TrainingPlan:
    side = SideNetworkConfig.of(
        {spec.backbone: AlignmentSpec(spec.width, spec.num_vectors) for spec in specs},
        name="additive",
        num_blocks=BLOCKS,
        bottleneck=8,
        num_outputs=CLASSES,
        seed=seed,
    )
    options = TrainerOptions(
        epochs=epochs,
        batch_size=16,
        learning_rate=3e-3,
        weight_decay=0.1,
        dropout=0.1,
        averaging=0.9,
        warmup=0.1,
        grad_clip=1.0,
        validation_share=0.2,
        patience=0,
        overlap_steps=overlap_steps,
        checkpoint_every=4,
        planned_steps=60,
        seed=seed,
    )
    return TrainingPlan(
        contract=CONTRACT,
        specs={spec.backbone: spec for spec in specs},
        side_config=side,
        objective="difference",
        loss="square",
        scale=2.0,
        options=options,
        num_threads=1,
    )


def scores(side: Any, base: Any) -> Any:
    return predict_square(side, base, 2.0)


def train(cache: ActivationCache, plan: TrainingPlan, *, num_rounds: int = 0, **arguments: Any) -> Any:
    """Train by the plan's schedule; returns the trainer."""
    plan.store(cache)
    note_round(cache, num_rounds)
    trainer = plan.trainer(cache, scores=scores, memory_bytes=1 << 24, **arguments)
    for round_ in range(1, num_rounds + 1):
        while trainer.overlap_step(round_):
            pass
    plan_what_is_held(trainer)
    trainer.run_epochs()
    return trainer


def state_bytes(network: Any) -> bytes:
    """Every weight's bytes, for comparing bit by bit."""
    return b"".join(tensor.numpy().tobytes() for _, tensor in sorted(network.state_dict().items()))


def plainly(file: Path) -> Any:
    """Read all rows in the order of (digest, id), which every reader must see."""
    db = sqlite3.connect(file)
    query = "SELECT digest, id, backbone, tokens, round, device, stage FROM samples ORDER BY digest, id"
    found = [RowRef(*row) for row in db.execute(query)]
    db.close()
    return found
