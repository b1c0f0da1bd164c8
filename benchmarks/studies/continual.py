"""Tasks one after another: what each way of learning keeps of earlier ones, in accuracy, parameters and bytes.

    .venv/bin/python -m benchmarks.studies.continual --data FOLDER --json benchmarks/results/continual.json

Each text is extracted once, by the package, with all-MiniLM-L6-v2 and the default layers; training rows go through the
uploads' NF4 codec and an activation cache of the package, and are learned by its trainer. Validation and test rows are
not coded. Rows of a task are drawn by the seed from the first 2,000 of a fixed permutation of its train split. p_b is
the constant 1/K. Hyper-parameters (`--choose`) are those of the best validation accuracy of one order and a draw of its
own; results are of test rows. Cells that are in the file are kept.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from mobillm_flower import load_settings
from mobillm_flower.backbones import Backbone, load_backbone
from mobillm_flower.core.backbone_info import BackboneInfo
from mobillm_flower.core.codecs import CODECS
from mobillm_flower.core.side_networks import ActivationBatch, BudgetedSideNetwork, OrthogonalSideNetwork
from mobillm_flower.core.sparse import encode_sample
from mobillm_flower.core.task_sequence import SequenceMeasures, TaskSequence
from mobillm_flower.privacy.ledger import Release
from mobillm_flower.server import ActivationCache
from mobillm_flower.server.plan import TrainingPlan
from mobillm_flower.server.sampler import split_validation
from mobillm_flower.strategies.run_plan import make_plan, prediction_rule
from mobillm_flower.wire.contract import TaskContract
from mobillm_flower.wire.target_bytes import encode_targets


@dataclass(frozen=True)
class Source:
    """Where a task's rows are; of a domain alone, its classes are numbered anew."""

    folder: str
    text: str
    pair: str = ""
    domain: str = ""


DOMAINS = [
    *("auto_and_commute", "banking", "credit_cards", "home", "kitchen_and_dining"),
    *("meta", "small_talk", "travel", "utility", "work"),
]
SOURCES = {
    "AG News": Source("ag_news_10k", "text"),
    "SST-2": Source("sst2_sentences", "sentence"),
    "CLINC150": Source("clinc150", "text"),
    "SMS spam": Source("sms_spam", "text"),
    "QNLI": Source("glue_qnli_devonly", "question", "sentence"),
    **{name: Source("clinc150", "text", domain=name) for name in DOMAINS},
}
MIXED = ["AG News", "SST-2", "CLINC150", "SMS spam", "QNLI"]
ORDERS = {
    "five tasks": [MIXED, [MIXED[i] for i in (4, 2, 0, 3, 1)], [MIXED[i] for i in (3, 1, 4, 2, 0)]],
    "ten domains": [DOMAINS, DOMAINS[::-1], DOMAINS[5:] + DOMAINS[:5]],
}
ROWS = {"five tasks": 1000, "ten domains": 600}
POOL, MAX_LENGTH = 2000, 128  # rows of a task's train split; half as many of the others
EPOCHS, RANK = 10, 16


@dataclass(frozen=True)
class Method:
    """A way of learning: its side network, what is kept of earlier tasks' rows, and settings of its own."""

    network: str
    keep: float = 0.0  # share of earlier tasks' rows
    rank: int = RANK
    learning_rate: float = 2e-3
    orthogonality: float = 0.0
    threshold: float = 0.0


METHODS = {
    "sequential": Method("additive", rank=64),
    "replay of a tenth": Method("additive", keep=0.1, rank=64),
    "closed-form": Method("closed-form"),
    "o-lora": Method("o-lora", orthogonality=0.5),
    "o-lora of rank 6": Method("o-lora", orthogonality=0.5, rank=6),  # hardly more than what acts of oa-adapter
    "oa-adapter": Method("oa-adapter", orthogonality=0.1, threshold=1.5),
}
TOGETHER = {"joint": Method("additive", keep=1.0, rank=64), "joint solution": Method("closed-form", keep=1.0)}
"""All tasks at once, which is what replay of all rows comes to: it begins anew with each task."""


@dataclass(frozen=True)
class Task:
    """A task's coded training rows [N] with labels [N], and the vectors [n, M, P·d] and labels [n] of held-out rows."""

    name: str
    classes: int
    blobs: list[bytes]
    labels: Tensor
    held_out: dict[str, tuple[Tensor, Tensor]]

    @property
    def names(self) -> list[str]:
        return [str(label) for label in range(self.classes)]


class Tasks:
    """Tasks by name, each extracted once by a backbone and kept on disk."""

    def __init__(self, data: Path, work: Path, backbone: str = "minilm", pool: int = POOL) -> None:
        self.data, self.backbone, self.pool = data, backbone, pool
        self.work = work / f"{Path(backbone).name}-{pool}"
        self._known: dict[str, Task] = {}
        self.work.mkdir(parents=True, exist_ok=True)
        file = self.work / "backbone.pt"
        if not file.exists():
            torch.save(asdict(self._load().info), file)
        self.info = BackboneInfo(**torch.load(file))
        self.spec = plan_of(self.info, TaskSequence().append("any", "ab"), 1, "closed-form").specs[
            self.info.fingerprint
        ]

    def __getitem__(self, name: str) -> Task:
        if name not in self._known:
            file = self.work / f"{name}.pt"
            if not file.exists():
                torch.save(self._extract(SOURCES[name]), file)
            saved = torch.load(file)
            held = {split: (vectors.float(), labels) for split, (vectors, labels) in saved["held_out"].items()}
            self._known[name] = Task(name, saved["classes"], saved["blobs"], saved["labels"], held)
        return self._known[name]

    def _load(self) -> Backbone:
        precision = "fp32" if self.backbone == "minilm" else "bf16"
        return load_backbone(self.backbone, device="cpu", token_budget=4096, precision=precision)

    def _extract(self, source: Source) -> dict[str, Any]:
        backbone = self._load()
        made: dict[str, Any] = {"held_out": {}}
        for split in ("train", "validation", "test"):
            frame = pd.read_parquet(self.data / source.folder / f"{split}.parquet")
            if source.domain:
                frame = frame[frame["domain"] == source.domain]
            classes = sorted(frame["label"].unique())
            frame = frame.sample(min(self.pool // (1 if split == "train" else 2), len(frame)), random_state=0)
            labels = torch.tensor([classes.index(label) for label in frame["label"]])
            parts = []
            for start in range(0, len(frame), 500):
                part = frame.iloc[start : start + 500]
                pairs = part[source.pair].tolist() if source.pair else None
                tokens = backbone.tokenize(part[source.text].tolist(), pairs, MAX_LENGTH)
                parts += backbone.extract(tokens, layers=self.spec.layers, pivot=self.spec.pivot).activations
            vectors = torch.stack([activations[0] for activations in parts])  # [N, M, P, d]
            if split == "train":
                codec = CODECS[self.spec.codec]
                made |= {"classes": len(classes), "labels": labels}
                made["blobs"] = [encode_sample(one[None], codec, self.spec.keep) for one in vectors]
            else:
                made["held_out"][split] = vectors.flatten(2).half(), labels
        return made


def plan_of(info: BackboneInfo, tasks: TaskSequence, rows: int, network: str, **options: Any) -> TrainingPlan:
    """Return the package's plan for a sequence of tasks."""
    words = ["activations.sampling=upper", "activations.pivot=mean", "trainer.validation-split=seed"]
    words += [f"trainer.epochs={EPOCHS}", *(f"{name}={value}" for name, value in options.items())]
    if network == "closed-form":
        words += ["side-network.name=closed-form", "side-network.random-features=0", "loss.name=square"]
    else:
        words += ["side-network.name=additive", "loss.name=logit"]
    settings = load_settings(overrides=words)
    contract = TaskContract("classification", tasks.labels, "", (), MAX_LENGTH, (), "accuracy")
    return make_plan(settings, contract, {info.fingerprint: info}, [rows])


@dataclass
class Learner:
    """One way of learning tasks that come in turn."""

    method: Method
    store: Tasks
    seed: int
    rows: int
    folder: Path
    tasks: TaskSequence = field(default_factory=TaskSequence)
    state: dict[str, Tensor] | None = None
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    kept_rows: tuple[tuple[str, int], ...] = ()  # task and number of row
    bytes_kept: int = 0
    bytes_down: int = 0
    network: Any = None
    scores: Any = None

    def learn(self, *names: str) -> None:
        """Learn a task, or several at once, after those that are learned."""
        drawn: list[tuple[str, int]] = []
        for name in names:
            task = self.store[name]
            self.tasks = self.tasks.append(name, task.names)
            order = torch.randperm(len(task.labels), generator=torch.Generator().manual_seed(self.seed))
            drawn += [(name, int(row)) for row in order[: self.rows]]
        used = [*self.kept_rows, *drawn]
        method = self.method
        options: dict[str, Any] = {"run.seed": self.seed}
        if method.network != "closed-form":
            options |= {"side-network.bottleneck": method.rank, "trainer.learning-rate": method.learning_rate}
        plan = plan_of(self.store.info, self.tasks, len(used), method.network, **options)
        side = plan.side_config
        extra: dict[str, Any] = {"name": method.network, "tasks": self.tasks.sizes if len(names) == 1 else ()}
        if method.network in ("o-lora", "oa-adapter"):
            extra |= {"orthogonality": method.orthogonality, "threshold": method.threshold}
        plan = replace(plan, side_config=replace(side, **extra))
        cache = self._cache(used, plan)
        rule = prediction_rule(plan, send_base=False)
        trainer = plan.trainer(cache, scores=rule.scores, memory_bytes=1 << 30)
        if self.state is not None and not method.keep:  # replay begins anew, as a run does
            trainer.begin_task(self.state, self.kept)
        trainer.run_epochs()
        self.state, self.kept = trainer.state, trainer.end_task()
        self.network, self.scores = trainer.network, rule.scores
        if method.keep:
            rows = cache.rows()
            _, held = split_validation(rows, method.keep, self.seed) if method.keep < 1 else (None, rows)
            fresh = [number - 1 - len(self.kept_rows) for number in sorted(row.id for row in held)]
            self.kept_rows = (*self.kept_rows, *(drawn[place] for place in fresh if place >= 0))
            self.bytes_kept = sum(
                len(self.store[name].blobs[row]) + 2 * self.tasks.num_outputs for name, row in self.kept_rows
            )
        else:
            self.bytes_kept = sum(value.numel() * value.element_size() for value in self.kept.values())
        cache.close()

    def _cache(self, used: list[tuple[str, int]], plan: TrainingPlan) -> ActivationCache:
        outputs, (spec,) = self.tasks.num_outputs, plan.specs.values()
        labels = torch.stack([self.tasks.span_of(name).start + self.store[name].labels[row] for name, row in used])
        targets = encode_targets(labels, torch.full((len(used), outputs), 1 / outputs), spec, plan.contract)
        samples = [
            Release(number.to_bytes(16, "big"), 1, self.store[name].blobs[row], target)
            for number, ((name, row), target) in enumerate(zip(used, targets, strict=True))
        ]
        cache = ActivationCache(self.folder / f"{len(self.tasks.spans)}.sqlite")
        cache.add("device", samples, backbone=spec.backbone, round_=1)
        return cache

    def accuracies(self, split: str) -> tuple[list[float], list[float]]:
        """Return the accuracy on each task so far where it is known, and where it is not."""
        known: list[float] = []
        unknown: list[float] = []
        for span in self.tasks.spans:
            vectors, labels = self.store[span.name].held_out[split]
            with torch.inference_mode():
                side = torch.cat(
                    [self.network([ActivationBatch(self.store.info.fingerprint, v)]) for v in torch.split(vectors, 512)]
                )
            scores = self.scores(side, torch.full_like(side, 1 / side.shape[1]))
            right = scores[:, span.start : span.stop].argmax(1) == labels, scores.argmax(1) == labels + span.start
            for of_case, each in zip((known, unknown), right, strict=True):
                of_case.append(round(float(each.double().mean()), 4))
        return known, unknown

    def sizes(self) -> dict[str, Any]:
        """Return parameters of a prediction, their bytes at 8 bits, what is kept, and ranks where there are some."""
        network, adapters = self.network, isinstance(self.network, OrthogonalSideNetwork)
        parameters = sum(p.numel() for p in network.parameters())
        made: dict[str, Any] = {}
        if adapters:  # numbers of dead dimensions are left out
            ranks = network.effective_ranks
            acting = sum(map(sum, ranks)) * (2 * network.width + isinstance(network, BudgetedSideNetwork))
            parameters = acting + sum(p.numel() for n, p in network.named_parameters() if not n.startswith("adapters."))
            parameters += network.means.numel() + network.variances.numel() if len(network.tasks) > 1 else 0
            made |= {"ranks": ranks, "dead": round(1 - sum(map(sum, ranks)) / (RANK * sum(map(len, ranks))), 4)}
            made["adapter_parameters"] = acting
        return {"parameters": parameters, "bytes_down": parameters, "bytes_kept": self.bytes_kept, **made}


def in_turn(method: Method, order: list[str], store: Tasks, seed: int, rows: int, split: str) -> dict[str, Any]:
    """Learn tasks one after another; return accuracies after each, and the sizes."""
    known: list[list[float]] = []
    unknown: list[list[float]] = []
    sizes, started = [], time.process_time()
    with TemporaryDirectory() as folder:
        learner = Learner(method, store, seed, rows, Path(folder))
        for name in order:
            learner.learn(name)
            of_known, of_unknown = learner.accuracies(split)
            known.append(of_known)
            unknown.append(of_unknown)
            sizes.append(learner.sizes())
    made: dict[str, Any] = {"order": order, "known": known, "unknown": unknown, "sizes": sizes}
    measures = {f"{case}_measures": asdict(SequenceMeasures.of(made[case])) for case in ("known", "unknown")}
    return made | measures | {"seconds": round(time.process_time() - started, 1)}


def at_once(method: Method, order: list[str], store: Tasks, seed: int, rows: int, split: str) -> dict[str, Any]:
    """Learn all tasks together."""
    with TemporaryDirectory() as folder:
        learner = Learner(method, store, seed, rows, Path(folder))
        learner.learn(*order)
        known, unknown = learner.accuracies(split)
        return {"order": order, "known": [known], "unknown": [unknown], "sizes": [learner.sizes()]}


def alone(method: Method, order: list[str], store: Tasks, seed: int, rows: int, split: str) -> dict[str, Any]:
    """Learn each task by itself; return its accuracy by name."""
    made = {}
    for name in order:
        (made[name],) = at_once(replace(method, keep=0.0), [name], store, seed, rows, split)["known"][0]
    return made


def average(cell: Mapping[str, Any]) -> tuple[float, float]:
    """AA with tasks known, and unknown."""
    known, unknown = (sum(cell[case][-1]) / len(cell[case][-1]) for case in ("known", "unknown"))
    return known, unknown


GRIDS: dict[str, list[dict[str, float]]] = {
    "oa-adapter": [
        *({"orthogonality": w, "threshold": 1.5} for w in (0.0, 0.1, 0.5, 2.0, 8.0, 32.0)),
        *({"orthogonality": 2.0, "threshold": t} for t in (0.01, 0.3, 0.6, 1.0, 1.9)),
        {"orthogonality": 2.0, "threshold": 1.5, "learning_rate": 5e-3},
    ],
    "o-lora": [{"orthogonality": w} for w in (8.0, 0.5)],
}


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/continual"), help="where extracted features are kept")
    parser.add_argument("--backbone", default="minilm")
    parser.add_argument("--pool", type=int, default=POOL, help="most rows of a task's train split")
    parser.add_argument("--sequence", default="five tasks", choices=list(ORDERS))
    for several in ("--orders", "--seeds"):
        parser.add_argument(several, default="0,1,2")
    parser.add_argument("--methods", default="", help="names, separated by commas; default: all")
    parser.add_argument("--choose", action="store_true", help="try hyper-parameters on validation rows")
    parser.add_argument("--alone", action="store_true", help="learn each task by itself, for forward transfer")
    parser.add_argument("--extract", action="store_true", help="extract features and end")
    return parser.parse_args()


def main() -> None:
    chosen = arguments()
    torch.set_num_threads(1)
    store = Tasks(chosen.data, chosen.work, chosen.backbone, chosen.pool)
    first, rows = ORDERS[chosen.sequence][0], ROWS[chosen.sequence]
    if chosen.extract:
        print(*(f"{name}: {len(store[name].blobs)} rows" for name in first), sep="\n")
        return
    out: dict[str, Any] = json.loads(chosen.json.read_text()) if chosen.json.exists() else {}
    out["settings"] = {"rows": ROWS, "epochs": EPOCHS, "rank": RANK, "pool": POOL, "test_rows": POOL // 2}
    out["methods"] = {name: asdict(method) for name, method in METHODS.items()}
    names = chosen.methods.split(",") if chosen.methods else []
    sequence = chosen.sequence + (f", {Path(chosen.backbone).name}" if chosen.backbone != "minilm" else "")

    def keep(kind: str, key: str, make: Callable[[], dict[str, Any]]) -> None:
        """Make what is not in the file yet."""
        of_kind = out.setdefault(kind, {})
        if key not in of_kind:
            of_kind[key] = made = make()
            print(kind, key, average(made) if "known" in made else made, made.get("seconds"), flush=True)
            chosen.json.write_text(json.dumps(out, indent=1) + "\n")

    if chosen.choose:
        for name in names or GRIDS:
            for values in GRIDS[name]:
                method: Method = replace(METHODS[name], **values)  # type: ignore[arg-type]
                key = f"{name} {json.dumps(values)}"
                keep("trials", key, partial(in_turn, method, first, store, 100, rows, "validation"))
        return
    for seed in map(int, chosen.seeds.split(",")):
        if chosen.alone:
            for name in names or METHODS:
                of_seed = partial(alone, METHODS[name], first, store, seed, rows, "test")
                keep("alone", f"{sequence}|{seed}|{name}", of_seed)
            continue
        for number in map(int, chosen.orders.split(",")):
            order = ORDERS[chosen.sequence][number]
            for name in names or [*METHODS, *TOGETHER]:
                if name in METHODS:
                    cell = partial(in_turn, METHODS[name], order, store, seed, rows, "test")
                elif number:  # their order does not matter
                    continue
                else:
                    cell = partial(at_once, TOGETHER[name], order, store, seed, rows, "test")
                keep("cells", f"{sequence}|{number}|{seed}|{name}", cell)


if __name__ == "__main__":
    main()
