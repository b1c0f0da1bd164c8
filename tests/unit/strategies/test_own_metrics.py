"""What a strategy of one's own measures stands in the log, as what the base class measures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, MetricRecord

from mobillm_flower import STRATEGIES, FedMobiLLM, PaeMobiLLM, SideTuningClient, load_settings, make_strategy
from mobillm_flower.reports.table import results_rows
from mobillm_flower.runs.record import read_run
from tests.support.local_grid import LocalGrid
from tests.support.runs import tiny_config
from tests.support.superlink import events
from tests.support.tiny_models import save_tiny


class Measures:
    """Adds a figure, or returns nothing else."""

    only_own = False

    def aggregate_train(self: Any, server_round: int, replies: Any) -> Any:
        arrays, metrics = super().aggregate_train(server_round, replies)  # type: ignore[misc]
        return arrays, MetricRecord({"mine": 1.5} if self.only_own else {**metrics, "mine": 1.5})

    def aggregate_evaluate(self: Any, server_round: int, replies: Any) -> Any:
        metrics = super().aggregate_evaluate(server_round, replies)  # type: ignore[misc]
        return MetricRecord({"mine": 2.5} if self.only_own else {**metrics, "mine": 2.5})


class Pae(Measures, PaeMobiLLM):
    """Of the base class that asks in rounds."""


class Fed(Measures, FedMobiLLM):
    """Of the one that trains on arrivals."""


class Alone(Pae):
    """Says nothing of what the base class counts."""

    only_own = True


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    before = dict(STRATEGIES._entries)
    for kind in (Pae, Fed, Alone):
        STRATEGIES.add(f"own-{kind.__name__.lower()}", kind)
    yield
    STRATEGIES._entries.clear()
    STRATEGIES._entries.update(before)


@pytest.mark.parametrize("name", ["pae", "fed", "alone"])
def test_own_metrics_stand_in_the_log_and_in_the_table(tmp_path: Path, name: str) -> None:
    config = tiny_config(
        tmp_path / "run",
        save_tiny(tmp_path / "backbone", "bert"),
        strategy=f"own-{name}",
        preset="fed" if name == "fed" else "pae",
        arrivals__buffer=1,
    )
    strategy = make_strategy(load_settings(config))
    strategy.poll_s = 0.0
    nodes = [{"partition-id": i, "num-partitions": 3} for i in range(3)]
    strategy.start(LocalGrid(SideTuningClient().app, nodes, config), ArrayRecord())
    rounds, evaluations = events(tmp_path / "run", "round"), events(tmp_path / "run", "evaluation")
    assert [one["metrics"]["mine"] for one in rounds] == [1.5] * len(rounds) != []
    assert [one["metrics"]["mine"] for one in evaluations] == [2.5]
    assert [set(one["metrics"]) for one in evaluations] == [{"mine"} if name == "alone" else {"mine", "accuracy"}]
    assert evaluations[0]["devices"] == 3
    assert ("mine, on the devices", "2.5000") in [row[:2] for row in results_rows(read_run(tmp_path / "run"), {})]
