"""Writes `saved/`: side networks of each kind, a run's folder, and what they give. Later releases have to read them.

    python -m tests.regression.save_models

That replaces what is there, and what an older release wrote is what the tests are about: only for a format that is
changed on purpose, or for a kind that is new.

A backbone is known by the bytes of its weights, and those of a model that is made anew may differ from one machine to
the next. So the backbones are kept, too; their weights must stay as they are.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from mobillm_flower import SideTunedModel
from tests.regression.observed import observe
from tests.regression.small_runs import SAVED, make_workplace, small_run
from tests.support.cli import parsed
from tests.support.tiny_models import save_tiny

KINDS = {
    "additive": "pae",
    "two-types": "two-types",
    "language": "language-difference",
    "low-rank": "low-rank",
    "fixed-gates": "fixed-gates",
    "upper-layers": "upper-layers",
    "causal": "causal",
    "discriminant": "discriminant",
}
"""Which run each folder comes from."""
TEXTS = ["the cat sat on the mat and then", "dog", "a good dog ran under the hill", "yes it slept"]
SMALL: dict[str, Any] = {"vocab_size": 32, "max_position_embeddings": 32}


def main() -> None:
    """Write all."""
    shutil.rmtree(SAVED, ignore_errors=True)
    save_tiny(SAVED / "backbones" / "bert", "bert", **SMALL)
    save_tiny(
        SAVED / "backbones" / "opt",
        "opt",
        **SMALL,
        hidden_size=8,
        word_embed_proj_dim=8,
        ffn_dim=16,
        num_hidden_layers=2,
    )
    with tempfile.TemporaryDirectory() as folder:
        workplace = make_workplace(Path(folder))
        for place, (kind, run) in enumerate(KINDS.items()):
            trained = workplace / run if (workplace / run).exists() else small_run(run, workplace)
            save_kind(SAVED / kind, trained / "side_network", seed=place)
        save_run(SAVED / "run", workplace)


def save_kind(folder: Path, trained: Path, *, seed: int) -> None:
    """Copy a run's side network, move its weights away from where training began, and note what it gives."""
    shutil.copytree(trained, folder)
    file = folder / "model.safetensors"
    generator = torch.Generator().manual_seed(seed)
    state = load_file(file)
    for name, tensor in sorted(state.items()):
        state[name] = tensor + 0.2 * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
    save_file(state, file)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    inputs: dict[str, Any] = {"texts": TEXTS, "backbones": [info["name"] for info in config["backbones"].values()]}
    folder.joinpath("inputs.json").write_text(json.dumps(inputs, indent=2) + "\n", "utf-8")
    expected: dict[str, torch.Tensor] = {}
    for name in inputs["backbones"]:
        model = SideTunedModel.from_pretrained(folder, backbone=str(SAVED / name), device="cpu")
        given = rows(model, generator)
        found = observe(model, given, TEXTS)
        assert all(value.abs().max() > 0.05 for value in found.values()), (folder.name, found)
        expected |= {f"{Path(name).name}.{key}": value for key, value in {**given, **found}.items()}
    save_file(expected, folder / "expected.safetensors")


def rows(model: SideTunedModel, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Random activations of four samples, in the shape that the side network takes."""
    blocks, vectors, width = model.spec.row_shape
    every_token = model.spec.pivot == "all"
    lengths = torch.tensor([5, 1, 7, 3] if every_token else [1, 1, 1, 1])
    found = {"rows": torch.randn(int(lengths.sum()), blocks, vectors * width, generator=generator)}
    if every_token:
        found["sequences" if model.contract.per_token else "lengths"] = lengths
    return found


def save_run(folder: Path, workplace: Path) -> None:
    """Keep a run's settings, cache and side network, and what it becomes without its first device."""
    folder.mkdir()
    made = workplace / "pae"
    with closing(sqlite3.connect(made / "cache.sqlite")) as cache:
        cache.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for name in ("settings.yaml", "cache.sqlite"):
        shutil.copy(made / name, folder / name)
    shutil.copytree(made / "side_network", folder / "side_network")
    forgotten = parsed("cache", "ls", made)["devices"][0]["device"]
    answer = parsed("cache", "forget", made, forgotten, "--retrain", "--yes")
    shutil.copytree(made / "side_network", folder / "expected")
    expected = {key: answer[key] for key in ("device", "samples", "retrained_steps")}
    folder.joinpath("expected.json").write_text(json.dumps(expected, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
