"""PAE MobiLLM (arXiv 2507.01216): pivot tokens and a prediction difference, each sample once."""

from __future__ import annotations

from mobillm_flower.config import Objective, Settings
from mobillm_flower.errors import SettingsError
from mobillm_flower.strategies.base import STRATEGIES, SideTuningStrategy


@STRATEGIES.register("pae")
class PaeMobiLLM(SideTuningStrategy):
    """Devices upload pivot activations and Δy = y − p_b once; the server trains from its cache for many epochs.

    An unprotected Δy does not hide the label (docs/explanation/not-protected.md).
    """

    preset = "pae"

    def check(self, settings: Settings) -> None:
        """Need objective `difference`."""
        if settings.loss.objective != Objective.difference:
            raise SettingsError(
                "strategy=pae uploads prediction differences: set loss.objective=difference, or choose strategy=mobillm"
            )
