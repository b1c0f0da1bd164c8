"""SmolLM2-135M-Instruct on summaries and speeches: corrections of the last layer and upper layers, beside LoRA.

    .venv/bin/python -m benchmarks.studies.language_smollm2 --data FOLDER \
        --json benchmarks/results/language_smollm2.json

Every row is trained in one place from what a device uploads in NF4 (federated training from a complete cache is the
same, bit by bit); LoRA (r = 8, query and value) on the same tokens. All is computed in bf16, with one seed. What has
ended is kept in the JSON file at once, and passed by the next time. `--rows` and `--tasks` choose cells, `--train`
another number of training samples. With `--seconds` training stops after so long, and the next call goes on from the
work folder. Where the data have responses, the test texts are responded to as well (ROUGE-L).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional

from benchmarks.studies.language import Bench, say
from mobillm_flower import SideTunedModel, load_settings
from mobillm_flower.backbones import Backbone, load_backbone
from mobillm_flower.backbones.cut import Cut, UpperLayers
from mobillm_flower.clients.device import Device
from mobillm_flower.clients.releases import make_window
from mobillm_flower.config import Settings
from mobillm_flower.evaluation.responses import rouge
from mobillm_flower.privacy.device_folder import DeviceFolder
from mobillm_flower.server import ActivationCache
from mobillm_flower.server.plan import Frozen
from mobillm_flower.strategies.run_plan import prediction_rule
from mobillm_flower.tasks import LocalData, Samples, chunks_of, load_central_data

TASKS: dict[str, dict[str, Any]] = {
    "dialogsum": {
        "data.source": "dialogsum",
        "data.text-column": "dialogue",
        "data.pair-column": "summary",
        "data.test-split": "validation",  # the test split has three summaries a dialogue
        "task.prompt": "{text}\nSummary:\n",
        "task.max-length": 128,
    },
    "shakespeare": {"data.source": "shakespeare_speakers", "data.text-column": "text", "task.max-length": 96},
}
NUM_TRAIN, NUM_TEST = {"dialogsum": 120, "shakespeare": 160}, {"dialogsum": 50, "shakespeare": 80}
COMMON: dict[str, Any] = {
    "preset": "mobillm",
    "backbone.name": "smollm2",
    "backbone.precision": "bf16",
    "backbone.device": "cpu",
    "backbone.token-budget": 1024,
    "task.kind": "language-modelling",
    "trainer.batch-size": 4,
    "trainer.weight-decay": 0.1,
    "trainer.dropout": 0.0,
    "trainer.patience": 0,
    "trainer.averaging": 0.0,
    "trainer.validation-share": 0.0,
    "trainer.validation-split": "seed",
    "trainer.num-threads": 1,
}
ROWS: dict[str, dict[str, Any]] = {
    "last layer": {"activations.num-blocks": 1, "trainer.epochs": 6, "trainer.learning-rate": 1e-3},
    "last layer, learning rate 0.003": {
        "activations.num-blocks": 1,
        "trainer.epochs": 4,
        "trainer.learning-rate": 3e-3,
    },
    **{
        f"upper layers from {cut}, {epochs} epochs": {
            "side-network.name": "upper-layers",
            "side-network.bottleneck": 16,
            "activations.layers": [cut],
            "trainer.epochs": epochs,
            "trainer.learning-rate": 2e-3,
        }
        for cut, epochs in ((20, 2), (10, 2), (10, 3))
    },
}
LORA = {"LoRA, learning rate 0.002": (2e-3, 2), "LoRA, learning rate 0.002, 3 epochs": (2e-3, 3)}


class SmolBench(Bench):
    """One task: its samples of one chunk each, and the backbone."""

    def __init__(self, task: str, data: Path, num_train: int) -> None:
        self.task, self.name = task, "smollm2"
        self.values = {**COMMON, **TASKS[task], "data.source": str((data / TASKS[task]["data.source"]).resolve())}
        self.backbone = load_backbone(self.name, precision="bf16", device="cpu", token_budget=1024, language_model=True)
        read = load_central_data(load_settings(self.values))
        self.data = LocalData(read.contract, read.train, read.test)
        draw = np.random.default_rng(0)
        train, test = (
            self._short(samples, count, draw)
            for samples, count in ((read.train, num_train), (read.test, NUM_TEST[task]))
        )
        self.data = LocalData(read.contract, train, test)

    def _short(self, samples: Samples, count: int, draw: np.random.Generator) -> Samples:
        """Return samples that fit into one chunk and have eight tokens in the loss, as they are drawn."""
        chosen: list[int] = []
        for i in draw.permutation(len(samples)).tolist():
            (chunks,) = chunks_of(self.backbone.tokenizer, samples.take([i]), self.data.contract)
            if len(chunks) == 1 and len(chunks[0].ids) - chunks[0].first >= 8:
                chosen.append(i)
            if len(chosen) == count:
                break
        return samples.take(sorted(chosen))

    def of_row(self, row: str) -> Settings:
        return load_settings({**self.values, **ROWS[row]})

    def alone(self, backbone: Backbone) -> SideTunedModel:
        """Return a backbone without a side network, as its users have it."""
        plan = self.plan(self.of_row("last layer"))
        (spec,) = plan.specs.values()
        rule = prediction_rule(plan, send_base=False)
        return SideTunedModel(backbone, None, spec=spec, contract=self.data.contract, rule=rule)

    def base(self) -> dict[str, Any]:
        model = self.alone(self.backbone)
        scores = model.token_scores(self.data.test).log_probabilities
        return {"cross-entropy": -float(scores.mean()), "test tokens": len(scores), **self.responses(model)}

    def responses(self, model: SideTunedModel) -> dict[str, float]:
        """Return ROUGE-L of greedy responses to the test texts, of at most a quarter of `task.max-length` tokens."""
        texts, true = self.data.test.texts, self.data.test.pairs
        if true is None:
            return {}
        most, parts = self.data.contract.max_length // 4, [texts[i : i + 8] for i in range(0, len(texts), 8)]
        made = [text for part in parts for text in model.generate(list(part), max_new_tokens=most)]
        return {"ROUGE-L": rouge(list(true), made)["rougeL"]}

    def side_tuned(self, row: str, work: Path, late: Callable[[], bool]) -> dict[str, Any] | None:
        """Fill a cache as a device does, and train from it; returns the cross-entropy on the test texts and costs."""
        work.mkdir(parents=True, exist_ok=True)
        settings = self.of_row(row)
        plan = self.plan(settings)
        (spec,) = plan.specs.values()
        cache = ActivationCache(work / "cache.sqlite")
        if not len(cache):
            device = Device(settings, self.data, DeviceFolder(work / "device"))
            samples = make_window(device, spec, held=frozenset(), size=len(self.data.train), max_bytes=1 << 40).samples
            cache.add(device.folder.pseudonym, samples, backbone=spec.backbone, round_=0)
        upper = UpperLayers(Cut(self.backbone, spec.layers[-1], setting="layer")) if spec.layers_above else None
        rule, frozen = prediction_rule(plan, send_base=False), Frozen(head=self.backbone.head, upper=upper)
        trainer = plan.trainer(
            cache, scores=rule.scores, memory_bytes=1 << 30, frozen=frozen, checkpoint=work / "checkpoint"
        )
        if not trainer.run_epochs(stop=late):
            return None
        model = SideTunedModel(self.backbone, trainer.network, spec=spec, contract=self.data.contract, rule=rule)
        rows = cache.rows()
        return {
            "cross-entropy": model.evaluate(self.data.test),
            "bytes up a sample": sum(len(a) + len(b) for a, b in cache.read(row.id for row in rows)) / len(rows),
            "states a sample": sum(row.tokens for row in rows) / len(rows),
            "parameters": sum(parameter.numel() for parameter in trainer.network.parameters()),
            **self.responses(model),
        }

    def lora_at(self, rate: float, epochs: int, work: Path, late: Callable[[], bool]) -> dict[str, Any] | None:
        """Train LoRA in one place; returns the cross-entropy on the test texts and costs."""
        torch.manual_seed(0)
        backbone = load_backbone(self.name, precision="bf16", device="cpu", token_budget=1024, language_model=True)
        whole = backbone.language_model
        model = get_peft_model(whole, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
        learned = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learned, lr=rate, weight_decay=0.0)
        chunks, size, begun = self.chunks(self.data.train), COMMON["trainer.batch-size"], 0
        work.mkdir(parents=True, exist_ok=True)
        if (saved := work / "lora.pt").exists():
            state = torch.load(saved)
            begun = state["step"]
            model.load_state_dict(state["learned"], strict=False)
            optimizer.load_state_dict(state["optimizer"])
        batches = [chunks[i : i + size] for i in range(0, len(chunks), size)]  # of similar length
        order = [np.random.default_rng((0, epoch)).permutation(len(batches)) for epoch in range(epochs)]
        places = np.concatenate(order)
        for step in range(begun, len(places)):
            if late():
                named = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
                torch.save({"step": step, "learned": named, "optimizer": optimizer.state_dict()}, saved)
                return None
            logits, labels = self.logits(whole, batches[places[step]])
            loss = functional.cross_entropy(logits.float(), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(learned, 1.0)
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (step + 1) / (0.1 * len(places))) * max(0.05, 1 - step / len(places))
            optimizer.step()
        total, count = 0.0, 0
        tests = self.chunks(self.data.test)
        with torch.no_grad():
            for start in range(0, len(tests), 8):
                logits, labels = self.logits(whole, tests[start : start + 8])
                total += float(functional.cross_entropy(logits.float(), labels, reduction="sum"))
                count += len(labels)
        responses = self.responses(self.alone(backbone))  # peft changes the model in place
        return {"cross-entropy": total / count, "parameters": sum(p.numel() for p in learned), **responses}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with dialogsum and shakespeare_speakers")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--rows", nargs="*", default=["base", *ROWS, *LORA])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/language-smollm2"))
    parser.add_argument("--train", type=int, help="training samples, where they are not the table's")
    parser.add_argument("--seconds", type=float, default=math.inf)
    asked = parser.parse_args()
    end: float = time.monotonic() + asked.seconds

    def late() -> bool:
        return time.monotonic() > end

    torch.set_num_threads(1)
    results: dict[str, Any] = json.loads(asked.json.read_text("utf-8")) if asked.json.exists() else {}
    for task in asked.tasks:
        num_train = asked.train or NUM_TRAIN[task]
        name = task if num_train == NUM_TRAIN[task] else f"{task}, {num_train} samples"
        missing = [row for row in asked.rows if row not in results.get(name, {})]
        bench = SmolBench(task, asked.data, num_train) if missing else None
        for row in missing:
            assert bench is not None
            work = asked.work / name.replace(" ", "-").replace(",", "") / row.replace(" ", "-").replace(",", "")
            if row in LORA:
                cell = bench.lora_at(*LORA[row], work, late)
            else:
                cell = bench.base() if row == "base" else bench.side_tuned(row, work, late)
            if cell is None:
                return
            say(name, row, cell)
            results = json.loads(asked.json.read_text("utf-8")) if asked.json.exists() else {}
            results.setdefault(name, {"train": num_train, "test": NUM_TEST[task], "seed": 0})[row] = cell
            asked.json.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
