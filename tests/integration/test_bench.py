"""Each benchmark at a tiny size: its JSON has what it says. No figure is asserted to be fast."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from benchmarks.comparison.commands import app
from benchmarks.measuring import BenchReport, Threshold
from benchmarks.overhead.cache import bench_cache
from benchmarks.overhead.codecs import bench_codecs
from benchmarks.overhead.commands import _rows, finish
from benchmarks.overhead.device import bench_device
from benchmarks.overhead.fleet_scale import _measure, bench_fleet_scale
from benchmarks.overhead.gpu import bench_gpu
from benchmarks.overhead.trainer import bench_trainer
from mobillm_flower.config import load_settings, to_yaml
from mobillm_flower.core.codecs import CODECS
from mobillm_flower.errors import MobiLLMError, SettingsError
from mobillm_flower.evaluation.device_cost import can_measure, measure_memory, peak_bytes
from mobillm_flower.runs.events import Round
from mobillm_flower.runs.record import read_run
from mobillm_flower.server import ActivationCache
from tests.support.tiny_models import save_tiny

ON_LINUX = pytest.mark.skipif(not can_measure(), reason="the peak of a process can be reset on Linux alone")


def check(found: dict[str, Any], *, pairs: int) -> dict[str, Any]:
    """Hold what every report must have; returns it as its JSON has it."""
    found = json.loads(json.dumps(found))
    assert {"bench", "commit", "changed_since", "versions", "machine", "settings", "skipped"} <= found.keys()
    assert found["settings"]["threads"] == 1
    assert found["settings"]["pairs"] == pairs
    for comparison in found["comparisons"].values():
        assert len(comparison["ours"]) == len(comparison["other"]) == pairs
        assert comparison["ratio"] == statistics.median(comparison["ours"]) / statistics.median(comparison["other"])
        assert comparison["ratio_range"][0] <= comparison["ratio_quartiles"][0] <= comparison["ratio_quartiles"][1]
    for bar in found["bars"].values():
        met = bar["value"] <= bar["bar"] if bar["rule"] == "at most" else bar["value"] >= bar["bar"]
        assert bar["holds"] is met
    return found


def test_gpu_parts_run_on_a_cpu_too_and_the_file_is_written_after_each(tmp_path: Path) -> None:
    file, seen = tmp_path / "gpu.json", list[set[str]]()

    def look(_text: str) -> None:
        seen.append(set(json.loads(file.read_text("utf-8"))["figures"]) if file.exists() else set())

    found = bench_gpu(tiny=True, parts=("closed-form", "server", "copies"), json_file=file, say=look).to_dict()
    assert seen == [set(), {"closed_form"}, {"closed_form", "server"}]
    assert found["figures"]["closed_form"]["largest_difference"] < 1e-9
    assert len(found["figures"]["server"]["upper_layers_step_s"]) == len(found["figures"]["server"]["head_step_s"]) == 2
    assert torch.cuda.is_available() or found["skipped"] == {"copies": "there is no GPU to copy to"}


def test_codecs() -> None:
    found = check(bench_codecs(pairs=2, num_samples=2, blocks=3, width=128).to_dict(), pairs=2)
    rows = {(row["codec"], row["keep"]): row for row in found["figures"]["codecs"]}
    assert {codec for codec, _ in rows} == set(CODECS)
    assert rows["fp32", 1.0]["bits_per_value"] == 32
    assert rows["fp32", 1.0]["relative_error"] == 0
    size = CODECS["nf4"].num_bytes(3 * 128)
    assert found["bars"]["bits_per_value"]["value"] == rows["nf4", 1.0]["bits_per_value"] == 8 * size / (3 * 128)
    assert rows["nf4", 0.1]["bits_per_value"] < rows["nf4", 0.25]["bits_per_value"] < rows["nf4", 1.0]["bits_per_value"]
    assert rows["nf4", 1.0]["relative_error"] < rows["nf4", 0.25]["relative_error"] < rows["nf4", 0.1]["relative_error"]
    encode = found["comparisons"]["encode nf4 keep=0.25"]
    assert rows["nf4", 0.25]["encode_values_per_s"] == 2 * 3 * 128 / encode["ours_median"]


def test_trainer_ends_with_the_weights_of_the_bare_loop() -> None:
    found = check(bench_trainer(pairs=2, num_samples=70, blocks=2, width=16, num_classes=3).to_dict(), pairs=2)
    assert found["figures"] == {"identical": True, "identical_mean": True}
    assert found["settings"]["steps_a_turn"] == 3
    for ending in ("", "_mean"):
        assert found["bars"][f"step_ratio{ending}"]["value"] == found["comparisons"][f"epoch{ending}"]["ratio"]


def test_cache(tmp_path: Path) -> None:
    found = bench_cache(pairs=2, num_rows=1200, num_few=100, reads=64, folder=tmp_path, memory=False).to_dict()
    found = check(found, pairs=2)
    assert found["settings"]["blob_bytes"] == CODECS["nf4"].num_bytes(12 * 768)
    assert found["figures"]["rows_per_s"] == 64 / found["comparisons"]["read"]["ours_median"]
    assert found["bars"]["rows_per_s"]["value"] == found["figures"]["rows_per_s"]
    assert found["skipped"] == {"memory": "not asked for"}
    assert list(tmp_path.iterdir()) == []


@ON_LINUX
@pytest.mark.slow
@pytest.mark.timeout(900)  # fresh processes, each of which loads torch and transformers
def test_cache_memory(tmp_path: Path) -> None:
    found = check(bench_cache(pairs=1, num_rows=3000, num_few=100, reads=64, folder=tmp_path).to_dict(), pairs=1)
    memory = found["comparisons"]["anonymous_memory"]
    assert found["bars"]["rss_growth"]["value"] == memory["ratio"]
    assert found["figures"]["anonymous_bytes_a_row"] == (memory["ours"][0] - memory["other"][0]) / 2900
    # a process of its own: opening a cache of 100 rows may cost it nothing that the system counts
    assert 0 < found["figures"]["anonymous_bytes_before_opening"] < 1.1 * memory["other"][0]


@ON_LINUX
@pytest.mark.slow
@pytest.mark.timeout(900)  # fresh processes, each of which loads torch and transformers
def test_fleet_scale(tmp_path: Path) -> None:
    report = bench_fleet_scale(devices=(45, 5), samples_per_device=3, folder=tmp_path)
    found = json.loads(json.dumps(report.to_dict()))
    small, large, again = found["figures"]["fleets"]
    assert [row["devices"] for row in (small, large, again)] == [5, 45, 5]
    check_fleet(large, devices=45, samples=3)
    # the smallest stands for 100 devices where there are fewer
    assert found["settings"]["reference_devices"] == 5
    faster = min(small["seconds_a_sample"], again["seconds_a_sample"])
    assert found["bars"]["time_per_sample"]["value"] == large["seconds_a_sample"] / faster
    assert list(tmp_path.iterdir()) == []
    assert "time_per_sample" in [name for name, _, _ in _rows(found)]


def check_fleet(row: Any, *, devices: Any, samples: Any) -> None:
    """Hold what a row of a fleet must have."""
    buffers = math.ceil(devices / 20)
    assert row["samples"] == devices * samples
    assert row["overlap_steps"] == 8 * buffers
    assert row["ingest_s"] == pytest.approx(row["ingest_s_a_device"] * devices)
    assert row["ingest_s_a_device"] > row["commit_s_a_device"] > 0
    seconds = row["ingest_s"] + row["overlap_s"] + row["epoch_s"]
    assert row["seconds_a_sample"] * row["samples"] == pytest.approx(seconds)
    assert 0 < row["epoch_steps"] <= math.ceil(row["samples"] / 32)
    assert row["disk_bytes"] > row["payload_bytes"] > 0
    assert row["anonymous_bytes"] >= row["before_bytes"] > 0


@ON_LINUX
def test_a_fleet_goes_through_packets_cache_and_trainer(tmp_path: Path) -> None:
    row = _measure(45, 3, tmp_path, 1)
    check_fleet(row, devices=45, samples=3)
    cache = ActivationCache(tmp_path / "cache.sqlite")
    assert len(cache.devices()) == 45
    assert len({reference.digest for reference in cache.rows()}) == 135
    assert len(set(cache.rows().names("backbone"))) == 3
    assert cache.num_bytes == row["payload_bytes"]
    assert [round_.num_held for round_ in read_run(tmp_path).all(Round)] == list(range(3, 136, 3))


@pytest.mark.parametrize("sizes", ["", "10,", "10,x", "-5"])
def test_sizes_of_fleets_are_whole_numbers(sizes: str) -> None:
    answer = CliRunner().invoke(app, ["fleet-scale", f"--devices={sizes}"])
    assert answer.exit_code == typer.BadParameter("").exit_code


def test_a_fleet_of_nobody_or_of_more_than_a_window_is_refused() -> None:
    with pytest.raises(SettingsError, match="sizes of at least 1"):
        bench_fleet_scale(devices=(0, 10))
    with pytest.raises(SettingsError, match="samples-per-device=65: give 1 to 64"):
        bench_fleet_scale(devices=(10,), samples_per_device=65)


def test_device_forward(tmp_path: Path) -> None:
    backbone = str(save_tiny(tmp_path, "bert", max_position_embeddings=128))
    found = check(bench_device(backbone=backbone, layers=2, pairs=2, num_samples=9, memory=False).to_dict(), pairs=2)
    assert found["settings"]["layers"] == 2
    assert found["settings"]["samples"] == 9
    assert sum(rows for rows, _ in found["settings"]["batches"]) == 9
    assert found["bars"]["forward_ratio"]["value"] == found["comparisons"]["forward"]["ratio"]
    assert found["skipped"] == {"memory": "not asked for"}


@ON_LINUX
@pytest.mark.slow
@pytest.mark.timeout(900)  # fresh processes, each of which loads torch and transformers
def test_device_memory(tmp_path: Path) -> None:
    backbone = str(save_tiny(tmp_path, "opt", max_position_embeddings=128))
    found = check(bench_device(backbone=backbone, pairs=1, num_samples=12).to_dict(), pairs=1)
    assert found["bars"]["memory_ratio"]["value"] == found["comparisons"]["memory"]["ratio"]
    assert found["comparisons"]["memory_beside_hidden-states"]["other"][0] > 0
    try:
        import peft  # noqa: F401
    except ImportError:
        assert "needs `peft`: pip install mobillm-flower" in found["skipped"]["lora"]
    else:
        assert found["comparisons"]["memory_beside_lora"]["other"][0] > 0


@ON_LINUX
@pytest.mark.slow
@pytest.mark.timeout(900)  # fresh processes, each of which loads torch and transformers
def test_memory_that_is_held_is_seen(tmp_path: Path) -> None:
    """Hidden states of every layer cost at least their bytes; a run's own measure is made the same way."""
    backbone = str(save_tiny(tmp_path, "bert", max_position_embeddings=128, hidden_size=512, num_hidden_layers=8))
    words = {"backbone.name": backbone, "data.label-column": "intent", "backbone.device": "cpu"}
    (tmp_path / "settings.yaml").write_text(to_yaml(load_settings(words)))
    plain = peak_bytes(tmp_path, "plain", num_samples=300)
    states = peak_bytes(tmp_path, "hidden-states", num_samples=300)
    assert states - plain > 6 * 200 * 10 * 512 * 4  # six layers that plain inference has let go, 2,000 tokens or more
    measured = measure_memory(tmp_path, num_samples=300)
    assert measured is not None
    assert measured["ratio"] == measured["ours_bytes"] / measured["plain_bytes"]
    assert abs(measured["plain_bytes"] / plain - 1) < 0.2


@pytest.mark.slow
def test_random_weights_of_opt_125m_can_be_measured() -> None:
    pytest.importorskip("tokenizers")
    found = check(bench_device(backbone="opt-125m", layers=1, pairs=1, num_samples=4, memory=False).to_dict(), pairs=1)
    assert (found["settings"]["family"], found["settings"]["width"]) == ("opt", 768)


def test_the_command_prints_bars_and_writes_everything(tmp_path: Path) -> None:
    file = tmp_path / "new" / "codecs.json"
    answer = CliRunner().invoke(app, ["codecs", "--samples", "1", "--json", str(file)])
    assert answer.exit_code == 0, answer.output
    assert "bar at most 4.2: holds" in answer.output
    check(json.loads(file.read_text("utf-8")), pairs=10)


def test_a_bar_that_does_not_hold_is_said_and_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    report = BenchReport("trainer", {})
    report.bars["step_ratio"] = Threshold(1.3, 1.15, at_most=True)
    finish(report, None)
    assert "DOES NOT HOLD" in capsys.readouterr().out


def test_what_cannot_be_measured_is_an_error(tmp_path: Path) -> None:
    backbone = str(save_tiny(tmp_path, "bert", max_position_embeddings=128))
    answer = CliRunner().invoke(app, ["device", "--backbone", backbone, "--layers", "9"])
    assert answer.exit_code == 1
    assert isinstance(answer.exception, MobiLLMError)
    assert "the model has 3 layers" in str(answer.exception)


def test_fewer_than_ten_pairs_are_refused() -> None:
    answer = CliRunner().invoke(app, ["trainer", "--pairs", "9"])
    assert answer.exit_code == typer.BadParameter("").exit_code
