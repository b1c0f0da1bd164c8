"""What a run says into Flower's log, and the copy of that log in the run's folder."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import TextIO

from mobillm_flower.runs.events import Evaluation, figures
from mobillm_flower.runs.folder import RunFolder
from mobillm_flower.runs.record import read_run

logger = logging.getLogger("flwr")


@contextlib.contextmanager
def copied_log(folder: RunFolder) -> Iterator[None]:
    """Copy into run.log, inside, what is printed and what is logged to Flower's logger."""
    with folder.log.open("a", encoding="utf-8", buffering=1) as stream:
        handler = logging.StreamHandler(stream)
        handler.setLevel(logging.INFO)
        handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
        logger.addHandler(handler)
        try:
            with contextlib.redirect_stdout(_Both(sys.stdout, stream)):
                yield
        finally:
            logger.removeHandler(handler)


def log_result(folder: RunFolder) -> None:
    """Log, as the last line of a run, its metric and where its folder and report are."""
    last = read_run(folder.path).session.last(Evaluation)
    shown = ", ".join(f"{name} {value:.4f}" for name, value in figures(last.metrics).items()) if last else ""
    said = f"{shown} on {last.num_examples:,} test samples of {last.devices} devices" if last and shown else "done"
    logger.info("%s. Run folder: %s. For its report: mobillm report %s", said, folder.path, folder.path)


class _Both:
    """A stream that writes to two."""

    def __init__(self, first: TextIO, second: TextIO) -> None:
        self._first, self._second = first, second

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):  # a full disk stops no run
            self._second.write(text)
        return self._first.write(text)

    def flush(self) -> None:
        self._first.flush()

    def __getattr__(self, name: str) -> object:
        return getattr(self._first, name)
