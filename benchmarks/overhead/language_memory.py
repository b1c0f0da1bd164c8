"""Peak memory of one server step of language modelling with a large vocabulary, in fresh processes; random weights.

    .venv/bin/python benchmarks/overhead/language_memory.py --json benchmarks/results/language_memory.json

A whole step in float32: side network over 16 × 256 tokens, the loss through the head, gradients, AdamW. `peak_bytes` is
the process's peak resident set (VmHWM), libraries, head, batch and all; the largest of `--turns` processes a loss.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.measuring import BenchReport, Threshold, take_turns
from mobillm_flower.core import language
from mobillm_flower.core.side_networks import ActivationBatch, AlignmentSpec, SideNetworkConfig
from mobillm_flower.evaluation.fresh_process import status_bytes

SHAPE = {"vocabulary": 150_000, "width": 2048, "tokens": 16 * 256, "blocks": 4, "bottleneck": 64}
BAR_BYTES = 4 << 30


class RandomHead(nn.Module):
    """A norm and an output embedding."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, vocabulary, bias=False)
        self.requires_grad_(False)

    def inputs(self, hidden: Tensor) -> Tensor:
        found: Tensor = self.norm(hidden)
        return found

    def logits(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.output(inputs)
        return found


def step(loss: str, tokens: int) -> dict[str, int]:
    """Take one step and return the process's peak."""
    torch.manual_seed(0)
    head = RandomHead(SHAPE["vocabulary"], SHAPE["width"])
    types = {"b": AlignmentSpec(SHAPE["width"], 1)}
    config = SideNetworkConfig.of(
        types,
        name="additive",
        num_blocks=SHAPE["blocks"],
        bottleneck=SHAPE["bottleneck"],
        num_outputs=SHAPE["width"],
    )
    network = config.build()
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    rows = torch.randn(tokens, SHAPE["blocks"], SHAPE["width"])
    loaded = status_bytes("VmHWM")
    side, hidden = network([ActivationBatch("b", rows)]), rows[:, -1]
    inputs = head.inputs(hidden + side)
    if loss == "label":
        value = language.cross_entropy(inputs, torch.randint(head.vocabulary, (tokens,)), head)
    else:
        steps, weights = 0.1 * torch.randn(tokens, SHAPE["width"]), torch.ones(tokens)
        value = language.divergence_loss(inputs, head.inputs(hidden), steps, weights, head)
    value.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return {"peak_bytes": status_bytes("VmHWM"), "before_the_step_bytes": loaded}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loss", choices=["label", "difference"])
    parser.add_argument("--tokens", type=int, default=SHAPE["tokens"])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.loss:
        print(json.dumps(step(arguments.loss, arguments.tokens)))
        return
    shape = {**SHAPE, "tokens": arguments.tokens}
    report = BenchReport("language_memory", {**shape, "dtype": "fp32", "logit_bytes": language.LOGIT_BYTES})
    losses = ("label", "difference")
    found = take_turns({loss: partial(fresh, loss, arguments.tokens) for loss in losses}, arguments.turns)
    for loss, turns in found.items():
        largest = max(turns, key=lambda one: one["peak_bytes"])
        print(loss, f"{largest['peak_bytes'] / 2**30:.2f} GiB", flush=True)
        report.figures[loss] = {**largest, "repetitions": turns}
        report.bars[f"{loss}_peak_bytes"] = Threshold(largest["peak_bytes"], BAR_BYTES, at_most=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(report.to_dict(), indent=2) + "\n", "utf-8")


def fresh(loss: str, tokens: int) -> dict[str, int]:
    """Return what `step` does in a process of its own."""
    command = [sys.executable, __file__, "--loss", loss, "--tokens", str(tokens)]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    measured: dict[str, int] = json.loads(made.stdout.splitlines()[-1])
    return measured


if __name__ == "__main__":
    main()
