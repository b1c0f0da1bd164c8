"""The app that a comparison runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from flwr.clientapp import ClientApp

from mobillm_flower.evaluation.compare.app.measured import client_app
from mobillm_flower.evaluation.compare.cells import Cell
from mobillm_flower.evaluation.compare.task import ComparedTask
from tests.support.tiny_models import save_tiny


@pytest.mark.parametrize("one", [client_app.side_tuning, client_app.baseline])
def test_it_answers_whatever_the_devices_that_it_stands_for_answer(one: ClientApp) -> None:
    assert set(one._registered_funcs) <= set(client_app.app._registered_funcs)


@pytest.mark.slow
def test_sums_of_groups_alone_can_be_compared(tmp_path: Path) -> None:
    """Where nine devices take part, `analytic` sums under masks by default."""
    settings = {
        "data.source": "phone-messages",
        "data.label-column": "intent",
        "backbone.name": str(save_tiny(tmp_path / "backbone", "bert")),
        "task.max-length": "16",
    }
    task = ComparedTask("messages", settings, num_train=108, num_test=40)
    few = {"activations.projection": "16", "privacy.min-samples": "2"}
    (point,) = Cell(task, "analytic", "iid", 0, 9, "test", few).run(tmp_path)
    assert point.bytes_up > 4 * (16 * 19 / 2 + 16 * 12)  # the sums, once
    assert (point.passes, point.rounds) == (1, 1)
