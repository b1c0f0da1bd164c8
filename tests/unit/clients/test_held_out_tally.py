"""Of how many left-out samples a device adds a tally: never of one, whatever group it is summed in."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional

from mobillm_flower import load_settings
from mobillm_flower.clients.held_out import tally_held_out
from mobillm_flower.tasks import Samples
from tests.support.packets import make_contract

SHARE = 0.25


def tally(left_out: int, *, alone: bool, **private: int) -> int:
    """Return how many samples a device shows that left out so many of twenty."""
    settings = load_settings(
        {"preset": "analytic", "trainer.validation-share": SHARE}
        | {f"privacy.{name.replace('_', '-')}": value for name, value in private.items()}
    )
    count = 20
    device: Any = SimpleNamespace(
        settings=settings,
        exact_metrics=True,
        sample_ids=[bytes(16)] * left_out + [b"\xff" * 16] * (count - left_out),
        sample_keys=[SimpleNamespace(texts=(bytes([i]),)) for i in range(count)],
        data=SimpleNamespace(
            contract=make_contract(), train=Samples(["a text"] * count, None, torch.zeros(count, dtype=torch.long))
        ),
        folder=SimpleNamespace(ledger=SimpleNamespace(evaluate=lambda _texts: None)),
    )
    model: Any = SimpleNamespace(scores=lambda samples: functional.one_hot(samples.labels, 3).float())
    return int(tally_held_out(device, model, share=SHARE, alone=alone)[0])


@pytest.mark.parametrize(
    ("alone", "private", "least"),
    [
        (True, {}, 10),
        (False, {}, 2),  # six devices of a group then show twelve
        (False, {"secure_sums_devices": 3}, 4),
        (False, {"min_samples": 30, "secure_sums_devices": 3}, 10),
        (False, {"min_samples": 1}, 2),
        (False, {"secure_sums_devices": 100}, 2),
    ],
)
def test_a_tally_is_of_enough_samples_or_of_none(alone: bool, private: dict[str, int], least: int) -> None:
    assert tally(least, alone=alone, **private) == least
    assert tally(least - 1, alone=alone, **private) == 0
