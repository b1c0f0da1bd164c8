"""A pivot, a codec, a task, a side network and a strategy."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from mobillm_flower import CODECS, PIVOTS, SIDE_NETWORKS, STRATEGIES, TASKS, PaeMobiLLM, pivot
from mobillm_flower.errors import DataError
from mobillm_flower.tasks import Samples


@PIVOTS.register("mean+spread")
@pivot(num_vectors=2)
def mean_and_spread(hidden: Any, mask: Any) -> Any:
    """Mean and standard deviation of the tokens, P = 2."""
    weights = (mask / mask.sum(1, keepdim=True)).to(hidden.dtype).unsqueeze(2)  # [B, T, 1]
    mean = (hidden * weights).sum(1)
    variance = ((hidden - mean.unsqueeze(1)).square() * weights).sum(1)
    return torch.stack([mean, variance.sqrt()], 1)


class Linear4Codec:
    """Four bits a value: sixteen equal steps between the sample's largest magnitude and its negative."""

    def num_bytes(self, count: Any) -> Any:
        return 4 + -(-count // 2)

    def encode(self, values: Any) -> Any:
        flat = values.detach().cpu().float().reshape(-1).numpy()
        if not np.isfinite(flat).all():
            raise ValueError("values to encode are not all finite")
        largest = np.float32(np.abs(flat).max())
        codes = np.rint((flat / (largest or 1) + 1) * 7.5).astype(np.uint8)
        codes = np.append(codes, np.zeros(codes.size % 2, np.uint8))
        return largest.astype("<f4").tobytes() + (codes[::2] << 4 | codes[1::2]).tobytes()

    def decode(self, blobs: Any, counts: Any) -> Any:
        parts = []
        for blob, count in zip(blobs, counts, strict=True):
            if len(blob) != self.num_bytes(count):
                raise ValueError(f"{len(blob)} bytes for {count} values, expected {self.num_bytes(count)}")
            largest = np.frombuffer(blob, "<f4", 1)[0]
            if not np.isfinite(largest):
                raise ValueError("decoded values are not all finite")
            packed = np.frombuffer(blob, np.uint8, offset=4)
            codes = np.stack([packed >> 4, packed & 15], 1).reshape(-1)[:count]
            parts.append((codes / 7.5 - 1).astype(np.float32) * largest)
        return torch.from_numpy(np.concatenate(parts).astype(np.float32))


CODECS.add("linear4", Linear4Codec())


class SpeaksOfTime:
    """Whether an intent has to do with a time, from the twelve intents of the phone messages."""

    names = ("other", "time")
    of_time = ("alarm", "calendar", "reminder", "timer")

    def labels(self, column: Any, settings: Any) -> Any:
        return self.names

    def samples(self, rows: Any, settings: Any, contract: Any) -> Any:
        intents = list(rows[settings.data.label_column])
        for i, intent in enumerate(intents):
            if not isinstance(intent, str):
                raise DataError(f"row {i}: {settings.data.label_column} is no text")
        labels = torch.tensor([int(intent in self.of_time) for intent in intents])
        return Samples(list(rows[settings.data.text_column]), None, labels)

    def predictions(self, scores: Any) -> Any:
        return scores.argmax(1)

    def default_metric(self) -> Any:
        return "macro-f1"


TASKS.add("speaks-of-time", SpeaksOfTime())


@SIDE_NETWORKS.register("layer-weights")
class LayerWeights(nn.Module):
    """One linear map of a learned average over the layers."""

    def __init__(self, *, types: Any, num_blocks: Any, width: Any, num_outputs: Any, seed: int = 0) -> None:
        super().__init__()
        self.alignment = nn.ModuleDict()
        for name, spec in sorted(types.items()):
            generator = torch.Generator().manual_seed(seed)
            layer = nn.Linear(spec.num_features, width, bias=False)
            with torch.no_grad():
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) / layer.in_features**0.5)
            self.alignment[name] = layer
        self.layers = nn.Parameter(torch.zeros(num_blocks))
        self.output = nn.Linear(width, num_outputs)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, batches: Any) -> Any:
        weights = self.layers.softmax(0)[None, :, None]  # [1, M, 1]
        x = torch.cat([self.alignment[batch.backbone]((batch.rows * weights).sum(1)) for batch in batches])  # [B, d]
        return self.output(torch.tanh(x))


@STRATEGIES.register("in-order")
class InOrder(PaeMobiLLM):
    """PAE MobiLLM that asks devices in the order of their node ids."""

    def configure_train(self, server_round: Any, arrays: Any, config: Any, grid: Any) -> Any:
        messages = super().configure_train(server_round, arrays, config, grid)
        return sorted(messages, key=lambda message: message.metadata.dst_node_id)
