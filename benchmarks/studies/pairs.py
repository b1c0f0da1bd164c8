"""What a solution reads of pairs of texts: both in one input, or apart, with or without the length of each vector.

    .venv/bin/python -m benchmarks.studies.pairs --data FOLDER --json benchmarks/results/pairs.json

all-MiniLM-L6-v2 in bf16, default layers, `mean`, NF4, 1,000 training rows, closed form with 2,048 random features. The
metric of training rows, each left out, chooses; that of test rows is shown beside it. Results in the file are kept.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mobillm_flower.backbones.load import load_with
from mobillm_flower.backbones.options import LoadOptions
from mobillm_flower.config import load_settings
from mobillm_flower.core.codecs import CODECS
from mobillm_flower.core.side_networks import ActivationBatch, ClosedFormSideNetwork, LabelledBatch
from mobillm_flower.tasks import load_central_data, measure
from mobillm_flower.tasks.activations import read_activations
from mobillm_flower.tasks.extraction import extraction_spec


@dataclass(frozen=True)
class Task:
    """A data set of pairs: its folder, settings, and how many of its test rows are read."""

    folder: str
    words: tuple[str, ...]
    num_test: int


_OF_CLASSES = ("task.kind=pairs",)
TASKS = {
    "MRPC": Task("glue_mrpc", (*_OF_CLASSES, "data.test-split=test"), 1725),
    "RTE": Task("glue_rte", (*_OF_CLASSES, "data.test-split=validation"), 277),
    "STS-B": Task(
        "glue_stsb",
        ("task.kind=regression", "task.label-range=0,5", "data.label-column=score", "data.test-split=validation"),
        1000,
    ),
}
VARIANTS = {
    "both texts in one input": (False, True),
    "apart, layer-normalised": (True, False),
    "apart, one constant a vector": (True, True),
}
"""Whether texts run apart, and whether vectors are divided by one constant in place of a layer norm."""
_ROWS = 1000


def run(task: Task, data: Path, *, apart: bool, scaled: bool) -> dict[str, float]:
    """Return the metric of left-out training rows and of test rows."""
    words = [f"data.source={(data / task.folder).resolve()}", "data.text-column=sentence1"]
    words += ["data.pair-column=sentence2", "backbone.name=minilm", "backbone.precision=bf16", *task.words]
    settings = load_settings(overrides=[*words, f"activations.bi-encoder={str(apart).lower()}"])
    read = load_central_data(settings)
    backbone = load_with(LoadOptions.of(settings.backbone).for_task(read.contract))
    spec = extraction_spec(backbone.info, settings, num_blocks=0, num_outputs=1)
    codec = CODECS[spec.codec]

    def part(samples: Any, count: int, *, coded: bool) -> tuple[Tensor, Tensor]:
        order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))[:count].tolist()
        chosen = samples.take(order)
        rows = torch.cat(read_activations(backbone, chosen, read.contract, spec).activations).flatten(2)
        if coded:
            flat = codec.decode([codec.encode(row.flatten()) for row in rows], [rows[0].numel()] * len(rows))
            rows = flat.reshape(rows.shape)
        return rows, chosen.labels

    (rows, labels), (test, test_labels) = (
        part(read.train, _ROWS, coded=True),
        part(read.test, task.num_test, coded=False),
    )
    outputs = read.contract.num_outputs
    network = ClosedFormSideNetwork(
        types={spec.backbone: spec.alignment},
        num_blocks=len(spec.layers),
        num_outputs=outputs,
        input_norm=not scaled,
        vector_scale=scaled,
        random_features=2048,
    )
    if read.contract.is_regression:
        targets = labels[:, None].float()
    else:
        targets = functional.one_hot(labels, outputs) - 1 / outputs  # Δy of a constant p_b
    batch = LabelledBatch(ActivationBatch(spec.backbone, rows), labels, targets=targets)
    (fitted,) = network.fit([batch])
    with torch.inference_mode():
        scores = network([ActivationBatch(spec.backbone, test)])
    return {
        "left out": measure(fitted.scores, labels, read.contract),
        "test": measure(scores, test_labels, read.contract),
        "bytes up a sample": len(codec.encode(rows[0].flatten())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with glue_mrpc, glue_rte and glue_stsb")
    parser.add_argument("--json", type=Path, required=True)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    out: dict[str, Any] = json.loads(asked.json.read_text("utf-8")) if asked.json.exists() else {}
    for name, task in TASKS.items():
        for variant, (apart, scaled) in VARIANTS.items():
            if variant not in out.setdefault(name, {}):
                out[name][variant] = run(task, asked.data, apart=apart, scaled=scaled)
                print(name, variant, out[name][variant], flush=True)
                asked.json.write_text(json.dumps(out, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
