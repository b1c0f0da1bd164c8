"""LoRA by FedAvg."""

from __future__ import annotations

from mobillm_flower.strategies.baselines.base import BaselineStrategy
from mobillm_flower.strategies.registry import STRATEGIES


@STRATEGIES.register("fed-lora")
class FedLoRA(BaselineStrategy):
    """LoRA (arXiv 2106.09685) on the attention's query and value and a linear head, averaged by FedAvg."""

    name = "fed-lora"
