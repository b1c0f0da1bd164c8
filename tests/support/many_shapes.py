"""Compute products of 60 shapes in bf16 in this process, and print by how much it has grown since the first."""

from __future__ import annotations

import json
import sys

import torch

from mobillm_flower.backbones.memory import anonymous_bytes, keep_few_kernels


def main() -> None:
    keep_few_kernels()
    torch.set_num_threads(1)
    weight = torch.randn(384, 384, dtype=torch.bfloat16)
    product = torch.nn.functional.linear
    product(torch.randn(300, 384, dtype=torch.bfloat16), weight)
    before = anonymous_bytes()
    for rows in range(200, 260):
        product(torch.randn(rows, 384, dtype=torch.bfloat16), weight)
    sys.stdout.write(json.dumps({"grown_bytes": anonymous_bytes() - before}))


if __name__ == "__main__":
    main()
