"""The number of training steps: batches that are smaller where samples are few, and a word where steps still are."""

from __future__ import annotations

import dataclasses
import re

import pytest

from mobillm_flower.server.options import TrainerOptions
from mobillm_flower.server.schedule import ENOUGH_STEPS, advice_on_steps, automatic_batch, planned_steps
from tests.support.caches import make_plan, make_spec


def options(samples: int, *, epochs: int, batch: int) -> TrainerOptions:
    steps = planned_steps(samples, epochs=epochs, batch_size=batch, validation_share=0.0, rounds=1, overlap_steps=0)
    made = make_plan([make_spec()]).options
    return dataclasses.replace(made, epochs=epochs, batch_size=batch, planned_steps=steps)


@pytest.mark.parametrize(("samples", "batch"), [(5, 4), (200, 10), (600, 30), (640, 32), (100_000, 32)])
def test_batches_of_language_modelling_are_smaller_where_samples_are_few(samples: int, batch: int) -> None:
    assert automatic_batch(samples, epochs=5, per_token=True) == batch
    assert automatic_batch(samples, epochs=5, per_token=False) == 32


def test_few_steps_are_said_with_settings_that_make_them_enough() -> None:
    said = advice_on_steps(options(60, epochs=3, batch=32), 60)
    assert said.startswith("6 training steps are few: 60 samples in batches of 32, 3 epochs; trainer.batch-size=1 or")
    batch, epochs = map(int, re.findall(r"(?:batch-size|epochs)=(\d+)", said))
    assert options(60, epochs=3, batch=batch).planned_steps >= ENOUGH_STEPS
    assert options(60, epochs=epochs, batch=32).planned_steps >= ENOUGH_STEPS


@pytest.mark.parametrize(("samples", "batch"), [(2000, 32), (60, 1), (0, 32)])
def test_enough_steps_and_no_samples_are_passed_over(samples: int, batch: int) -> None:
    assert advice_on_steps(options(samples, epochs=3, batch=batch), samples) == ""
