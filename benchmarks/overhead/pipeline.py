"""A device's window beside its slowest stage, tokenizing and the forward pass: what encoding and the ledger add."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from mobillm_flower.clients.device import Device
from mobillm_flower.clients.releases import make_window
from mobillm_flower.config import load_settings
from mobillm_flower.evaluation.turns import Comparison, Report, Threshold, take_turns
from mobillm_flower.privacy.device_folder import DeviceFolder
from mobillm_flower.tasks import load_central_data
from mobillm_flower.tasks.extraction import extraction_spec

PRECISIONS = ("fp32", "bf16")
BAR = 1.05


def window_beside_forward(
    report: Report, *, pairs: int, num_samples: int = 0, say: Callable[[str], None] = lambda _text: None
) -> None:
    """Add seconds of making one window of all of phone-messages over those of tokenizing and forward passes in it.

    Nothing of the window is in the device's ledger before. Encoding runs in a second thread, so that a second core is
    needed for the bar. Sending is not part of it: Flower sends an answer when it is complete.

    Parameters
    ----------
    report : Report
        To which it is added: comparisons and bars `window_PRECISION`.
    pairs : int
        Windows of each precision, in turns.
    num_samples : int
        Texts; 0: all.
    """

    def side(precision: str) -> Callable[[], tuple[float, float]]:
        common = {"data.label-column": "intent", "preset": "pae", "data.max-samples": num_samples}
        settings = load_settings({**common, "backbone.precision": precision})
        data = load_central_data(settings)

        def run() -> tuple[float, float]:
            with tempfile.TemporaryDirectory() as path:
                device = Device(settings, data, DeviceFolder(Path(path)))
                spec = extraction_spec(
                    device.backbone.info, settings, num_blocks=settings.activations.num_blocks, num_outputs=1
                )
                started = time.perf_counter()
                window = make_window(device, spec, held=frozenset(), size=len(data.train), max_bytes=1 << 40)
                seconds = time.perf_counter() - started
                device.folder.close()
            return seconds, window.forward_seconds

        return run

    sides = {precision: side(precision) for precision in PRECISIONS}
    take_turns(sides, 1)
    say("windows")
    for precision, found in take_turns(sides, pairs, say=say).items():
        whole, forward = (list(seconds) for seconds in zip(*found, strict=True))
        comparison = Comparison("s", whole, forward, "tokenizing and forward passes in it")
        report.comparisons[f"window_{precision}"] = comparison
        report.bars[f"window_{precision}"] = Threshold(comparison.ratio, BAR, at_most=True)
