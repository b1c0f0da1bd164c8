"""One side network for three backbone types, against a side network trained alone for each, three seeds.

    .venv/bin/python benchmarks/studies/fleet.py --data FOLDER --json benchmarks/results/fleet.json

`examples/fleet` runs once on each data set and fills a cache: twelve devices, MiniLM cut to two, four and six layers,
Dirichlet α = 0.1. All else is trained from that cache, epochs only: shared by all types; without the correction for the
types' labels (`trainer.adjust-types`); with a cap on each device's samples, with the types balanced, with both; and
alone, each type from its own devices' samples for as many steps. At last the deepest type joins the two others halfway.
Seeds vary initial weights, order, dropout and the validation share. Accuracy is on the whole test split. Settings are
the example's, for clinc150 with those of the optimiser that were chosen on validation data for
benchmarks/studies/quality.py; none is chosen here.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mobillm_flower import __version__, load_settings
from mobillm_flower.backbones import load_backbone
from mobillm_flower.core.backbone_info import BackboneInfo
from mobillm_flower.core.prediction import PredictionRule
from mobillm_flower.core.side_networks import ActivationBatch
from mobillm_flower.core.targets import base_prediction
from mobillm_flower.launch import read_app, run_app
from mobillm_flower.models.saved import saved_backbones
from mobillm_flower.models.side_tuned import SideTunedModel
from mobillm_flower.privacy.ledger import Release
from mobillm_flower.server import ActivationCache
from mobillm_flower.server.plan import TrainingPlan
from mobillm_flower.server.schedule import planned_steps
from mobillm_flower.tasks import load_central_data, render

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "fleet"
THREADS = 1

CELLS: dict[str, dict[str, str]] = {
    "phone-messages": {},
    "phone-messages-iid": {"data.partition": "iid"},
    "clinc150": {
        "data.source": "clinc150",
        "data.label-column": "label",
        "data.max-samples": "250",  # of a device
        "trainer.batch-size": "64",
        "trainer.epochs": "12",
        "trainer.weight-decay": "3",
    },
}
CLINC_CLASSES = 150  # the last label is "none of the intents": not tested


def fill_cache(cell: str, data: Path, work: Path) -> Path:
    """Run the example once, unless its folder is there."""
    words = dict(CELLS[cell])
    if "data.source" in words:
        words["data.source"] = str((data / words["data.source"]).resolve())
    path, finished = work / cell, work / cell / "finished"
    if not finished.exists():
        overrides = [f"{key}={value}" for key, value in words.items()]
        run_app(read_app(EXAMPLE), overrides, run_path=path, on_event=lambda _event: None)
        finished.touch()
    return path


@contextmanager
def cache_of(run: Path, info: BackboneInfo) -> Iterator[ActivationCache]:
    """Open a copy of a run's cache with the samples of one backbone type alone."""
    file = run / f"alone-{info.fingerprint[:12]}.sqlite"
    shutil.copyfile(run / "cache.sqlite", file)
    cache = ActivationCache(file)
    try:
        rows = cache.rows()
        others = {row.device for row in rows if row.backbone != info.fingerprint}
        for device in others:
            cache.forget(device)
        yield cache
    finally:
        cache.close()
        file.unlink()


def train(cache: ActivationCache, rule: PredictionRule, *, seed: int, steps: int = 0, **options: Any) -> Any:
    """Train from a cache, epochs only; with `steps`, for as many epochs as take about so many steps.

    Returns
    -------
    tuple
        The trainer, and how many steps its epochs take.
    """
    plan = TrainingPlan.of(cache)
    assert plan is not None
    plan = plan.of_what_is_held(cache, width=0)
    rows = cache.rows()
    options = {"seed": seed, "overlap_steps": 0, **options}
    chosen = dataclasses.replace(plan.options, **options)
    held = capped(rows, chosen.device_cap)
    an_epoch = planned_steps(
        held,
        epochs=1,
        rounds=0,
        overlap_steps=0,
        batch_size=chosen.batch_size,
        validation_share=chosen.validation_share,
    )
    epochs = max(1, round(steps / an_epoch)) if steps else chosen.epochs
    chosen = dataclasses.replace(chosen, epochs=epochs, planned_steps=epochs * an_epoch)
    plan = dataclasses.replace(
        plan, options=chosen, side_config=dataclasses.replace(plan.side_config, seed=seed), num_threads=THREADS
    )
    trainer = plan.trainer(cache, scores=rule.scores, memory_bytes=1 << 30)
    trainer.run_epochs()
    return trainer, epochs * an_epoch


def join_late(run: Path, tested: dict[str, Tested], rule: PredictionRule, *, seed: int) -> dict[str, dict[str, float]]:
    """Train two types for half of the schedule, let the third join, and go on; beside it the two without the third."""
    file, (late, newcomer) = run / f"late-{seed}.sqlite", max(tested.items(), key=lambda item: item[1].info.depth)
    shutil.copyfile(run / "cache.sqlite", file)
    query = "SELECT device, release, tokens, activations, target FROM samples WHERE backbone = ? ORDER BY id"
    with closing(sqlite3.connect(file)) as db:
        samples = [(row[0], Release(*row[1:])) for row in db.execute(query, (newcomer.info.fingerprint,))]
    cache = ActivationCache(file)
    whole = TrainingPlan.of(cache)
    assert whole is not None
    for device in {device for device, _ in samples}:
        cache.forget(device)
    plan = whole.of_what_is_held(cache, width=whole.side_config.width)
    options = dataclasses.replace(plan.options, seed=seed, overlap_steps=0, patience=0)
    plan = dataclasses.replace(
        plan, options=options, side_config=dataclasses.replace(plan.side_config, seed=seed), num_threads=THREADS
    )

    def make() -> Any:
        return plan.trainer(cache, scores=rule.scores, memory_bytes=1 << 30)

    def measured(trainer: Any, names: list[str]) -> dict[str, float]:
        return {name: tested[name].accuracy(trainer.network) for name in names}

    first = [name for name in tested if name != late]
    never = make()
    never.run_epochs()
    trainer = make()
    half = options.planned_steps // 2
    trainer.run_epochs(stop=lambda: trainer.position.steps >= half)
    found = {"never joined, at the end": measured(never, first), "before it joined": measured(trainer, first)}
    for device, sample in samples:
        cache.add(device, [sample], backbone=newcomer.info.fingerprint, round_=1000)
    plan = plan.joined_by(whole.specs[newcomer.info.fingerprint])
    trainer.add_type(plan.specs[newcomer.info.fingerprint], plan.side_config.build())
    trainer.run_epochs(stop=lambda: trainer.position.steps >= half + options.newcomer_steps)
    found["after its first steps"] = measured(trainer, list(tested))
    trainer.run_epochs()
    found["at the end"] = measured(trainer, list(tested))
    cache.close()
    file.unlink()
    return found


def capped(rows: Any, cap: int) -> int:
    """How many samples an epoch takes."""
    counts = np.bincount(rows.column("device"))
    return int(np.minimum(counts, cap).sum() if cap else counts.sum())


class Tested:
    """The test split's clean activations of one backbone type, computed once."""

    def __init__(self, run: Path, info: BackboneInfo) -> None:
        settings = load_settings(file=run / "settings.yaml")
        test = load_central_data(settings).test
        if "clinc" in settings.data.source:
            test = test.take(torch.nonzero(test.labels < CLINC_CLASSES).flatten().tolist())
        backbone = load_backbone(info.name, layers=info.depth, precision=info.precision, token_budget=8192)
        model = SideTunedModel.from_pretrained(run / "side_network", backbone=backbone)
        texts, pairs = render(test, model.contract)
        tokens = backbone.tokenize(texts, pairs, model.contract.max_length)
        found = backbone.extract(tokens, layers=model.spec.layers, pivot=model.spec.pivot)
        self.info, self.labels, self.rule = info, test.labels, model.rule
        self.base = base_prediction(found.base_logits, len(test), model.contract.num_outputs)
        self.rows = torch.cat(found.activations).flatten(2)

    def accuracy(self, network: torch.nn.Module) -> float:
        with torch.inference_mode():
            parts = [network([ActivationBatch(self.info.fingerprint, rows)]) for rows in torch.split(self.rows, 256)]
        return float((self.rule.scores(torch.cat(parts), self.base).argmax(1) == self.labels).float().mean())


def measure_cell(cell: str, run: Path, seeds: list[int]) -> dict[str, Any]:
    infos = sorted(saved_backbones(run / "side_network"), key=lambda info: info.depth)
    tested = {f"{info.name}@{info.depth}": Tested(run, info) for info in infos}
    cache = ActivationCache(run / "cache.sqlite")
    rows = cache.rows()
    held = sorted(cache.devices().values())
    cap = int(np.median(held))
    result: dict[str, Any] = {
        "settings": CELLS[cell],
        "samples_of_devices": held,
        "device_cap": cap,
        "types": {
            name: {"samples": sum(row.backbone == one.info.fingerprint for row in rows), "num_test": len(one.labels)}
            for name, one in tested.items()
        },
        "trained": {},
    }
    variants: dict[str, dict[str, Any]] = {
        "shared": {},
        "shared, not adjusted": {"adjust_types": False},
        "shared, capped": {"device_cap": cap},
        "shared, balanced": {"balance_types": True},
        "shared, capped and balanced": {"device_cap": cap, "balance_types": True},
    }
    rule = next(iter(tested.values())).rule
    steps = 0
    for name, options in variants.items():
        repetitions = []
        for seed in seeds:
            started = time.time()
            # a cap makes epochs shorter: all variants take as many steps
            trainer, planned = train(cache, rule, seed=seed, steps=steps, **options)
            steps = steps or planned
            repetitions.append(
                _row(seed, trainer, started, {t: one.accuracy(trainer.network) for t, one in tested.items()})
            )
            print(cell, name, repetitions[-1], flush=True)
        result["trained"][name] = _summary(repetitions)
    alone: list[dict[str, Any]] = [{"seed": seed, "accuracy": {}, "steps": {}, "seconds": 0.0} for seed in seeds]
    for name, one in tested.items():
        with cache_of(run, one.info) as own:
            for row in alone:
                started = time.time()
                trainer, _ = train(own, rule, seed=row["seed"], steps=steps)
                row["accuracy"][name] = one.accuracy(trainer.network)
                row["steps"][name] = trainer.position.steps
                row["seconds"] = round(row["seconds"] + time.time() - started, 1)
                print(cell, "alone", name, row, flush=True)
    result["trained"]["alone"] = _summary(alone)
    result["late"] = [{"seed": seed, "accuracy": join_late(run, tested, rule, seed=seed)} for seed in seeds]
    cache.close()
    return result


def _row(seed: int, trainer: Any, started: float, accuracy: dict[str, float]) -> dict[str, Any]:
    seconds = round(time.time() - started, 1)
    return {"seed": seed, "accuracy": accuracy, "steps": trainer.position.steps, "seconds": seconds}


def _summary(repetitions: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and spread (standard deviation over seeds) by type, and of the types' mean."""
    by_type = {name: [row["accuracy"][name] for row in repetitions] for name in repetitions[0]["accuracy"]}
    by_type["all types"] = [float(np.mean(list(row["accuracy"].values()))) for row in repetitions]
    spread = {name: float(np.std(values, ddof=1)) if len(values) > 1 else None for name, values in by_type.items()}
    mean = {name: float(np.mean(values)) for name, values in by_type.items()}
    return {"mean": mean, "spread": spread, "repetitions": repetitions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with clinc150")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/fleet"))
    parser.add_argument("--cells", default=",".join(CELLS))
    parser.add_argument("--seeds", default="0,1,2")
    arguments = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    out: dict[str, Any] = {
        "commit": commit,
        "versions": {"mobillm_flower": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "cells": {},
    }
    if arguments.json and arguments.json.exists():
        out["cells"] = json.loads(arguments.json.read_text())["cells"]
    for cell in arguments.cells.split(","):
        run = fill_cache(cell, arguments.data, arguments.work)
        out["cells"][cell] = measure_cell(cell, run, [int(seed) for seed in arguments.seeds.split(",")])
        if arguments.json:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
