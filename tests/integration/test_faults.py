"""Faults of devices and of packets in one fleet: what is bad is kept out and counted, the others are not touched."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import ArrayRecord

from mobillm_flower import SideTuningClient, load_settings, make_strategy
from mobillm_flower.server import ActivationCache
from mobillm_flower.server.plan import replay
from mobillm_flower.wire import keys
from tests.support import fault_grid as faults
from tests.support.caches import state_bytes
from tests.support.clock_grid import FakeClock
from tests.support.fault_grid import FaultGrid
from tests.support.runs import tiny_config
from tests.support.superlink import events
from tests.support.tiny_models import save_tiny

SAMPLES, WINDOW = 6, 3
BAD = {
    "bit-flipped": (faults.payload(faults.flip_a_bit), "payload-hash"),
    "reordered": (faults.reorder, "payload-hash"),
    "truncated": (faults.truncate, "arrays"),
    "oversized": (faults.oversize, "size"),
    "another device's window": (faults.others_window, "pseudonym"),
    "wrong backbone": (faults.agreed(keys.SPEC, "backbone", "0" * 64), "extraction"),
    "wrong contract": (faults.agreed(keys.CONTRACT, "max_length", 99), "contract"),
    "old schema": (faults.header(keys.VERSION, lambda _: 0), "schema-version"),
    "NaN": (faults.payload(faults.as_float(float("nan")), rehash=True), "activations"),
    "huge": (faults.payload(faults.as_float(3e38), rehash=True), "activations"),
}
"""Faults of which nothing may be kept: what is done to each packet, the rule that it breaks."""
OTHERS = {
    "honest": None,
    "duplicate": None,
    "clock ahead": None,
    "clock behind": None,
    "straggler": None,
    "old window again": faults.old_window,
    "lost answer": faults.lose_first,
    **{f"drops out {i}": faults.drop_out(0.3, seed=i) for i in range(4)},
}
FLEET = {**OTHERS, **{name: fault for name, (fault, _) in BAD.items()}}
UNHURT = [name for name in OTHERS if name != "old window again"]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("backbone"), "bert")


@pytest.fixture(scope="module", params=["pae", "fed"])
def fleet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, backbone: Any) -> Iterator[Any]:
    """One run in which each device has a fault of its own."""
    folder = tmp_path_factory.mktemp(request.param)
    config = tiny_config(
        folder,
        backbone,
        preset=request.param,
        data__max_samples=SAMPLES,
        data__num_devices=len(FLEET),
        activations__codec="fp32",
        rounds__window=WINDOW,
        rounds__max_window_mib=1,
        rounds__max_failures=9,
        rounds__timeout_s=100.0,
        trainer__epochs=1,
        arrivals__grow_windows=False,
    )
    nodes = [{"partition-id": i, "num-partitions": len(FLEET)} for i in range(len(FLEET))]
    slow = 100 + list(FLEET).index("straggler")
    grid = FaultGrid(
        SideTuningClient().app,
        nodes,
        config,
        faults=FLEET,
        clock=FakeClock(),
        delay=lambda node, kind: 20.0 if node == slow and kind == keys.EXTRACT else 2.0,
    )
    grid.twice = {grid.nodes["duplicate"]}
    grid.skewed = {grid.nodes["clock ahead"]: faults.YEARS, grid.nodes["clock behind"]: -faults.YEARS}
    strategy = make_strategy(load_settings(config))
    strategy.clock, strategy.poll_s = grid.clock, 0.0
    began = time.time()
    strategy.start(grid, ArrayRecord())
    cache = ActivationCache(folder / "cache.sqlite")
    yield SimpleNamespace(
        folder=folder,
        strategy=strategy,
        grid=grid,
        cache=cache,
        began=began,
        device=lambda name: strategy.fleet.devices[grid.nodes[name]],
        held=lambda name: cache.devices().get(strategy.fleet.devices[grid.nodes[name]].description.pseudonym, 0),
    )
    cache.close()


def test_a_fleet_full_of_faults_ends_well_and_can_be_trained_again(fleet: Any) -> None:
    (end,) = events(fleet.folder, "finished")
    assert end["outcome"] == "completed"
    assert fleet.cache.verify() == []
    assert len(fleet.cache) == SAMPLES * len(UNHURT) + WINDOW  # and the first window of the one that repeats it
    again = replay(fleet.cache, scores=fleet.strategy.rule.scores)
    assert state_bytes(again) == state_bytes(fleet.strategy.trainer.network)


@pytest.mark.parametrize("name", BAD)
def test_nothing_of_a_bad_packet_is_kept_and_its_device_is_dropped_for_it(fleet: Any, name: str) -> None:
    rule, device = BAD[name][1], fleet.device(name)
    assert dict(device.record.strikes) == {rule: 3}
    assert fleet.held(name) == 0
    assert device.record.dropped == "3 bad packets"
    rejected = [e for e in events(fleet.folder, "rejected") if e["device"] == device.description.pseudonym]
    assert [event["rule"] for event in rejected] == [rule] * 3


@pytest.mark.parametrize("name", UNHURT)
def test_the_others_are_held_whole_and_without_a_strike(fleet: Any, name: str) -> None:
    device = fleet.device(name)
    assert fleet.held(name) == SAMPLES
    assert not device.record.strikes
    assert not device.record.dropped
    windows = [e for e in events(fleet.folder, "window") if e["device"] == device.description.pseudonym]
    assert [event["new"] for event in windows] == [WINDOW] * (SAMPLES // WINDOW)


def test_an_old_window_again_and_again_is_kept_once(fleet: Any) -> None:
    assert fleet.held("old window again") == WINDOW
    assert dict(fleet.device("old window again").record.strikes) == {"progress": 3}


def test_a_lost_answer_is_sent_again_byte_by_byte(fleet: Any) -> None:
    lost, again, *_ = fleet.grid.windows[fleet.grid.nodes["lost answer"]]
    for record in (keys.HEADER, keys.ACTIVATIONS, keys.TARGETS):
        assert dict(lost.content[record]) == dict(again.content[record])
    assert fleet.device("lost answer").record.failures == 1


def test_who_drops_out_is_counted_and_asked_again(fleet: Any) -> None:
    failures = {name: fleet.device(name).record.failures for name in FLEET}
    lost = sum(count for name, count in failures.items() if name.startswith("drops out"))
    asked = sum(
        len(fleet.grid.windows[node]) for name, node in fleet.grid.nodes.items() if name.startswith("drops out")
    )
    assert 0 < lost < asked
    assert lost + failures["lost answer"] == sum(failures.values())


def test_the_devices_clocks_do_not_matter(fleet: Any) -> None:
    for held in fleet.cache.holdings():
        assert fleet.began <= held.first <= held.last <= time.time()


def test_a_straggler_is_waited_for_and_delays_nobody_without_rounds(fleet: Any) -> None:
    slow = fleet.grid.nodes["straggler"]
    answered = [(at, node) for at, node, kind in fleet.grid.answered if kind == keys.EXTRACT]
    first = min(at for at, node in answered if node == slow)
    honest = max(at for at, node in answered if node == fleet.grid.nodes["honest"])
    assert (honest < first) == isinstance(fleet.strategy, type(make_strategy(load_settings({"preset": "fed"}))))
