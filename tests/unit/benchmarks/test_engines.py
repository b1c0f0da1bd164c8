from __future__ import annotations

from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.overhead.engines import linear_products
from mobillm_flower.backbones import load_backbone
from tests.support.tiny_models import TEXTS, save_tiny


def test_linear_products_are_those_of_the_forward_pass(tmp_path: Path) -> None:
    backbone = load_backbone(str(save_tiny(tmp_path / "bert", "bert")), device="cpu")
    samples = backbone.tokenize(TEXTS, None, 32)
    run = linear_products(backbone, samples)
    with FlopCounterMode(display=False) as counted:
        run()
    tokens = sum(inputs["input_ids"].numel() for inputs in backbone.padded_batches(samples))
    linear = sum(m.weight.numel() for m in backbone.model.modules() if isinstance(m, torch.nn.Linear))
    assert counted.get_total_flops() == 2 * tokens * linear
