"""Averages of devices' metrics, weighted by their number of samples."""

from __future__ import annotations

from collections.abc import Mapping


class Average:
    """A weighted average of metrics that come one device at a time.

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

    def add(self, weight: float, metrics: Mapping[str, float]) -> None:
        """Take in one device's metrics over so many samples."""
        if not weight:
            return
        self.weight += weight
        self.count += 1
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + weight * value

    def values(self) -> dict[str, float]:
        """Return the averages."""
        return {name: value / self.weight for name, value in self._sums.items()}
