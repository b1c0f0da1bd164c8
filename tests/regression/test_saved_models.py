"""What was saved before is loaded, and gives what it gave. It lies in `saved/`, see `save_models.py`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mobillm_flower import SIDE_NETWORKS, SideTunedModel
from tests.regression.observed import INPUTS, observe
from tests.support.cli import parsed

SAVED = Path(__file__).parent / "saved"
KINDS = sorted(file.parent.name for file in SAVED.glob("*/inputs.json"))
NEAR: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-4}
"""Of outputs of about 1: what another processor's rounding leaves, with room."""


def test_each_kind_is_there() -> None:
    names = {json.loads((SAVED / kind / "config.json").read_text("utf-8"))["side_network"]["name"] for kind in KINDS}
    assert names == {"additive", "causal", "discriminant", "fixed-gates", "low-rank", "upper-layers"}
    assert all(name in SIDE_NETWORKS for name in names)
    assert {"language", "two-types"} < set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_gives_what_it_gave(kind: str) -> None:
    inputs = json.loads((SAVED / kind / "inputs.json").read_text("utf-8"))
    tensors = load_file(SAVED / kind / "expected.safetensors")
    for name in inputs["backbones"]:
        model = SideTunedModel.from_pretrained(SAVED / kind, backbone=str(SAVED / name), device="cpu")
        mine = {key.partition(".")[2]: value for key, value in tensors.items() if key.startswith(f"{Path(name).name}.")}
        given = {key: mine.pop(key) for key in INPUTS if key in mine}
        torch.testing.assert_close(observe(model, given, inputs["texts"]), mine, **NEAR)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_is_saved_as_it_was(kind: str, tmp_path: Path) -> None:
    """The same weights under the same names, and the same description of them."""
    config = json.loads((SAVED / kind / "config.json").read_text("utf-8"))
    for backbone, info in config["backbones"].items():
        model = SideTunedModel.from_pretrained(SAVED / kind, backbone=str(SAVED / info["name"]), device="cpu")
        folder = tmp_path / backbone
        model.save_pretrained(folder)
        before, after = load_file(SAVED / kind / "model.safetensors"), load_file(folder / "model.safetensors")
        others = {other for other in config["backbones"] if other != backbone}
        before = {name: value for name, value in before.items() if not others & set(name.split("."))}
        torch.testing.assert_close(after, before, rtol=0, atol=0)
        again = json.loads((folder / "config.json").read_text("utf-8"))
        assert again["specs"] == {backbone: config["specs"][backbone]}
        assert again["backbones"][backbone] == {**info, "name": str(SAVED / info["name"])}
        for part in ("format", "contract", "prediction"):
            assert again[part] == config[part]
        if not others:
            assert again["side_network"] == config["side_network"]


def test_a_runs_cache_is_whole(run: Path) -> None:
    assert parsed("cache", "verify", run)["damages"] == []
    held = parsed("cache", "ls", run)["devices"]
    assert [device["samples"] for device in held] == [20, 20, 20]


def test_a_run_is_trained_again_without_a_device(run: Path) -> None:
    """The same steps from the same samples; a step follows a gradient's sign, so rounding is seen in the weights."""
    expected = json.loads((SAVED / "run" / "expected.json").read_text("utf-8"))
    before = load_file(run / "side_network" / "model.safetensors")
    answer = parsed("cache", "forget", run, expected["device"], "--retrain", "--yes")
    assert {key: answer[key] for key in expected} == expected
    after, wanted = (
        load_file(folder / "model.safetensors") for folder in (run / "side_network", SAVED / "run/expected")
    )
    torch.testing.assert_close(after, wanted, rtol=1e-3, atol=1e-4)
    assert any((after[name] - before[name]).abs().max() > 1e-3 for name in before)
    config, same = (
        json.loads((f / "config.json").read_text("utf-8")) for f in (run / "side_network", SAVED / "run/expected")
    )
    assert config == same


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A copy of the saved run: looking at a cache writes beside it."""
    return Path(shutil.copytree(SAVED / "run", tmp_path / "run"))
