"""`mobillm cache forget --retrain`: the side network that a run without the device would have had, bit by bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord
from safetensors.torch import load_file

from mobillm_flower import SideTuningClient, load_settings, make_strategy
from mobillm_flower.runs.folder import RunFolder
from mobillm_flower.server import ActivationCache
from mobillm_flower.server.plan import TrainingPlan, note_warm_start, replay
from tests.support.caches import state_bytes
from tests.support.cli import lines, parsed, refused
from tests.support.local_grid import LocalGrid
from tests.support.runs import NUM_SAMPLES, tiny_config
from tests.support.tiny_models import save_tiny

SHALLOW = {"partition-id": 0, "num-partitions": 3, "backbone.layers": 2}
OTHER = {"partition-id": 1, "num-partitions": 3, "backbone.layers": 2}
DEEP = {"partition-id": 2, "num-partitions": 3}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("backbone"), "bert")


def run(folder: Path, backbone: Path, nodes: list[dict[str, Any]], **changes: Any) -> Any:
    config = tiny_config(folder, backbone, **{"arrivals__grow_windows": False, **changes})
    strategy = make_strategy(load_settings(config))
    strategy.poll_s = 0.0
    grid = LocalGrid(SideTuningClient().app, nodes, config, order_seed=4)
    strategy.start(grid, ArrayRecord())
    return strategy


def weights(folder: Path) -> bytes:
    state = load_file(folder / "side_network" / "model.safetensors")
    return b"".join(tensor.numpy().tobytes() for _, tensor in sorted(state.items()))


def pseudonym(strategy: Any, place: int) -> str:
    return str(strategy.fleet.devices[100 + place].description.pseudonym)


FED = {"preset": "fed", "arrivals__ingest_first": True}
PAE = {"preset": "pae", "trainer__overlap_steps": 0}
ROUNDS = {"preset": "pae", "trainer__overlap_steps": 2}


@pytest.mark.parametrize(
    ("changes", "gone"),
    [(FED, DEEP), (FED, OTHER), (PAE, OTHER), (ROUNDS, OTHER)],
    ids=["fed, its whole type goes", "fed, its type stays", "pae", "pae with overlapping steps, all windows alike"],
)
def test_it_equals_a_run_that_never_had_the_device(tmp_path: Path, backbone: Any, changes: Any, gone: Any) -> None:
    nodes = [SHALLOW, OTHER, DEEP]
    others = [node for node in nodes if node is not gone]
    strategy = run(tmp_path / "run", backbone, nodes, **changes)
    never = run(tmp_path / "never", backbone, others, **changes)
    before = weights(tmp_path / "run")
    assert before != weights(tmp_path / "never")
    name = pseudonym(strategy, nodes.index(gone))
    steps = never.trainer.position.steps
    found = parsed("cache", "forget", tmp_path / "run", name, "--retrain", "--yes")
    assert found == {"run": str(tmp_path / "run"), "device": name, "samples": NUM_SAMPLES, "retrained_steps": steps}
    assert weights(tmp_path / "run") == weights(tmp_path / "never")
    cache = ActivationCache(tmp_path / "run" / "cache.sqlite")
    plan = TrainingPlan.of(cache)
    assert plan is not None
    assert (plan.side_config, plan.options) == (never.plan.side_config, never.plan.options)
    assert state_bytes(replay(cache, scores=strategy.rule.scores)) == weights(tmp_path / "never")
    cache.close()
    config = [json.loads((tmp_path / run / "side_network" / "config.json").read_text()) for run in ("run", "never")]
    assert config[0] == config[1]


def test_a_run_started_again_afterwards_stays_as_it_was_retrained(tmp_path: Path, backbone: Any) -> None:
    strategy = run(tmp_path, backbone, [SHALLOW, OTHER], **FED)
    (line,) = lines("cache", "forget", tmp_path, pseudonym(strategy, 1), "--retrain", "--yes")
    assert "is trained anew without them" in line
    retrained = weights(tmp_path)
    run(tmp_path, backbone, [SHALLOW], **FED)
    assert weights(tmp_path) == retrained
    events = [json.loads(text) for text in RunFolder(tmp_path).events.read_text().splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds.index("forgotten") + 1 == kinds.index("retrained")


def test_what_cannot_be_retrained_is_refused_and_nothing_is_deleted(tmp_path: Path, backbone: Any) -> None:
    strategy = run(tmp_path, backbone, [SHALLOW], **FED)
    name = pseudonym(strategy, 0)
    assert "holds no other device" in refused("cache", "forget", tmp_path, name, "--retrain", "--yes")
    cache = ActivationCache(tmp_path / "cache.sqlite")
    note_warm_start(cache)
    assert "it began from given weights" in refused("cache", "forget", tmp_path, name, "--retrain", "--yes")
    assert cache.devices() == {name: NUM_SAMPLES}
    cache.close()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_a_device_of_training_that_is_not_there_is_noticed_before_anything_is_deleted(
    tmp_path: Path, backbone: Any
) -> None:
    strategy = run(tmp_path, backbone, [SHALLOW, OTHER], **FED)
    settings = tmp_path / "settings.yaml"
    before, trainer, after = settings.read_text("utf-8").partition("\ntrainer:\n")
    settings.write_text(before + trainer + after.replace("  device: cpu\n", "  device: cuda\n", 1), "utf-8")
    trained = weights(tmp_path)
    message = refused("cache", "forget", tmp_path, pseudonym(strategy, 1), "--retrain", "--yes")
    assert "trainer.device='cuda' is not available on this machine" in message
    assert weights(tmp_path) == trained
    cache = ActivationCache(tmp_path / "cache.sqlite")
    assert len(cache.devices()) == 2
    cache.close()
