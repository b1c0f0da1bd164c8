"""PAE MobiLLM (arXiv 2507.01216): pivot tokens and a prediction difference, each sample once."""

from __future__ import annotations

from mobillm_flower.config import Settings
from mobillm_flower.config.run_compatibility import check_difference_strategy
from mobillm_flower.strategies.registry import STRATEGIES
from mobillm_flower.strategies.side_tuning import SideTuningStrategy


@STRATEGIES.register("pae")
class PaeMobiLLM(SideTuningStrategy):
    """Devices upload pivot activations and Δy = y − p_b once; the server trains from its cache for many epochs.

    An unprotected Δy does not hide the label (docs/explanation/not-protected.md).
    """

    preset = "pae"

    def check(self, settings: Settings) -> None:
        """Need objective `difference`."""
        check_difference_strategy(settings)
