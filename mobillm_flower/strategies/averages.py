"""Averages of devices' metrics, weighted by their number of samples."""

from __future__ import annotations

import math
from collections.abc import Mapping

_OF_LOGARITHMS = frozenset({"perplexity"})  # the exponential of a mean over tokens: so is the fleet's


class Average:
    """A weighted average of metrics that come one device at a time, each over the devices that have it.

    Perplexities are averaged as cross-entropies.

    Attributes
    ----------
    weight : float
        Samples so far.
    count : int
        Devices with at least one sample.
    """

    def __init__(self) -> None:
        self.weight, self.count = 0.0, 0
        self._sums: dict[str, float] = {}
        self._weights: dict[str, float] = {}

    def add(self, weight: float, metrics: Mapping[str, float]) -> None:
        """Take in one device's metrics over so many samples."""
        if not weight:
            return
        self.weight += weight
        self.count += 1
        for name, value in metrics.items():
            summand = math.log(value) if name in _OF_LOGARITHMS else value
            self._sums[name] = self._sums.get(name, 0.0) + weight * summand
            self._weights[name] = self._weights.get(name, 0.0) + weight

    def values(self) -> dict[str, float]:
        """Return the averages."""
        means = {name: value / self._weights[name] for name, value in self._sums.items()}
        return {name: math.exp(mean) if name in _OF_LOGARITHMS else mean for name, mean in means.items()}
