"""The closed form against training by steps: quality and the server's seconds, on one thread, in turns, three draws.

    .venv/bin/python -m benchmarks.studies.closed_form --data FOLDER --json benchmarks/results/closed_form.json

Each draw of training rows is encoded as devices would, put into a cache, and every variant is trained from its own. The
test rows' activations are not coded. Seconds are the trainer's, of the processor, with the decoding of the cache. Draws
are the first rows of permutations by seeds 0, 1, 2. Results that are in the file are kept.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from mobillm_flower import __version__, load_settings
from mobillm_flower.backbones import Backbone, load_backbone
from mobillm_flower.core.codecs import CODECS
from mobillm_flower.core.side_networks import ActivationBatch
from mobillm_flower.core.sparse import encode_sample
from mobillm_flower.privacy.ledger import Release
from mobillm_flower.server import ActivationCache
from mobillm_flower.strategies.run_plan import make_plan, prediction_rule
from mobillm_flower.wire.contract import TaskContract
from mobillm_flower.wire.target_bytes import encode_targets


@dataclass(frozen=True)
class Cell:
    """Training rows of a data set; with `classes`, of its first classes alone."""

    folder: str
    text: str
    rows: int
    max_length: int
    classes: int = 0


CELLS = {
    "SST-2 sentences, 1,000 rows": Cell("sst2_sentences", "sentence", 1000, 64),
    "CLINC150, 3,000 rows": Cell("clinc150", "text", 3000, 32),
    "CLINC150's first 50 intents, 5,000 rows": Cell("clinc150", "text", 5000, 32, classes=50),
    "SST-2 sentences, 6,920 rows": Cell("sst2_sentences", "sentence", 6920, 64),
}
PART = 1000
STEPS = ["side-network.name=additive", "activations.sampling=uniform", "activations.pivot=first+mean"]
VARIANTS = {
    "by steps, `first+mean` of 1–6": STEPS,
    "closed form, linear, `mean` of 1–6": ["activations.sampling=uniform", "side-network.random-features=0"],
    "closed form, `mean` of 1–6": ["activations.sampling=uniform"],
    "closed form, `mean` of 0, 3–6 (default)": [],
}


@dataclass(frozen=True)
class Split:
    """Texts' vectors of all layers [N, L + 1, 2, d], 0 the embeddings, first token and mean; their classes [N]."""

    vectors: Tensor
    labels: Tensor


def read(cell: Cell, split: str, data: Path, backbone: Backbone, work: Path) -> Split:
    """Return a split's vectors, each part of it computed once."""
    frame = pd.read_parquet(data / cell.folder / f"{split}.parquet")
    labels, texts = torch.tensor(frame["label"].tolist()), frame[cell.text].tolist()
    work.mkdir(parents=True, exist_ok=True)
    parts = []
    for start in range(0, len(texts), PART):
        file = work / f"{cell.folder}-{split}-{start}.pt"
        if not file.exists():
            tokens = backbone.tokenize(texts[start : start + PART], None, cell.max_length)
            layers = list(range(backbone.info.depth + 1))
            extracted = backbone.extract(tokens, layers=layers, pivot="first+mean")
            torch.save(torch.cat(extracted.activations).half(), file)
        parts.append(torch.load(file))
    kept = labels < cell.classes if cell.classes else torch.ones_like(labels, dtype=torch.bool)
    return Split(torch.cat(parts)[kept].float(), labels[kept])


def chosen(vectors: Tensor, layers: tuple[int, ...], pivot: str) -> Tensor:
    """Return what is uploaded of vectors, [N, M, P, d]."""
    return vectors[:, list(layers)] if pivot == "first+mean" else vectors[:, list(layers), 1:]


def drawn(train: Split, count: int, seed: int) -> Tensor:
    """Return the places of the training rows of a draw."""
    return torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(seed))[:count]


def measure(
    cell: Cell,
    words: list[str],
    seed: int,
    *,
    train: Split,
    test: Split,
    backbone: Backbone,
    rows: Tensor,
    folder: Path,
) -> dict[str, Any]:
    """Train one variant on these rows; return its accuracy, seconds, and bytes up and down."""
    settings = load_settings(overrides=[*words, f"run.seed={seed}", "trainer.validation-split=seed"])
    classes = int(train.labels.max()) + 1
    contract = TaskContract(
        kind="classification",
        labels=tuple(map(str, range(classes))),
        prompt="",
        label_words=(),
        max_length=cell.max_length,
        label_range=(),
        metric="accuracy",
    )
    plan = make_plan(settings, contract, {backbone.info.fingerprint: backbone.info}, [len(rows)])
    (spec,) = plan.specs.values()
    vectors = chosen(train.vectors[rows], spec.layers, spec.pivot)
    base = torch.full((len(rows), classes), 1 / classes)
    targets = encode_targets(train.labels[rows], base, spec, contract)
    cache = ActivationCache(folder / "cache.sqlite")
    plan.store(cache)
    samples = [
        Release(number.to_bytes(16, "big"), 1, encode_sample(one[None], CODECS[spec.codec], spec.keep), target)
        for number, (one, target) in enumerate(zip(vectors, targets, strict=True))
    ]
    cache.add("device", samples, backbone=spec.backbone, round_=1)
    rule = prediction_rule(plan, send_base=settings.loss.send_base)
    trainer = plan.trainer(cache, scores=rule.scores, memory_bytes=1 << 30)
    started = time.process_time()
    trainer.run_epochs()
    seconds = time.process_time() - started
    inputs = chosen(test.vectors, spec.layers, spec.pivot).flatten(2)
    with torch.inference_mode():
        side = torch.cat([trainer.network([ActivationBatch(spec.backbone, part)]) for part in torch.split(inputs, 512)])
    predicted = rule.scores(side, torch.full((len(side), classes), 1 / classes)).argmax(1)
    cache.close()
    return {
        "seed": seed,
        "accuracy": float((predicted == test.labels).float().mean()),
        "seconds": round(seconds, 2),
        "bytes_up_per_sample": len(samples[0].activations) + len(samples[0].target),
        "parameters": sum(p.numel() for p in trainer.network.parameters()),
    }


def summary(repetitions: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and spread of repetitions."""
    values = torch.tensor([row["accuracy"] for row in repetitions]).double()
    return {
        "accuracy": float(values.mean()),
        "spread": float(values.std()) if len(values) > 1 else math.nan,
        "seconds": sum(row["seconds"] for row in repetitions) / len(repetitions),
        "repetitions": list(repetitions),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with sst2_sentences and clinc150")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/closed_form"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--split", default="test")
    parser.add_argument("--cells", default="", help="only cells whose name begins so")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    backbone = load_backbone("minilm", device="cpu", token_budget=4096)
    out: dict[str, Any] = json.loads(arguments.json.read_text()) if arguments.json.exists() else {"cells": {}}
    out["versions"] = {"mobillm_flower": __version__, "torch": torch.__version__, "python": platform.python_version()}
    for seed in map(int, arguments.seeds.split(",")):
        for name, cell in CELLS.items():
            if not name.startswith(arguments.cells) or (seed and cell.rows == 6920):
                continue  # of 6,920, all rows there are, another draw is the same
            train, test = (
                read(cell, split, arguments.data, backbone, arguments.work) for split in ("train", arguments.split)
            )
            for variant, words in VARIANTS.items():
                before = out["cells"].setdefault(name, {}).get(variant, {}).get("repetitions", [])
                if seed in [row["seed"] for row in before]:
                    continue
                with TemporaryDirectory() as folder:
                    rows = drawn(train, cell.rows, seed)
                    what: dict[str, Any] = {"train": train, "test": test, "backbone": backbone, "rows": rows}
                    row = measure(cell, words, seed, folder=Path(folder), **what)
                print(name, variant, row, flush=True)
                out["cells"][name][variant] = summary([*before, row])
                arguments.json.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
