"""MobiLLM (arXiv 2502.20421): every token's activations and the label."""

from __future__ import annotations

from mobillm_flower.config import Settings
from mobillm_flower.config.run_compatibility import check_label_strategy
from mobillm_flower.core.pivots import PIVOTS
from mobillm_flower.strategies.registry import STRATEGIES
from mobillm_flower.strategies.side_tuning import SideTuningStrategy


@STRATEGIES.register("mobillm")
class MobiLLM(SideTuningStrategy):
    """Devices upload the sampled layers' activations of all tokens, quantized, and the label; cross-entropy.

    Where we leave the paper: devices upload each sample once and later epochs come from the cache, as in PAE MobiLLM;
    the paper's devices repeat the forward pass in every epoch.
    """

    preset = "mobillm"

    def check(self, settings: Settings) -> None:
        """Need objective `label` and a pivot that keeps every token."""
        pivot = settings.activations.pivot
        check_label_strategy(settings, every_token=pivot != "auto" and PIVOTS[pivot].per_token)
