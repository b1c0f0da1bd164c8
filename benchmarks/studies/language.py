"""Language modelling on real text: labels, corrections and refreshed corrections beside centralized LoRA, three seeds.

    .venv/bin/python benchmarks/studies/language.py --data FOLDER --backbones BACKBONES --json FILE

Each task fills one cache an objective by the device's own code (NF4 activations and corrections) and trains from it
with the server's own trainer; seeds vary initial weights and order. `refreshed` regresses again, from the network it
has, on corrections at its own predictions, as devices would send them if they were asked once more: target
u_v − u_0 + Δu_v. LoRA (r = 8, query and value) is trained in one place on the same tokens for as many epochs.
Learning rates were chosen on other training texts (--choose).
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional

from mobillm_flower import __version__, load_settings
from mobillm_flower.backbones import load_backbone
from mobillm_flower.clients.device import Device
from mobillm_flower.clients.releases import make_window
from mobillm_flower.config import Settings
from mobillm_flower.core.language import correction
from mobillm_flower.models.side_tuned import SideTunedModel
from mobillm_flower.privacy.device_folder import DeviceFolder
from mobillm_flower.privacy.ledger import Release
from mobillm_flower.server import ActivationCache
from mobillm_flower.server.batches import BatchLoader
from mobillm_flower.server.plan import Frozen, TrainingPlan
from mobillm_flower.strategies.run_plan import make_plan, prediction_rule
from mobillm_flower.tasks import LocalData, Samples, load_central_data, token_chunks
from mobillm_flower.wire.target_bytes import encode_corrections

ROOT = Path(__file__).parents[2]
TASKS: dict[str, dict[str, Any]] = {
    "dialogsum": {
        "data.source": "dialogsum",
        "data.text-column": "dialogue",
        "data.pair-column": "summary",
        "data.test-split": "validation",  # the test split has three summaries a dialogue
        "task.prompt": "{text}\nSummary:\n",
        "task.max-length": 256,
    },
    "shakespeare": {"data.source": "shakespeare_speakers", "data.text-column": "text", "task.max-length": 128},
}
ROWS = ("label", "label-causal", "label-pruned", "difference-logit", "difference-square", "lora")
COMMON: dict[str, Any] = {
    "task.kind": "language-modelling",
    "trainer.epochs": 6,
    "trainer.batch-size": 16,
    "trainer.learning-rate": 2e-3,
    "trainer.weight-decay": 0.1,
    "trainer.dropout": 0.0,
    "trainer.patience": 0,
    "trainer.validation-share": 0.0,
}
LORA_RATES = {"dialogsum": 2e-2, "shakespeare": 1e-2}


class Bench:
    """One task on one backbone: caches, references, test texts."""

    def __init__(self, task: str, arguments: argparse.Namespace) -> None:
        self.arguments, self.task = arguments, task
        self.name = str((arguments.backbones / arguments.backbone).resolve())
        values = {**COMMON, **TASKS[task], "backbone.name": self.name, "backbone.device": "cpu"}
        values["data.source"] = str((arguments.data / TASKS[task]["data.source"]).resolve())
        self.values = values
        data = load_central_data(self.settings("label"))
        draw = np.random.default_rng(0)
        order = draw.permutation(len(data.train)).tolist()
        train = data.train.take(sorted(order[: arguments.train]))
        if arguments.choose:
            test = data.train.take(sorted(order[arguments.train : arguments.train + arguments.test]))
        else:
            test = data.test.take(sorted(draw.permutation(len(data.test))[: arguments.test].tolist()))
        self.data = LocalData(data.contract, train, test)
        self.backbone = load_backbone(self.name, device="cpu", language_model=True)

    def settings(self, objective: str, loss: str = "square", seed: int = 0, side_network: str = "additive") -> Settings:
        return load_settings(
            {
                **self.values,
                "loss.objective": objective,
                "loss.name": loss,
                "run.seed": seed,
                "side-network.name": side_network,
            }
        )

    def fill(self, objective: str, folder: Path) -> tuple[ActivationCache, dict[str, float]]:
        """Let a device make its releases; returns the cache and bytes a token."""
        settings = self.settings(objective)
        device = Device(settings, self.data, DeviceFolder(folder / "device"))
        plan = self.plan(settings)
        (spec,) = plan.specs.values()
        window = make_window(device, spec, held=frozenset(), size=len(self.data.train), max_bytes=1 << 40)
        cache = ActivationCache(folder / "cache.sqlite")
        cache.add(device.folder.pseudonym, window.samples, backbone=spec.backbone, round_=0)
        tokens = sum(sample.tokens for sample in window.samples)
        return cache, {
            "tokens": tokens,
            "activation_bytes_a_token": sum(len(s.activations) for s in window.samples) / tokens,
            "target_bytes_a_token": sum(len(s.target) for s in window.samples) / tokens,
            "device_seconds": window.forward_seconds,
        }

    def plan(self, settings: Settings) -> TrainingPlan:
        backbones = {self.backbone.info.fingerprint: self.backbone.info}
        count = [len(self.data.train)]
        return make_plan(settings, self.data.contract, backbones, count)

    def train(self, cache: ActivationCache, settings: Settings, state: dict[str, torch.Tensor] | None = None) -> Any:
        """Train from a cache; returns the network and its cross-entropy on the test texts."""
        plan = self.plan(settings)
        rule = prediction_rule(plan, send_base=False)
        trainer = plan.trainer(cache, scores=rule.scores, memory_bytes=1 << 30, frozen=Frozen(head=self.backbone.head))
        if state is not None:
            trainer.start_from(state)
        trainer.run_epochs()
        (spec,) = plan.specs.values()
        model = SideTunedModel(self.backbone, trainer.network, spec=spec, contract=self.data.contract, rule=rule)
        return model, model.evaluate(self.data.test)

    def pruned(self, settings: Settings) -> dict[str, torch.Tensor]:
        """Return a fresh network's state with adapters from the sampled layers' feed-forward nets, pruned to r neurons.

        Of each layer the r neurons of the largest product of norms, into and out of them (ladder side-tuning starts
        from pruned weights, arXiv 2206.06522, with another measure of importance).
        """
        plan = self.plan(settings)
        (spec,) = plan.specs.values()
        network: Any = plan.side_config.build()
        for number, adapter in zip(spec.layers, network.adapters, strict=True):
            layer: Any = self.backbone.stack[number - 1]
            into, out = layer.fc1, layer.fc2  # OPT's
            strength = into.weight.norm(dim=1) * out.weight.norm(dim=0)
            kept = strength.topk(len(adapter.down.weight)).indices
            with torch.no_grad():
                adapter.down.weight.copy_(into.weight[kept])
                adapter.down.bias.copy_(into.bias[kept])
                adapter.up.weight.copy_(out.weight[:, kept])
                adapter.norm.weight.copy_(layer.final_layer_norm.weight)
                adapter.norm.bias.copy_(layer.final_layer_norm.bias)
        return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}

    def refresh(self, by_label: ActivationCache, model: SideTunedModel, file: Path) -> ActivationCache:
        """Return a cache of the same activations with corrections at the model's own predictions."""
        spec, head = model.spec, self.backbone.head
        assert head is not None
        plan = self.plan(self.settings("label"))
        loader = BatchLoader(by_label, plan.specs, self.data.contract, memory_bytes=0)
        found = ActivationCache(file)
        samples = []
        for i, row in enumerate(by_label.rows()):
            (batch,), targets = loader.load([row])
            assert batch.sequences is not None
            assert targets.labels is not None
            with torch.inference_mode():
                base, tuned = (
                    head.inputs(batch.rows[:, -1]),
                    head.inputs(model.tuned_states(batch.rows, batch.sequences)),
                )
            steps, weights = correction(tuned.clone(), targets.labels, head)
            (target,) = encode_corrections([(tuned - base + steps, weights)], spec)
            ((blob, _),) = by_label.read([row.id])
            samples.append(Release(i.to_bytes(16, "big"), row.tokens, blob, target))
        found.add("0" * 32, samples, backbone=spec.backbone, round_=0)
        return found

    def told(self, cache: ActivationCache, by_label: ActivationCache) -> dict[str, float]:
        """Return the share of tokens that a correction names: by its largest logit, and by the nearest row of the head.

        The gradient is g = Wᵀp − W_y, and the server knows p: Wᵀp − g is the token's row but for what the codec loses.
        """
        head = self.backbone.head
        assert head is not None
        weight = self.backbone.language_model.get_output_embeddings().weight.detach()
        plan = self.plan(self.settings("difference"))
        loader = BatchLoader(cache, plan.specs, self.data.contract, memory_bytes=0)
        labels = dict(by_label.read(row.id for row in by_label.rows()))
        right, nearest, count = 0, 0, 0
        for row in cache.rows():
            ((blob, _),) = cache.read([row.id])
            _, targets = loader.load([row])
            assert targets.differences is not None
            assert targets.base is not None
            assert targets.weights is not None
            true = torch.from_numpy(np.frombuffer(labels[blob], "<u4").astype(np.int64))
            with torch.inference_mode():
                right += int((head.logits(targets.differences).argmax(1) == true).sum())
                rows = head.logits(head.inputs(targets.base)).softmax(1) @ weight
                rows += targets.weights[:, None] * targets.differences  # Wᵀp − g
                nearest += int(((2 * rows @ weight.T - weight.square().sum(1)).argmax(1) == true).sum())
            count += len(true)
        return {"largest_logit": right / count, "nearest_row": nearest / count}

    def lora(self, seed: int, rate: float) -> float:
        """Train LoRA in one place; returns the cross-entropy on the test texts."""
        torch.manual_seed(seed)
        whole = load_backbone(self.name, device="cpu", language_model=True).language_model
        model = get_peft_model(whole, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
        learned = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learned, lr=rate, weight_decay=0.0)
        chunks = self.chunks(self.data.train)
        size, epochs = COMMON["trainer.batch-size"], COMMON["trainer.epochs"]
        planned, step = epochs * math.ceil(len(chunks) / size), 0
        for epoch in range(epochs):
            order = np.random.default_rng((seed, epoch)).permutation(len(chunks)).tolist()
            for start in range(0, len(order), size):
                logits, labels = self.logits(whole, [chunks[i] for i in order[start : start + size]])
                loss = functional.cross_entropy(logits, labels)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(learned, 1.0)
                for group in optimizer.param_groups:
                    group["lr"] = rate * min(1.0, (step + 1) / (0.1 * planned)) * max(0.05, 1 - step / planned)
                optimizer.step()
                step += 1
        total, count = 0.0, 0
        tests = self.chunks(self.data.test)
        with torch.no_grad():
            for start in range(0, len(tests), size):
                logits, labels = self.logits(whole, tests[start : start + size])
                total += float(functional.cross_entropy(logits, labels, reduction="sum"))
                count += len(labels)
        return total / count

    def chunks(self, samples: Samples) -> list[Any]:
        contract, found = self.data.contract, []
        for i, text in enumerate(samples.texts):
            prompt = None if samples.pairs is None else contract.prompt.format(text=text)
            answer = text if samples.pairs is None else samples.pairs[i]
            found += token_chunks(self.backbone.tokenizer, prompt, answer, contract.max_length)
        return sorted(found, key=lambda chunk: len(chunk.ids))

    @staticmethod
    def logits(model: Any, chunks: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        length = max(len(chunk.ids) for chunk in chunks)
        ids = torch.tensor([chunk.ids + [0] * (length - len(chunk.ids)) for chunk in chunks])
        mask = torch.tensor([[1] * len(w.ids) + [0] * (length - len(w.ids)) for w in chunks])
        hidden = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        read = torch.cat([hidden[i, w.first - 1 : len(w.ids) - 1] for i, w in enumerate(chunks)])
        return model.get_output_embeddings()(read), torch.cat([torch.tensor(w.ids[w.first :]) for w in chunks])


def measure(task: str, arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    bench = Bench(task, arguments)
    caches, sent = {}, {}
    for objective in ("label", "difference"):
        caches[objective], sent[objective] = bench.fill(objective, work / objective)
    told = bench.told(caches["difference"], caches["label"])
    found: dict[str, Any] = {"sent": sent, "tokens_told_by_corrections": told}
    plan = bench.plan(bench.settings("label"))
    (spec,) = plan.specs.values()
    rule = prediction_rule(plan, send_base=False)
    base = SideTunedModel(bench.backbone, None, spec=spec, contract=bench.data.contract, rule=rule)
    found["base"] = base.evaluate(bench.data.test)
    found["test_tokens"] = len(base.token_scores(bench.data.test).log_probabilities)
    rows: dict[str, list[float]] = {}
    say(task, sent, found["base"], told)
    for seed in range(arguments.seeds):

        def note(name: str, value: float, seed: int = seed) -> None:
            rows.setdefault(name, []).append(value)
            say(task, seed, name, round(value, 4))

        if "label" in arguments.rows:
            note("label", bench.train(caches["label"], bench.settings("label", seed=seed))[1])
        if "label-causal" in arguments.rows:
            causal = bench.settings("label", seed=seed, side_network="causal")
            note("label-causal", bench.train(caches["label"], causal)[1])
        if "label-pruned" in arguments.rows:
            relu = bench.settings("label", seed=seed)
            note("label-pruned", bench.train(caches["label"], relu, bench.pruned(relu))[1])
        if "difference-logit" in arguments.rows:
            logit = bench.settings("difference", "logit", seed)
            note("difference-logit", bench.train(caches["difference"], logit)[1])
        if "difference-square" in arguments.rows:
            square = bench.settings("difference", "square", seed)
            model, value = bench.train(caches["difference"], square)
            note("difference-square", value)
            for stage in range(1, arguments.stages + 1):
                cache = bench.refresh(caches["label"], model, work / f"stage-{seed}-{stage}.sqlite")
                state = {name: tensor.detach().clone() for name, tensor in model.side_network.state_dict().items()}
                model, value = bench.train(cache, square, state)
                note(f"difference-square-refreshed-{stage}", value)
        if "lora" in arguments.rows:
            note("lora", bench.lora(seed, LORA_RATES[task]))
    found["cross_entropy"] = rows
    return found


def say(*words: object) -> None:
    print(time.strftime("%H:%M:%S"), *words, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--backbones", type=Path, required=True)
    parser.add_argument("--backbone", default="opt-nano-4l-128")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=ROWS, help="what to train; square is also refreshed")
    parser.add_argument("--train", type=int, default=500)
    parser.add_argument("--test", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--stages", type=int, default=3)
    parser.add_argument("--choose", action="store_true", help="compare learning rates on other training texts")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tasks = {}
    if arguments.choose:
        for task in arguments.tasks:
            for rate in (2e-3, 5e-3, 1e-2, 2e-2):
                say(task, "lora", rate, Bench(task, arguments).lora(0, rate))
        return
    for task in arguments.tasks:
        with tempfile.TemporaryDirectory() as work:
            tasks[task] = measure(task, arguments, Path(work))
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=ROOT, check=True)
    result = {
        "benchmark": "language",
        "commit": commit.stdout.strip(),
        "version": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "backbone": arguments.backbone,
        "settings": {**COMMON, "lora.learning-rate": LORA_RATES, "train": arguments.train, "test": arguments.test},
        "tasks": tasks,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
