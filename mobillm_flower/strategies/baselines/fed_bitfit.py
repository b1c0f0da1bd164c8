"""BitFit by FedAvg."""

from __future__ import annotations

from mobillm_flower.strategies.baselines.base import BaselineStrategy
from mobillm_flower.strategies.registry import STRATEGIES


@STRATEGIES.register("fed-bitfit")
class FedBitFit(BaselineStrategy):
    """The layers' biases (BitFit, arXiv 2106.10199) and a linear head, averaged by FedAvg."""

    name = "fed-bitfit"
