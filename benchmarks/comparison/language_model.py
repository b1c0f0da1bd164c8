"""SmolLM2 on sentences, pairs and intents: by itself, side-tuned in four ways, and LoRA in one place and by FedAvg.

    .venv/bin/python -m benchmarks.comparison.language_model --data FOLDER --tasks sst2,clinc150 \
        --json benchmarks/results/language_model.json

Each task is one run of side-tuning in Flower's simulation, of ten IID devices. The solution is the run's own; the
additive network is trained from the run's cache, since training depends on cached bytes alone. LoRA is trained on those
rows, a figure an epoch. Sums alone (`--sums`) are a run of `preset=analytic` on the same devices, `--upper` one of
`preset=upper-layers`. LoRA by FedAvg (`--fed-lora`) is on ten devices of skewed labels, α = 0.1, a figure a round. What
has ended is kept in the work folder and written to the JSON file at once.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mobillm_flower.config import load_settings
from mobillm_flower.config.compatibility import ANALYTIC
from mobillm_flower.core.side_networks import ActivationBatch, SideNetworkConfig
from mobillm_flower.core.side_networks.upper_layers import NAME as UPPER_LAYERS
from mobillm_flower.core.targets import base_prediction
from mobillm_flower.evaluation.compare.cells import APP, CENTRAL_LORA, Cell
from mobillm_flower.evaluation.compare.task import ComparedTask
from mobillm_flower.launch import read_app, run_app
from mobillm_flower.models.side_tuned import SideTunedModel
from mobillm_flower.runs.device_events import DeviceSummary, Window
from mobillm_flower.runs.record import read_run
from mobillm_flower.server import ActivationCache
from mobillm_flower.server.plan import TrainingPlan
from mobillm_flower.tasks import load_central_data, measure
from mobillm_flower.tasks.activations import read_activations

_BACKBONE = {"backbone.name": "smollm2", "backbone.precision": "bf16", "backbone.token-budget": "1024"}
_GLUE = {"data.train-split": "train", "data.test-split": "validation"}
_PAIR = {**_GLUE, "data.text-column": "sentence1", "data.pair-column": "sentence2", "task.kind": "pairs"}
_LORA = {"peer.learning-rate": "5e-4", "peer.batch-size": "16"}
_CUT = {"data.train-split": "train", "data.test-split": "test"}  # of the rows that are cut from those splits
_SHOTS = (
    "Review: a warm, funny and touching film\nSentiment: positive\n"
    "Review: dull, lifeless and far too long\nSentiment: negative\n"
)
_YES_NO = {"task.label-words": "no,yes"}
TASKS: dict[str, ComparedTask] = {
    name: ComparedTask(name, {**_BACKBONE, **words}, rows, 500, 1000)
    for name, rows, words in (
        (
            "sst2",
            1000,
            {
                "data.source": "sst2_sentences",
                "data.text-column": "sentence",
                "task.prompt": _SHOTS + "Review: {text}\nSentiment:",
                "task.label-words": "negative,positive",
                "task.calibration": "content-free",
                "task.max-length": "112",
            },
        ),
        ("clinc150", 3000, {"data.source": "clinc150", "task.max-length": "32"}),
        (
            "mrpc",
            1000,
            {
                "data.source": "glue_mrpc",
                **_PAIR,
                **_YES_NO,
                "task.prompt": "{text} {text_pair} Do these two say the same? Answer:",
                "task.max-length": "128",
            },
        ),
        (
            "rte",
            1000,
            {
                "data.source": "glue_rte",
                **_PAIR,
                "task.label-words": "yes,no",
                "task.prompt": "{text} Does it follow that {text_pair} Answer:",
                "task.max-length": "160",
            },
        ),
        (
            "cola",
            1000,
            {
                "data.source": "glue_cola",
                **_GLUE,
                **_YES_NO,
                "data.text-column": "sentence",
                "task.metric": "matthews",
                "task.prompt": "{text} Is this good English? Answer:",
                "task.max-length": "64",
            },
        ),
    )
}


def side_tuned(task: ComparedTask, work: Path) -> dict[str, Any]:
    """Run side-tuning once; return the metrics of the backbone alone, of the solution and of the additive network."""
    path = work / "runs" / task.name
    cell = Cell(task, "pae", "iid", 0, 10, "test", {"rounds.window": "512", **_CUT})
    started = time.time()
    if not (path / "finished").exists():
        run_app(read_app(APP), cell.words(work), run_path=path, on_event=lambda _event: None)
        (path / "finished").write_text(f"{time.time() - started:.0f}")
    settings, run = load_settings(overrides=cell.words(work)), read_run(path)
    test, model = load_central_data(settings).test, SideTunedModel.from_pretrained(run.folder.side_network)
    read = read_activations(model.backbone, test, model.contract, model.spec)
    base = base_prediction(read.base_logits, len(test), model.contract.num_outputs)

    def metric(network: Any, rule: Any = model.rule) -> float:
        rows = torch.cat(read.activations).flatten(2)
        with torch.inference_mode():
            side = network([ActivationBatch(model.spec.backbone, rows, None)])
        return measure(rule.scores(side, base), test.labels, model.contract)

    windows = run.all(Window)
    result: dict[str, Any] = {
        "metric": model.contract.metric,
        "num_test": len(test),
        "layers": list(model.spec.layers),
        "pivot": model.spec.pivot,
        "backbone alone": None if read.base_logits is None else measure(base, test.labels, model.contract),
        "closed form": metric(model.side_network),
        "bytes up a sample": sum(window.bytes for window in windows) / sum(window.new for window in windows),
        "bytes down a device": sum(one.bytes_down for one in run.all(DeviceSummary)) / cell.num_devices,
        "seconds of the run": float((path / "finished").read_text()),
    }
    cache = ActivationCache(run.folder.cache)
    plan = TrainingPlan.of(cache)
    assert plan is not None
    types = {name: spec.alignment for name, spec in plan.specs.items()}
    side = plan.side_config
    additive = SideNetworkConfig.of(
        types,
        name="additive",
        width=256,
        bottleneck=64,
        num_blocks=side.num_blocks,
        num_outputs=side.num_outputs,
        seed=0,
    )
    trainer = replace(plan, side_config=additive).trainer(cache, scores=model.rule.scores, memory_bytes=3000 << 20)
    started = time.time()
    trainer.run_epochs()
    result |= {"additive": metric(trainer.network), "additive seconds": time.time() - started}
    cache.close()
    return result


def lora(task: ComparedTask, work: Path, epochs: int) -> dict[str, Any]:
    """Train LoRA on all rows in one place; return the metric after each epoch."""
    words = {"rounds.num-rounds": str(epochs), **_LORA, **_CUT}
    points = Cell(task, CENTRAL_LORA, "iid", 0, 1, "test", words).run(work)
    return {"epochs": [point.metric for point in points], "seconds": [point.server_seconds for point in points]}


def fed_lora(task: ComparedTask, work: Path, rounds: int, rate: str) -> dict[str, Any]:
    """Train LoRA by FedAvg on ten devices, α = 0.1, an epoch a round; return the metric after each round."""
    words = {"rounds.num-rounds": str(rounds), **_LORA, "peer.learning-rate": rate, **_CUT}
    points = Cell(task, "fed-lora", "alpha=0.1", 0, 10, "test", words).run(work)
    last = points[-1]
    return {
        "learning rate": float(rate),
        "rounds": {point.rounds: point.metric for point in points},
        "bytes up a device": last.bytes_up,
        "bytes down a device": last.bytes_down,
        "flops a device": last.flops,
    }


def upper_layers(task: ComparedTask, work: Path) -> dict[str, Any]:
    """Run `preset=upper-layers` on ten IID devices; return the metric and the bytes of a device."""
    words = {"rounds.window": "512", "trainer.learning-rate": "2e-3", "trainer.epochs": "3", **_CUT}
    (point,) = Cell(task, UPPER_LAYERS, "iid", 0, 10, "test", words).run(work)
    return {
        "metric": point.metric,
        "bytes up a device": point.bytes_up,
        "bytes down a device": point.bytes_down,
        "flops a device": point.flops,
        "server seconds": point.server_seconds,
    }


def from_sums(task: ComparedTask, work: Path) -> dict[str, Any]:
    """Run `preset=analytic` on ten IID devices; return the metric of its side network."""
    (point,) = Cell(task, ANALYTIC, "iid", 0, 10, "test", _CUT).run(work)
    return {"metric": point.metric, "bytes up a device": point.bytes_up, "bytes down a device": point.bytes_down}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with sst2_sentences, clinc150, glue_mrpc, …")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--lora", default="sst2", help="tasks that LoRA is trained on too")
    parser.add_argument("--sums", default="sst2", help="tasks that are solved from sums alone too")
    parser.add_argument("--upper", default="", help="tasks that upper layers are trained on too")
    parser.add_argument("--fed-lora", default="", help="tasks that LoRA by FedAvg is trained on too")
    parser.add_argument("--rounds", type=int, default=5, help="of LoRA by FedAvg")
    parser.add_argument("--fed-rate", default="2e-3", help="learning rate of LoRA by FedAvg")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs/language-model"))
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    results: dict[str, Any] = json.loads(asked.json.read_text("utf-8")) if asked.json and asked.json.exists() else {}
    for name in asked.tasks.split(","):
        source = str((asked.data / TASKS[name].settings["data.source"]).resolve())
        task = replace(TASKS[name], settings={**TASKS[name].settings, "data.source": source})
        cells: dict[str, Callable[[], dict[str, Any]]] = {"side-tuning": partial(side_tuned, task, asked.work)}
        if name in asked.sums.split(","):
            cells["sums alone"] = partial(from_sums, task, asked.work)
        if name in asked.lora.split(","):
            cells["LoRA in one place"] = partial(lora, task, asked.work, asked.epochs)
        if name in asked.upper.split(","):
            cells["upper layers"] = partial(upper_layers, task, asked.work)
        if name in asked.fed_lora.split(","):
            cells["LoRA by FedAvg"] = partial(fed_lora, task, asked.work, asked.rounds, asked.fed_rate)
        for title, cell in cells.items():
            if title in results.get(name, {}):
                continue
            results.setdefault(name, {"rows": task.num_train, "seed": 0})[title] = cell()
            print(name, title, results[name][title], flush=True)
            if asked.json:
                asked.json.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
