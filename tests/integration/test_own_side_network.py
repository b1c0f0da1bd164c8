"""A side network of a user's own trains, is saved, loaded, and trained again from the cache in another process."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from flwr.app import ArrayRecord

from mobillm_flower import SideTunedModel, SideTuningClient, load_settings, make_strategy
from mobillm_flower.errors import SettingsError
from tests.support.caches import state_bytes
from tests.support.local_grid import LocalGrid
from tests.support.own_side_network import NAME, OneLinearLayer
from tests.support.tiny_models import save_tiny

REPLAY = """
import hashlib, sys
from mobillm_flower.core.prediction import PredictionRule
from mobillm_flower.server import ActivationCache
from mobillm_flower.server.plan import replay
from tests.support.caches import state_bytes
if sys.argv[2]:
    __import__(sys.argv[2])
network = replay(ActivationCache(sys.argv[1]), scores=PredictionRule("square", 1.0).scores)
print(hashlib.sha256(state_bytes(network)).hexdigest())
"""


def make_config(folder: Path, **changes: object) -> dict[str, object]:
    """Three devices with a tiny encoder and a few dozen messages each."""
    return {
        "preset": "pae",
        "backbone.name": str(save_tiny(folder, "bert")),
        "data.label-column": "intent",
        "data.max-samples": 30,
        "task.max-length": 16,
        "trainer.epochs": 2,
        "trainer.num-threads": 1,
        "run.folder": str(folder / "run"),
        **changes,
    }


def trained(config: dict[str, object]) -> bytes:
    """Run to the end; returns the trained weights as bytes."""
    nodes = [{"partition-id": i, "num-partitions": 3} for i in range(3)]
    strategy = make_strategy(load_settings(config))
    strategy.poll_s = 0.0
    strategy.start(LocalGrid(SideTuningClient().app, nodes, config), ArrayRecord())
    return state_bytes(strategy.trainer.network)


def trained_again_elsewhere(run: Path, module: str) -> str:
    """Train from a run's cache in a fresh process; returns the hash of the weights."""
    words = [sys.executable, "-c", REPLAY, str(run / "cache.sqlite"), module]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize(
    ("name", "changes", "module"),
    [(NAME, {}, OneLinearLayer.__module__), ("causal", {"activations.pivot": "all"}, "")],
)
def test_it_is_trained_again_in_a_fresh_process(
    tmp_path: Path, name: str, changes: dict[str, object], module: str
) -> None:
    config = make_config(tmp_path, **{"side-network.name": name, **changes})
    weights = trained(config)
    assert any(weights)
    assert trained_again_elsewhere(tmp_path / "run", module) == hashlib.sha256(weights).hexdigest()


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    weights = trained(make_config(tmp_path, **{"side-network.name": NAME}))
    model = SideTunedModel.from_pretrained(tmp_path / "run" / "side_network")
    assert isinstance(model.side_network, OneLinearLayer)
    assert state_bytes(model.side_network) == weights
    assert model.predict(["Can you send me the address?"]).scores.isfinite().all()
    card = (tmp_path / "run" / "side_network" / "README.md").read_text("utf-8")
    assert f"# Side network ({NAME})" in card
    assert "bottleneck" not in card


def test_a_setting_that_it_does_not_take_is_refused(tmp_path: Path) -> None:
    settings = load_settings(make_config(tmp_path, **{"side-network.name": NAME, "side-network.bottleneck": 32}))
    with pytest.raises(SettingsError, match=r"side-network\.bottleneck=32"):
        make_strategy(settings)
