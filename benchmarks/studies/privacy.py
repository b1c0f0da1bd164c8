"""Accuracy under an ε for each sample, text and label together, on three data sets, three seeds.

    .venv/bin/python benchmarks/studies/privacy.py --data FOLDER --json benchmarks/results/privacy.json

Eight devices hold the whole train split, dealt out anew for each seed. They make their uploads by the code of a run
(`Device`, packing, opening, cache), the trainer fits from that cache, and accuracy is on the whole test split,
predicted from clean activations as a device does. A seed fixes the devices' secrets and the deal. Three things are
shared: each text runs forward once (kept in float16), a projection is fitted once, and the fits on fewer samples are
made from the same cache, some of its devices forgotten.

Features (the mean vector of layers 4, 5, 6), dimensions by ε and codec were chosen before, on splits of train; nothing
is chosen here. Constants are fitted on public text: that of the package, or sentences of other data sets, never the
task's own. Cells that are finished are taken from the work folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import platform
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from mobillm_flower import __version__, load_settings
from mobillm_flower.audit.uploads import RememberingBackbone, Uploads, clean_rows, make_uploads
from mobillm_flower.backbones import load_backbone
from mobillm_flower.backbones.public import public_text
from mobillm_flower.config import Settings
from mobillm_flower.core.side_networks import ActivationBatch
from mobillm_flower.core.targets import base_prediction
from mobillm_flower.server import ActivationCache
from mobillm_flower.strategies.run_plan import make_plan, prediction_rule
from mobillm_flower.tasks import METRICS, LocalData, load_central_data, load_local_data, render
from mobillm_flower.tasks.extraction import release_guarantee

TASKS = {
    "sst2": {"data.source": "sst2_sentences", "data.text-column": "sentence"},
    "sms": {"data.source": "sms_spam", "task.metric": "macro-f1"},
    "ag_news": {"data.source": "ag_news_10k"},
}
COMMON = {
    "data.label-column": "label",
    "data.partition": "iid",
    "activations.layers": "4,5,6",
    "activations.pivot": "mean",
    "activations.codec": "int8",
    "side-network.name": "discriminant",
    "loss.name": "logit",
    "trainer.num-threads": "1",
}
OTHER_SETS = (  # data set, column, whether it is a dialogue to be cut into utterances
    ("glue_cola", "sentence", False),
    ("glue_mrpc", "sentence1", False),
    ("dialogsum", "summary", False),
    ("dialogsum", "dialogue", True),
    ("ag_news_10k", "text", False),
    ("sms_spam", "text", False),
)
LINES = 1000  # of each other set
DIMENSIONS = {1: 16, 2: 32, 4: 32, 8: 64, 16: 64, 0: 64}  # by ε of the joint mechanism; 0: no noise
SPLIT_DIMENSIONS = 16  # of Gaussian and randomized response, whose noise in more of them is worse
SHARES = (8, 4, 2, 1)  # devices whose samples are fitted on: all, half, a quarter, an eighth
DEVICES = 8
PACKAGE, OTHERS = "package", "other sets"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One row of settings, fitted for each seed."""

    text: str  # whose public text: PACKAGE or OTHERS
    mechanism: str  # joint | split | none
    epsilon: int  # 0: no noise

    @property
    def name(self) -> str:
        return f"{self.mechanism}, {self.text} text, ε = {self.epsilon or '∞'}"

    @property
    def words(self) -> dict[str, str]:
        dimensions = DIMENSIONS[self.epsilon]
        if self.mechanism == "joint":
            given = {"privacy.joint-epsilon": str(self.epsilon)}
        elif self.mechanism == "split":
            dimensions = SPLIT_DIMENSIONS
            given = {
                "privacy.activation-epsilon": str(0.75 * self.epsilon),
                "privacy.label-epsilon": str(0.25 * self.epsilon),
            }
        else:
            given = {}
        return {"activations.projection": str(dimensions), **given}

    @property
    def is_sized(self) -> bool:
        """Whether fewer samples are tried too."""
        return self.mechanism == "joint" and self.text == OTHERS and self.epsilon <= 8

    @property
    def is_stepped(self) -> bool:
        """Whether the additive side network is trained by steps as well."""
        return self.text == OTHERS and (self.mechanism == "none" or (self.mechanism, self.epsilon) == ("joint", 8))


EPSILONS = (8, 4, 2, 1, 16)
CELLS = [
    *(Cell(text, "none", 0) for text in (OTHERS, PACKAGE)),
    *(Cell(OTHERS, "joint", epsilon) for epsilon in EPSILONS),
    *(Cell(OTHERS, "split", epsilon) for epsilon in EPSILONS),
    *(Cell(PACKAGE, "joint", epsilon) for epsilon in EPSILONS),
]


class Forward(RememberingBackbone):
    """Each text is tokenized and runs forward once, also when the benchmark is started again.

    Activations are kept in float16, whose rounding is a hundredth of that of int8.
    """

    def tokenize(
        self, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int
    ) -> list[dict[str, list[int]]]:
        if pairs is not None:
            return super().tokenize(texts, pairs, max_length)
        cut = self.__dict__.setdefault("_cut", {})
        fresh = list(dict.fromkeys(text for text in texts if (text, max_length) not in cut))
        for text, tokens in zip(fresh, super().tokenize(fresh, None, max_length) if fresh else [], strict=True):
            cut[text, max_length] = tokens
        return [cut[text, max_length] for text in texts]

    def run(self, texts: list[str], settings: Settings, max_length: int, file: Path) -> None:
        """Run texts forward, and keep what is new."""
        layers, tokens, before = settings.activations.layers, self.tokenize(texts, None, max_length), len(self._known)
        for start in range(0, len(tokens), 1000):
            self.extract(tokens[start : start + 1000], layers=layers, pivot="mean")
        if len(self._known) > before:
            rows = torch.stack([row for row, _ in self._known.values()])
            torch.save({"keys": list(self._known), "rows": rows.half()}, file)
            self.take(file)

    def take(self, file: Path) -> None:
        found = torch.load(file, weights_only=True)
        self._known |= {key: (row.float(), None) for key, row in zip(found["keys"], found["rows"], strict=True)}


def other_sets(data: Path, source: str, folder: Path) -> tuple[Path, dict[str, int]]:
    """Write a file of public sentences that are not the task's own; returns it and its lines by set."""
    own = {text for split in ("train", "test") for text in _texts(data, source, split)}
    lines: list[str] = []
    counts: dict[str, int] = {}
    for name, column, dialogue in OTHER_SETS:
        if name == source:
            continue
        values = pd.read_parquet(data / name / "train.parquet")[column].tolist()
        if dialogue:
            said = [part.split(":", 1)[-1] for text in values[:2000] for part in text.splitlines()]
            values = [text for text in said if len(text) > 25]
        found = sorted({" ".join(text.split()) for text in values} - own - {""})
        drawn = np.random.default_rng(0).permutation(len(found))[:LINES]
        lines += [found[i] for i in drawn]
        counts[f"{name}, {column}"] = len(drawn)
    file = folder / f"public-{source}.txt"
    file.write_text("\n".join(lines) + "\n", "utf-8")
    return file, counts


def _texts(data: Path, source: str, split: str) -> Iterator[str]:
    frame = pd.read_parquet(data / source / f"{split}.parquet")
    for column in ("sentence", "text"):
        if column in frame:
            yield from (" ".join(text.split()) for text in frame[column])


class Measured:
    """One data set: its settings, its forward passes, its clean test split."""

    def __init__(self, task: str, data: Path, work: Path) -> None:
        self.task, self.data, self.work = task, data, work
        self.file, self.lines = other_sets(data, TASKS[task]["data.source"], work)
        settings = self.settings({})
        central = load_central_data(settings)
        self.contract, self.test = central.contract, central.test
        self.num_train = len(central.train)
        loaded = load_backbone(settings.backbone.name, token_budget=2048, num_labels=self.contract.num_outputs)
        self.backbone = Forward(loaded)
        kept = work / f"forward-{task}.pt"
        if kept.exists():
            self.backbone.take(kept)
        for samples in (central.train, central.test):
            self.backbone.run(list(render(samples, self.contract)[0]), settings, self.contract.max_length, kept)
        for name in (str(self.file), ""):
            self.backbone.run(list(public_text(name)), settings, self.contract.max_length, kept)
        self._clean: dict[tuple[str, str], torch.Tensor] = {}
        self._fleets: dict[int, dict[int, LocalData]] = {}
        print(task, "forward passes are there", flush=True)

    def settings(self, words: dict[str, str], *, text: str = PACKAGE, seed: int = 0) -> Settings:
        source = {**TASKS[self.task], "data.source": str((self.data / TASKS[self.task]["data.source"]).resolve())}
        seeds = {"data.seed": str(seed), "run.seed": str(seed)}
        public = {"activations.public-text": str(self.file)} if text == OTHERS else {}
        merged = {**COMMON, **source, **seeds, **public, **words}
        return load_settings(overrides=[f"{key}={value}" for key, value in merged.items()])

    def once(self, cell: Cell, seed: int) -> dict[str, Any]:
        """Upload, fit and predict with one seed."""
        settings = self.settings(cell.words, text=cell.text, seed=seed)
        if seed not in self._fleets:
            self._fleets[seed] = {i: load_local_data(settings, i, DEVICES) for i in range(DEVICES)}
        fleet = self._fleets[seed]
        row: dict[str, Any] = {"seed": seed}
        with tempfile.TemporaryDirectory(dir=self.work) as name:
            folder = Path(name)
            for i in fleet:
                secret = folder / f"device-{i}" / "secret"
                secret.parent.mkdir(mode=0o700)
                secret.write_bytes(hashlib.sha256(f"benchmark {seed} {i}".encode()).digest())
                secret.chmod(0o600)
            with make_uploads(settings, fleet, self.backbone, folder) as (uploads, cache):
                promised = release_guarantee(uploads.spec, self.contract, delta=settings.privacy.delta)
                row["epsilon"], row["delta"] = promised.epsilon, promised.delta
                row["bytes_a_sample"] = uploads.bytes_a_sample
                if cell.is_stepped:
                    additive = self.settings({**cell.words, "side-network.name": "additive"}, text=cell.text, seed=seed)
                    row["by_steps"] = self.fitted(additive, uploads, cache)
                row["metric"] = self.fitted(settings, uploads, cache)
                row["by_samples"] = {str(len(cache)): row["metric"]}
                for share in SHARES[1:] if cell.is_sized else ():
                    for pseudonym in sorted(cache.devices())[share:]:
                        cache.forget(pseudonym)
                    row["by_samples"][str(len(cache))] = self.fitted(settings, uploads, cache)
        return row

    def fitted(self, settings: Settings, uploads: Uploads, cache: ActivationCache) -> float:
        """Train as a server does, and measure on the test split."""
        spec = uploads.spec
        plan = make_plan(
            settings,
            self.contract,
            {spec.backbone: self.backbone.info},
            [len(cache)],
        )
        rule = prediction_rule(plan, send_base=settings.loss.send_base)
        trainer = plan.trainer(cache, scores=rule.scores, memory_bytes=1 << 30)
        trainer.run_epochs()
        trainer.network.eval()
        key = (settings.activations.public_text, spec.projection)
        if key not in self._clean:
            self._clean[key] = clean_rows(settings, spec, self.contract, self.test, self.backbone)
        with torch.inference_mode():
            side = trainer.network([ActivationBatch(spec.backbone, self._clean[key])])
        base = base_prediction(None, len(self.test), self.contract.num_outputs)
        predicted = rule.scores(side, base).argmax(1).numpy()
        return float(METRICS[self.contract.metric](self.test.labels.numpy(), predicted))

    def cell(self, cell: Cell, seeds: list[int]) -> dict[str, Any]:
        # nothing is drawn without noise but the deal, which a closed form does not see; steps see the seed
        used = seeds if cell.epsilon or cell.is_stepped else seeds[:1]
        rows = []
        for seed in used:
            started = time.time()
            rows.append(self.once(cell, seed))
            print(self.task, cell.name, rows[-1], f"{time.time() - started:.0f} s", flush=True)
        result = {
            "text": cell.text,
            "text_lines": len(public_text(str(self.file) if cell.text == OTHERS else "")),
            "mechanism": cell.mechanism,
            "epsilon": cell.epsilon or None,
            "settings": {**COMMON, **cell.words},
            "commit": commit(),
            "repetitions": rows,
            **summary([row["metric"] for row in rows]),
        }
        if cell.is_stepped:
            result["by_steps"] = summary([row["by_steps"] for row in rows])
        if cell.is_sized:
            sizes = [list(row["by_samples"].items()) for row in rows]
            result["by_samples"] = [
                {"samples": int(np.mean([int(n) for n, _ in same])), **summary([value for _, value in same])}
                for same in zip(*sizes, strict=True)
            ]
        return result


def summary(values: list[float]) -> dict[str, Any]:
    """Mean and standard deviation over seeds."""
    return {"mean": float(np.mean(values)), "spread": float(np.std(values, ddof=1)) if len(values) > 1 else None}


def commit() -> str:
    return subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()


def assemble(work: Path, file: Path) -> None:
    """Write what all data sets' files in the work folder hold."""
    out = {
        "commit": commit(),
        "versions": {
            "mobillm_flower": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "tasks": {name: json.loads(part.read_text()) for name in TASKS if (part := work / f"{name}.json").exists()},
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(out, indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with sst2_sentences, sms_spam, ag_news_10k, …")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/privacy"))
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--text", default="", choices=["", PACKAGE, OTHERS], help="cells of this public text alone")
    parser.add_argument("--seeds", default="0,1,2")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    for task in arguments.tasks.split(","):
        part = arguments.work / f"{task}.json"
        found: dict[str, Any] = json.loads(part.read_text()) if part.exists() else {}
        measured = Measured(task, arguments.data, arguments.work)
        labels = measured.test.labels.numpy()
        metric = METRICS[TASKS[task].get("task.metric", "accuracy")]
        found |= {
            "metric": TASKS[task].get("task.metric", "accuracy"),
            "num_train": measured.num_train,
            "num_test": len(labels),
            "majority": float(metric(labels, np.full_like(labels, np.bincount(labels).argmax()))),
            "other_sets": measured.lines,
        }
        found.setdefault("cells", {})
        for cell in CELLS:
            if cell.name in found["cells"] or arguments.text not in ("", cell.text):
                continue
            found["cells"][cell.name] = measured.cell(cell, [int(seed) for seed in arguments.seeds.split(",")])
            part.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
            if arguments.json:
                assemble(arguments.work, arguments.json)


if __name__ == "__main__":
    main()
