"""A run that is started again in its folder: what it does with rows that came, went or were replaced, and says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord

from mobillm_flower import SideTuningClient, load_settings, make_strategy
from mobillm_flower.errors import MismatchError
from mobillm_flower.reports.table import results_rows
from mobillm_flower.runs import events
from mobillm_flower.runs.record import read_run
from mobillm_flower.server import ActivationCache
from mobillm_flower.server.plan import note_warm_start, replay
from mobillm_flower.strategies.stopping import Stopping
from tests.support.caches import state_bytes
from tests.support.local_grid import LocalGrid
from tests.support.runs import tiny_config
from tests.support.tiny_models import WORDS, save_tiny

Row = tuple[str, str]
WAYS = {
    "closed form": {"preset": "pae", "side-network.name": "closed-form", "side-network.bottleneck": 16},
    "steps": {"preset": "pae", "trainer.overlap-steps": 0},
    "overlapping steps": {"preset": "pae", "trainer.overlap-steps": 2},
    "fed": {"preset": "fed", "arrivals.grow-windows": False},
}


def rows(start: int, end: int) -> list[Row]:
    return [(f"{WORDS[i % 21]} {WORDS[i // 21]} {WORDS[i % 5]}", ("bad", "good")[i % 2]) for i in range(start, end)]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("backbone"), "bert")


class Runs:
    """Runs in one folder, of devices whose rows are given each time."""

    def __init__(self, path: Path, backbone: Path, way: str = "closed form", **changes: Any) -> None:
        self.path = path
        self.config = {**tiny_config(path, backbone), "task.labels": "bad,good", "rounds.window": 4, **WAYS[way]}
        self.config |= {"data.label-column": "label", "rounds.min-devices": 1, "rounds.timeout-s": 5.0, **changes}
        if way == "closed form":
            self.config.pop("side-network.bottleneck")

    def start(self, of_devices: Mapping[int, Sequence[Row]]) -> Any:
        def load(context: Any) -> tuple[list[dict[str, str]], None]:
            mine = of_devices[int(str(context.node_config["partition-id"]))]
            return [{"text": text, "label": label} for text, label in mine], None

        nodes = [{"partition-id": i, "num-partitions": 3} for i in of_devices]
        strategy = make_strategy(load_settings(self.config))
        strategy.poll_s = 0.0
        strategy.start(LocalGrid(SideTuningClient(load).app, nodes, self.config), ArrayRecord())
        return strategy

    def said(self) -> list[tuple[str, int, int, int]]:
        run = read_run(self.path).session
        return [(event.what, event.held, event.new, event.gone) for event in run.all(events.StartedAgain)]


@pytest.mark.parametrize("way", sorted(WAYS))
def test_new_rows_and_new_devices_are_learnt_as_if_they_had_been_there(
    tmp_path: Path, backbone: Path, way: str
) -> None:
    runs = Runs(tmp_path / "run", backbone, way)
    first = state_bytes(runs.start({0: rows(0, 9), 1: rows(20, 29)}).trainer.network)
    assert runs.said() == []
    again = runs.start({0: rows(0, 12), 1: rows(20, 29), 2: rows(40, 45)})
    learnt = state_bytes(again.trainer.network)
    assert runs.said() == [("learns", 26, 8, 0)]
    assert learnt != first
    assert learnt == state_bytes(replay(_cache(again), scores=again.rule.scores))
    if way in ("closed form", "steps"):  # no rounds matter to the result
        whole = Runs(tmp_path / "whole", backbone, way).start({0: rows(0, 12), 1: rows(20, 29), 2: rows(40, 45)})
        assert learnt == state_bytes(whole.trainer.network)
    assert "8 new samples" in next(
        r[2] for r in results_rows(read_run(tmp_path / "run"), {}) if r[0] == "started again"
    )


@pytest.mark.parametrize("way", sorted(WAYS))
def test_nothing_new_changes_nothing_and_is_no_round(tmp_path: Path, backbone: Path, way: str) -> None:
    runs = Runs(tmp_path / "run", backbone, way)
    before = runs.start({0: rows(0, 9), 1: rows(20, 29)})
    after = runs.start({0: rows(0, 9), 1: rows(20, 29)})
    assert runs.said() == [("nothing new", 18, 0, 0)]
    assert state_bytes(after.trainer.network) == state_bytes(before.trainer.network)
    assert after.trainer.position == before.trainer.position
    cache = _cache(after)
    assert state_bytes(replay(cache, scores=after.rule.scores)) == state_bytes(after.trainer.network)


def test_rows_in_the_place_of_others_are_new_and_those_that_are_gone_are_said(tmp_path: Path, backbone: Path) -> None:
    runs = Runs(tmp_path / "run", backbone)
    runs.start({0: rows(0, 9), 1: rows(20, 29)})
    runs.start({0: rows(3, 12), 1: rows(20, 29)})  # as many as before
    assert runs.said() == [("learns", 21, 3, 3)]
    runs.start({0: rows(3, 12), 1: rows(20, 25)})
    assert runs.said() == [("nothing new", 21, 0, 7)]


@pytest.mark.parametrize("num_rows", [9, 12])
def test_a_run_that_was_stopped_in_its_epochs(
    tmp_path: Path, backbone: Path, monkeypatch: pytest.MonkeyPatch, num_rows: int
) -> None:
    """It goes on, or is trained anew where rows came: either way its end is what is trained from the cache."""
    runs = Runs(tmp_path / "run", backbone, "steps", **{"trainer.batch-size": 4})
    with monkeypatch.context() as patched:
        asked = iter([False] * 3)
        patched.setattr(Stopping, "ends_training", lambda _self: next(asked, True))
        patched.setattr(Stopping, "ends_ingestion", lambda _self: False)
        stopped = runs.start({0: rows(0, 9)})
    assert stopped.trainer.position.steps == 3
    again = runs.start({0: rows(0, num_rows)})
    assert runs.said() == ([("resumes", 9, 0, 0)] if num_rows == 9 else [("resumes", 9, 0, 0), ("learns", 12, 3, 0)])
    assert again.trainer.position.finished
    assert state_bytes(replay(_cache(again), scores=again.rule.scores)) == state_bytes(again.trainer.network)


def test_a_run_that_began_from_given_weights_goes_on_from_those_it_has(tmp_path: Path, backbone: Path) -> None:
    runs = Runs(tmp_path / "run", backbone, "steps")
    first = runs.start({0: rows(0, 9)})
    note_warm_start(_cache(first))
    again = runs.start({0: rows(0, 12)})
    assert runs.said() == [("learns", 12, 3, 0)]
    fresh = Runs(tmp_path / "fresh", backbone, "steps").start({0: rows(0, 12)})
    assert state_bytes(again.trainer.network) != state_bytes(fresh.trainer.network)


def test_labels_that_the_run_has_not_are_left_out_or_refused_by_name(tmp_path: Path, backbone: Path) -> None:
    runs = Runs(tmp_path / "run", backbone)
    runs.start({0: rows(0, 9)})
    runs.start({0: [*rows(0, 9), ("the cat ran", "fair")]})
    assert runs.said() == [("nothing new", 9, 0, 0)]
    shown = {row[0]: row[1:] for row in results_rows(read_run(tmp_path / "run"), {})}
    assert shown["rows left out"][0] == "1"
    runs.config["task.labels"] = "bad,fair,good"
    with pytest.raises(MismatchError, match=r"another task, side network; use another run\.folder, or the settings"):
        runs.start({0: [*rows(0, 9), ("the cat ran", "fair")]})


def _cache(strategy: Any) -> ActivationCache:
    return ActivationCache(strategy.cache.file)
