from __future__ import annotations

import torch

from benchmarks.measuring import BenchReport
from benchmarks.overhead.pipeline import window_beside_forward
from benchmarks.overhead.roofline import server_roofline
from mobillm_flower.core.codecs import CODECS


def test_the_servers_work_is_counted_beside_its_bound() -> None:
    report = BenchReport("limit", {})
    with torch.compiler.set_stance("force_eager"):  # compiling takes longer than everything else
        server_roofline(report, pairs=1, num_samples=64, blocks=2, width=32, num_classes=3)
    values = 2 * 2 * 32
    decode = report.figures["server_decode"]
    assert decode["moved_mb"] == 64 * (CODECS["nf4"].num_bytes(values) + 4 * values) / 1e6
    assert decode["gflop"] == 0
    assert report.figures["server_train"]["gflop"] > 64 * 3 * 2 * values * 32 / 1e9  # three products with W_b alone
    for name in ("decode", "read_and_decode", "train"):
        found = report.figures[f"server_{name}"]
        assert found["share_of_bound"] == found["bound_s"] / found["seconds"] > 0
    (table,) = report.tables
    assert [row[0] for row in table.rows] == ["decode", "read and decode", "train"]


def test_a_window_is_measured_beside_the_forward_passes_within_it() -> None:
    report = BenchReport("limit", {})
    window_beside_forward(report, pairs=1, num_samples=8)
    assert report.bars.keys() == report.comparisons.keys() == {"window_fp32", "window_bf16"}
    for comparison in report.comparisons.values():
        assert comparison.ours[0] > comparison.other[0] > 0
