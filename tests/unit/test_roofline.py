from __future__ import annotations

import torch

from mobillm_flower.bench.pairs import Report
from mobillm_flower.bench.roofline import server_roofline
from mobillm_flower.core.codecs import CODECS


def test_the_servers_work_is_counted_and_never_faster_than_its_bound() -> None:
    report = Report("limit", {})
    with torch.compiler.set_stance("force_eager"):  # compiling takes longer than everything else
        server_roofline(report, pairs=1, num_samples=64, blocks=2, width=32, num_classes=3)
    values = 2 * 2 * 32
    decode = report.figures["server_decode"]
    assert decode["moved_mb"] == 64 * (CODECS["nf4"].num_bytes(values) + 4 * values) / 1e6
    assert decode["gflop"] == 0
    assert report.figures["server_train"]["gflop"] > 64 * 3 * 2 * values * 32 / 1e9  # three products with W_b alone
    for name in ("decode", "read_and_decode", "train"):
        assert 0 < report.figures[f"server_{name}"]["share_of_bound"] < 1
    (table,) = report.tables
    assert [row[0] for row in table.rows] == ["decode", "read and decode", "train"]
