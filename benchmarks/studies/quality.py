"""Quality on real text: PAE MobiLLM and MobiLLM with all-MiniLM-L6-v2 on ten devices, three seeds.

    .venv/bin/python benchmarks/studies/quality.py --data FOLDER --json benchmarks/results/quality.json

Each cell is one run of `examples/quickstart` in Flower's simulation, which fills a cache. Since training depends on the
cached bytes, the settings and the seed alone (a test holds it, and every run here is compared bit by bit), the other
seeds and losses are trained from that same cache. Seeds vary initial weights, order, dropout and the validation share.
Cells that are finished are taken from the work folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mobillm_flower import __version__, load_settings
from mobillm_flower.core.prediction import PredictionRule
from mobillm_flower.core.side_networks import ActivationBatch
from mobillm_flower.core.targets import automatic_scale, base_prediction
from mobillm_flower.evaluation.references import logistic_regression
from mobillm_flower.launch import read_app, run_app
from mobillm_flower.models.side_tuned import SideTunedModel
from mobillm_flower.runs.device_events import Window
from mobillm_flower.runs.record import read_run
from mobillm_flower.server import ActivationCache
from mobillm_flower.server.plan import TrainingPlan, replay
from mobillm_flower.tasks import METRICS, load_central_data, render

ROOT = Path(__file__).parents[2]

TASKS: dict[str, dict[str, Any]] = {
    "sst2": {"data.source": "sst2_sentences", "data.text-column": "sentence", "data.label-column": "label"},
    "clinc": {"data.source": "clinc150", "data.label-column": "label"},
    "sms": {"data.source": "sms_spam", "data.label-column": "label", "task.metric": "macro-f1"},
}
COMMON = {"data.num-devices": "10", "data.partition": "iid", "rounds.window": "256", "cache.memory-mib": "3000"}
# (task, what differs, losses)
CELLS: dict[str, tuple[str, dict[str, str], tuple[str, ...]]] = {
    "sst2-pae": ("sst2", {}, ("square", "logit")),
    "sst2-pae-fp32": ("sst2", {"activations.codec": "fp32"}, ("square",)),
    "sst2-pae-dirichlet": ("sst2", {"data.partition": "dirichlet", "data.alpha": "0.1"}, ("square",)),
    "clinc-pae": ("clinc", {}, ("square", "logit")),
    "sms-pae": ("sms", {}, ("square", "logit")),
    "sst2-mobillm": (
        "sst2",
        {"preset": "mobillm", "activations.pivot": "all", "trainer.epochs": "8", "trainer.learning-rate": "6e-3"},
        ("label",),
    ),
}
PAIRS = [("sst2-pae", "sst2-pae-fp32"), ("sst2-pae", "sst2-pae-dirichlet")]
# chosen on the validation split (--split validation), see the results' "settings"
TUNED: dict[str, dict[str, str]] = {
    "sst2": {"trainer.batch-size": "64", "trainer.epochs": "12", "trainer.learning-rate": "1e-3"},
    "clinc": {
        "trainer.batch-size": "64",
        "trainer.epochs": "12",
        "trainer.weight-decay": "3",
        "loss.scale": "30",
    },
    "clinc:logit": {"trainer.weight-decay": "10"},
    "sst2:label": {"trainer.weight-decay": "3"},
    "sms": {"trainer.batch-size": "64", "trainer.epochs": "12"},
}


def fill_cache(cell: str, data: Path, work: Path) -> Path:
    """Run the quickstart once for a cell, unless its folder is there."""
    task, changes, _ = CELLS[cell]
    words = {**COMMON, **TASKS[task], **TUNED.get(task, {}), **changes}
    words["data.source"] = str((data / TASKS[task]["data.source"]).resolve())
    path = work / cell
    finished = path / "finished"
    if not finished.exists():
        started = time.time()
        app = read_app(ROOT / "examples" / "quickstart")
        run_app(app, [f"{key}={value}" for key, value in words.items()], run_path=path, on_event=lambda _event: None)
        finished.write_text(str(time.time() - started))
    return path


def train(
    cache: ActivationCache, *, seed: int, loss: str, options: dict[str, Any]
) -> tuple[Any, PredictionRule, float]:
    """Train one side network from a cache with another seed and loss; None where that is what the run itself did."""
    own = plan = TrainingPlan.of(cache)
    assert plan is not None
    names = {field.name for field in dataclasses.fields(plan.options)}
    changed = {key.removeprefix("trainer.").replace("-", "_"): value for key, value in options.items()}
    typed = {key: type(getattr(plan.options, key))(value) for key, value in changed.items() if key in names}
    plan = dataclasses.replace(
        plan,
        loss=plan.loss if loss == "label" else loss,
        side_config=dataclasses.replace(plan.side_config, seed=seed),
        options=dataclasses.replace(plan.options, seed=seed, **typed),
        scale=float(options.get("loss.scale", 0)) or automatic_scale(plan.contract.num_outputs),
    )
    chosen, last_round = plan.options, int(cache.meta("last-round") or 0)
    an_epoch = math.ceil(int(len(cache) * (1 - chosen.validation_share)) / chosen.batch_size)
    planned = chosen.epochs * an_epoch + max(0, last_round - 1) * chosen.overlap_steps
    plan = dataclasses.replace(plan, options=dataclasses.replace(chosen, planned_steps=planned))
    rule = PredictionRule("logit" if loss in ("logit", "label") else "square", plan.scale)
    if plan == own:
        return None, rule, 0.0
    plan = dataclasses.replace(plan, num_threads=1)  # steps are small: two trainings side by side beat two threads
    trainer = plan.trainer(cache, scores=rule.scores, memory_bytes=3000 << 20)
    started = time.time()
    for round_ in range(1, last_round + 1):
        while trainer.overlap_step(round_):
            pass
    trainer.run_epochs()
    return trainer, rule, time.time() - started


class Tested:
    """A test split's clean activations, computed once for a run's layers and pivot."""

    def __init__(self, run: Path, split: str, task: str) -> None:
        settings = load_settings(file=run / "settings.yaml", overrides=[f"data.test-split={split}"])
        self.data = load_central_data(settings)
        test = self.data.test
        if task == "clinc":  # in-scope rows; 150 is "none of the intents"
            test = test.take(torch.nonzero(test.labels < 150).flatten().tolist())
        self.model = SideTunedModel.from_pretrained(run / "side_network", token_budget=8192)
        self.test, spec, contract = test, self.model.spec, self.model.contract
        texts, pairs = render(test, contract)
        tokens = self.model.backbone.tokenize(texts, pairs, contract.max_length)
        self.found = self.model.backbone.extract(tokens, layers=spec.layers, pivot=spec.pivot)
        self.base = base_prediction(self.found.base_logits, len(test), contract.num_outputs)

    def scores(self, network: Any, rule: PredictionRule) -> torch.Tensor:
        parts = []
        with torch.inference_mode():
            for i in range(0, len(self.test), 256):
                activations = self.found.activations[i : i + 256]
                per_token = self.model.spec.pivot == "all"
                lengths = torch.tensor([len(a) for a in activations]) if per_token else None
                rows = torch.cat(activations).flatten(2)
                parts.append(network([ActivationBatch(self.model.spec.backbone, rows, lengths)]))
        return rule.scores(torch.cat(parts), self.base)


def measure_cell(
    cell: str, run: Path, split: str, seeds: list[int], extra: dict[str, Any], *, identity: bool, only: list[str]
) -> dict[str, Any]:
    task, changes, losses = CELLS[cell]
    tested = Tested(run, split, task)
    metric = TASKS[task].get("task.metric", "accuracy")
    labels = tested.test.labels.numpy()
    cache = ActivationCache(run / "cache.sqlite")
    windows = read_run(run).all(Window)  # of all sessions, where a run was resumed
    devices = {window.device for window in windows}
    samples, bytes_up = sum(window.new for window in windows), sum(window.bytes for window in windows)
    result: dict[str, Any] = {
        "task": task,
        "metric": metric,
        "split": split,
        "num_test": len(labels),
        "settings": {**COMMON, **TASKS[task], **TUNED.get(task, {}), **changes, **extra},
        "bytes_up_per_sample": bytes_up / samples,
        "bytes_up_per_device": bytes_up / len(devices),
        "samples": samples,
        "identical_to_centralized": same_weights(cache, tested.model) if identity else None,
        "losses": {},
    }
    for loss in only or losses:
        rows, options = [], _options(task, loss, changes, extra)
        for seed in seeds:
            trainer, rule, seconds = train(cache, seed=seed, loss=loss, options=options)
            network = tested.model.side_network if trainer is None else trainer.network
            predicted = tested.scores(network, rule).argmax(1).numpy()
            rows.append(
                {
                    "seed": seed,
                    "metric": METRICS[metric](labels, predicted),
                    "accuracy": float((predicted == labels).mean()),
                    "trained_by": "the federated run" if trainer is None else "its cache",
                    "train_seconds": round(seconds, 1),
                    "correct": "".join(str(int(c)) for c in predicted == labels),
                }
            )
            print(f"{cell} {loss} seed {seed}: {metric} {rows[-1]['metric']:.4f} ({seconds:.0f} s)", flush=True)
        values = [float(row["metric"]) for row in rows]
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
        result["losses"][loss] = {
            "options": options,
            "mean": float(np.mean(values)),
            "spread": spread,
            "repetitions": rows,
        }
    cache.close()
    return result


def _options(task: str, loss: str, changes: dict[str, str], extra: dict[str, str]) -> dict[str, str]:
    """What a training overrides in the run's plan: the task's, the loss's, the cell's, then the command line's."""
    cell = {key: value for key, value in changes.items() if key.startswith("trainer.")}
    return {**TUNED.get(task, {}), **TUNED.get(f"{task}:{loss}", {}), **cell, **extra}


def same_weights(cache: ActivationCache, model: SideTunedModel) -> bool:
    """Whether training from the cache without Flower gives the run's own weights, bit by bit."""
    state = replay(cache, scores=model.rule.scores, memory_bytes=3000 << 20).state_dict()
    assert model.side_network is not None
    return all(torch.equal(state[name], tensor) for name, tensor in model.side_network.state_dict().items())


def paired(first: dict[str, Any], second: dict[str, Any], loss: str) -> dict[str, float]:
    """Difference of accuracies with its 95 % interval over test samples, seeds averaged."""
    correct = [
        np.mean([[int(c) for c in row["correct"]] for row in cell["losses"][loss]["repetitions"]], axis=0)
        for cell in (first, second)
    ]
    difference = correct[0] - correct[1]
    half = 1.96 * float(difference.std(ddof=1)) / math.sqrt(len(difference))
    mean = float(difference.mean())
    return {"difference": mean, "low": mean - half, "high": mean + half}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with sst2_sentences, clinc150, sms_spam")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/quality"))
    parser.add_argument("--cells", default=",".join(CELLS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--losses", default="", help="only these losses; the others' results are kept")
    parser.add_argument("--no-identity", action="store_true", help="do not train again by the run's own plan")
    parser.add_argument("--split", default="test")
    parser.add_argument("--set", action="append", default=[], help="trainer.KEY=VALUE or loss.scale=VALUE, for tuning")
    arguments = parser.parse_args()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    extra = dict(word.split("=", 1) for word in arguments.set)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    out: dict[str, Any] = {
        "commit": commit,
        "versions": {"mobillm_flower": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "cells": {},
        "references": {},
        "pairs": {},
    }
    if arguments.json and arguments.json.exists():
        out |= {k: v for k, v in json.loads(arguments.json.read_text()).items() if k not in ("commit", "versions")}
    for cell in arguments.cells.split(","):
        run = fill_cache(cell, arguments.data, arguments.work)
        before = out["cells"].get(cell, {}).get("losses", {}) if arguments.losses else {}
        only = arguments.losses.split(",") if arguments.losses else []
        out["cells"][cell] = measure_cell(
            cell, run, arguments.split, seeds, extra, identity=not arguments.no_identity, only=only
        )
        out["cells"][cell]["losses"] = {**before, **out["cells"][cell]["losses"]}
        task = CELLS[cell][0]
        if task not in out["references"] and arguments.json:
            tested = Tested(run, arguments.split, task)
            data = dataclasses.replace(tested.data, test=tested.test)
            reference = logistic_regression(tested.model.backbone, data, tested.model.contract)
            out["references"][task] = {"logistic_regression": reference}
            print(f"{task}: logistic regression {reference:.4f}", flush=True)
        for a, b in PAIRS:
            if a in out["cells"] and b in out["cells"]:
                out["pairs"][f"{a} - {b}"] = paired(out["cells"][a], out["cells"][b], "square")
        if arguments.json:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
