"""What ends a run before its schedule does."""

from __future__ import annotations

from collections.abc import Callable

from mobillm_flower.config import StopSettings


class Stopping:
    """Watches time, uploads and the accuracy on the server's validation share.

    Parameters
    ----------
    limits : StopSettings
        See there; 0 is no limit.
    now : callable
        Seconds on a clock that never goes back.

    Attributes
    ----------
    reason : str
        Which limit was reached; empty while none is.
    """

    def __init__(self, limits: StopSettings, *, now: Callable[[], float]) -> None:
        self._limits, self._now = limits, now
        self._started = now()
        self._uploaded = 0
        self._accuracy = 0.0
        self.reason = ""

    def count_upload(self, num_bytes: int) -> None:
        """Note what a device uploaded."""
        self._uploaded += num_bytes

    def note_accuracy(self, accuracy: float | None) -> None:
        """Note the accuracy on the validation share, where there is one."""
        self._accuracy = max(self._accuracy, accuracy or 0.0)

    def ends_ingestion(self) -> bool:
        """Whether nothing more is to be asked for."""
        limits = self._limits
        if limits.upload_mib and self._uploaded >= limits.upload_mib * 2**20:
            self.reason = f"stop.upload-mib={limits.upload_mib:g} is reached"
            return True
        return self.ends_training()

    def ends_training(self) -> bool:
        """Whether no further step is to be taken."""
        limits = self._limits
        if limits.seconds and self._now() - self._started >= limits.seconds:
            self.reason = f"stop.seconds={limits.seconds:g} have passed"
            return True
        if limits.accuracy and self._accuracy >= limits.accuracy:
            self.reason = f"stop.accuracy={limits.accuracy:g} is reached"
            return True
        return False
