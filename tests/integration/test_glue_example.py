"""`examples/glue`: every task's settings are usable, and its runs end with a table."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mobillm_flower import SideTunedModel
from mobillm_flower.launch import read_app
from mobillm_flower.runs.record import read_run
from mobillm_flower.tasks.metrics import METRICS
from tests.support.pages import ROOT
from tests.support.runs import run, tiny_config
from tests.support.tiny_models import WORDS, save_tiny

SCRIPT = ROOT / "examples" / "glue" / "run.py"


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("glue_run", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["glue_run"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


glue = _script()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Rows in the form of GLUE's own, of the small vocabulary."""
    for name in ("rte", "stsb"):
        folder = tmp_path / "data" / f"glue_{name}"
        folder.mkdir(parents=True)
        for split, count in (("train", 60), ("validation", 12)):
            rows: dict[str, list[Any]] = {
                "sentence1": [" ".join(WORDS[i % 7 : i % 7 + 5]) for i in range(count)],
                "sentence2": [" ".join(WORDS[i % 5 : i % 5 + 3]) for i in range(count)],
            }
            rows |= {"score": [i % 6 * 1.0 for i in range(count)]} if name == "stsb" else {}
            rows |= {"label": [i % 2 for i in range(count)]} if name == "rte" else {}
            pq.write_table(pa.table(rows), folder / f"{split}.parquet")
    return tmp_path / "data"


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", glue.TASKS)
def test_every_task_from_the_hub(name: str, causal: bool) -> None:
    words = glue.settings(name, data=None, backbone="minilm", causal=causal)
    settings = read_app(SCRIPT.parent).settings(words)
    assert (settings.data.source, settings.data.subset) == ("nyu-mll/glue", name)
    assert settings.task.metric in METRICS
    assert len(settings.task.labels) == (0 if name == "stsb" else 3 if name == "mnli" else 2)
    assert bool(settings.data.pair_column) == (settings.task.kind == "pairs" or name == "stsb")
    assert bool(settings.task.prompt) == causal
    if causal:
        assert len(settings.task.label_words) == len(settings.task.labels)
        assert ("{text_pair}" in settings.task.prompt) == bool(settings.data.pair_column)


@pytest.mark.parametrize("family", ["bert", "opt"])
@pytest.mark.parametrize("name", ["rte", "stsb"])
def test_a_local_task_runs_to_the_end(tmp_path: Path, data: Path, name: str, family: str) -> None:
    backbone = save_tiny(tmp_path / "model", family)
    words = glue.settings(name, data=data, backbone=str(backbone), causal=family == "opt")
    config = tiny_config(tmp_path / "run", backbone) | dict(word.split("=", 1) for word in words)
    config |= {"task.max-length": 48}
    run(config)
    assert read_run(tmp_path / "run").outcome == "completed"
    model = SideTunedModel.from_pretrained(tmp_path / "run" / "side_network", device="cpu")
    assert model.contract.metric == ("spearman" if name == "stsb" else "accuracy")
    assert (model.backbone.info.base_prediction == "label-words") == ((name, family) == ("rte", "opt"))
    assert model.predict("the cat", "a dog").scores.shape == (1, 1 if name == "stsb" else 2)


def test_the_page_has_the_table_that_was_measured() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "glue.json").read_text("utf-8"))
    assert glue.table(found["figures"]["runs"]) in (ROOT / "docs" / "how-to" / "glue.md").read_text("utf-8")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_script_prints_a_table(tmp_path: Path, data: Path) -> None:
    backbone = save_tiny(tmp_path / "model", "opt")
    command = [sys.executable, str(SCRIPT), "rte", "stsb", "--data", str(data), "--backbone", str(backbone)]
    command += ["--out", str(tmp_path / "runs"), "-c", "data.num-devices=2", "-c", "task.max-length=48"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    answer = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert answer.returncode == 0, answer.stderr
    rows = [line.split(" | ") for line in answer.stdout.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows] == ["| task", "| ---", "| rte", "| stsb"]
    assert [row[1:4] for row in rows[2:]] == [["accuracy", "model", "60"], ["spearman", "model", "60"]]
    again = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert again.stdout.splitlines()[-4:] == answer.stdout.splitlines()[-4:]
    assert "mobillm run" not in again.stdout
