"""Fleets on a simulated clock: times by hand, draws by seed, and what is read from a measured comparison."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("simpy", reason="the extra `bench` with simpy is not installed")

from benchmarks.comparison.commands import app
from benchmarks.comparison.cost_to_target import cost_to_target
from benchmarks.comparison.fleet import bench_fleet, read_curves
from benchmarks.comparison.fleet_clock import Device, Presence, Recorded, make_fleet, simulate
from benchmarks.comparison.fleet_profiles import PROFILES, World
from benchmarks.comparison.tasks import compared_task
from mobillm_flower.errors import DataError
from mobillm_flower.evaluation.compare.cells import Point
from mobillm_flower.evaluation.compare.cost_to_target import Link
from mobillm_flower.evaluation.compare.costs import DeviceCost
from mobillm_flower.evaluation.compare.curves import Plan, TaskCurves
from mobillm_flower.evaluation.compare.methods import methods

ALWAYS: dict[str, Any] = {"on_s": 1e9, "off_s": 0.0}
WORLD = World(gflops=100.0, deadline_s=1000.0, latency_s=0.5, **ALWAYS)
LORA = Recorded(
    name="fed-lora",
    metrics={1: 0.5, 2: 0.7, 3: 0.9},
    devices=1,
    samples=100.0,
    bytes_up=1e6,
    bytes_down=2e6,
    last_down=3e6,
    seconds_a_sample=0.01,
    peak_bytes=1e6,
    server_seconds=0.0,
    messages=1,
)
PAE = replace(LORA, name="pae", metrics={1: 0.8}, bytes_down=0.0, server_seconds=4.0)


def device(slowdown: float = 2.0, presence: Presence | None = None) -> Device:
    """A megabyte takes it 1 s up and 0.5 s down."""
    return Device(slowdown, 1e9, Link(8.0, 16.0), presence or Presence(1e9, 0.0, [0]))


class Planned(Presence):
    """There from 10 to 20 and from 30 to 100 s."""

    @staticmethod
    def _drawn(draw: np.random.Generator, on_s: float, off_s: float) -> Iterator[tuple[float, float]]:
        yield from ((10.0, 20.0), (30.0, 100.0), (200.0, 300.0))


def test_two_rounds_of_one_device_by_hand() -> None:
    found = simulate(LORA, [device()], WORLD, target=0.7, seed=0)
    round_ = 2 * 0.01 * 100 + 1.0 + 2 * 0.5 + 0.5  # computing, up, down, the message
    assert found.seconds == pytest.approx(2 * round_)
    assert (found.bytes_up, found.bytes_down) == (2e6, 2 * 2e6 + 3e6)
    assert (found.rounds, found.answers, found.lost) == (2, 2, 0)


def test_side_tuning_of_one_device_by_hand() -> None:
    found = simulate(PAE, [device()], WORLD, target=0.7, seed=0)
    assert found.seconds == pytest.approx(2 * 0.01 * 100 + 0.5 + 1.0 + 4.0)  # computing, the message, up, the server
    assert (found.bytes_up, found.bytes_down) == (1e6, 3e6)


def test_split_fed_pays_for_each_of_its_messages() -> None:
    split = replace(LORA, name="split-fed", messages=8, server_seconds=2.0)
    found = simulate(split, [device()], WORLD, target=0.5, seed=0)
    assert found.seconds == pytest.approx(2 * 0.01 * 100 + 1.0 + 2 * 0.5 + 8 * 0.5 + 2.0)


def test_work_goes_on_where_it_was_when_a_device_is_back() -> None:
    presence = Planned(1.0, 1.0, [0])
    assert not presence.here(5.0)
    assert presence.here(12.0)
    assert presence.finish(12.0, 9.0) == 31.0  # eight seconds to 20, one from 30
    assert presence.finish(31.0, 60.0) == 91.0
    assert presence.finish(95.0, 10.0) == 205.0
    assert Planned(1.0, 1.0, [0]).finish(0.0, 3.0) == 13.0


def test_in_the_long_run_a_device_is_there_for_its_share() -> None:
    at = [Presence(60.0, 180.0, [seed]).here(0.0) for seed in range(400)]
    assert 0.18 < np.mean(at) < 0.32
    presence = Presence(60.0, 180.0, [0])
    assert 0.2 < np.mean([presence.here(float(now)) for now in range(0, 400_000, 20)]) < 0.3


def test_a_round_ends_at_its_deadline_and_late_answers_are_lost() -> None:
    pair = replace(LORA, devices=2)
    found = simulate(pair, [device(), device(slowdown=500.0)], replace(WORLD, deadline_s=100.0), target=0.5, seed=0)
    assert found.seconds == pytest.approx(100.0)
    assert (found.rounds, found.answers, found.lost) == (1, 1, 1)
    assert found.bytes_up == 1e6


def test_a_round_of_too_few_answers_does_not_count() -> None:
    three = replace(LORA, devices=3)
    fleet = [device(), device(slowdown=500.0), device(slowdown=500.0)]
    found = simulate(three, fleet, replace(WORLD, deadline_s=100.0, limit_s=2000.0), target=0.5, seed=0)
    assert found.seconds is None
    assert found.rounds == 0
    assert found.lost >= 2


def test_side_tuning_waits_for_nobody_in_particular() -> None:
    pair = replace(PAE, devices=2)
    fleet = [device(slowdown=500.0), device(), device(slowdown=4.0)]
    found = simulate(pair, fleet, WORLD, target=0.7, seed=0)
    assert found.seconds == pytest.approx(4 * 0.01 * 100 + 0.5 + 1.0 + 4.0)
    assert (found.answers, found.lost) == (2, 0)  # the slow one had not begun to send
    both = [device(), device(), device(slowdown=2.5)]  # the third is sending when the second is done
    found = simulate(pair, both, WORLD, target=0.7, seed=0)
    assert (found.answers, found.lost, found.bytes_up) == (2, 1, 3e6)


def test_what_cannot_be_reached_is_said() -> None:
    assert simulate(LORA, [device()], WORLD, target=0.95, seed=0).seconds is None
    needy = simulate(replace(LORA, peak_bytes=2e9), [device()], WORLD, target=0.5, seed=0)
    assert (needy.seconds, needy.too_small) == (None, 1)
    assert simulate(replace(PAE, devices=2), [device()], WORLD, target=0.5, seed=0).seconds is None


def test_a_fleet_has_every_profile_around_its_figures() -> None:
    fleet = make_fleet(500, World(gflops=100.0, efficiency=0.5), seed=1)
    for i, profile in enumerate(PROFILES):
        mine = fleet[i :: len(PROFILES)]
        assert np.median([one.slowdown for one in mine]) == pytest.approx(100 / (0.5 * profile.gflops), rel=0.2)
        assert np.median([one.link.up_mbit for one in mine]) == pytest.approx(profile.up_mbit, rel=0.3)
        assert np.std([np.log(one.link.down_mbit) for one in mine]) == pytest.approx(0.5, rel=0.3)
        assert "http" in profile.source


@pytest.fixture
def curves(tmp_path: Path) -> Path:
    ours = Point(0.8, 4, 1.0, 100.0, 2e9, 1e6, 3e6, [120], [[2e6, 3e6]], 5.0)
    lora = [
        Point(0.5, 1, 1.0, 100.0, 6e9, 1e6, 2e6, [120], [[1e6, 1e6], [0, 1e6]]),
        Point(0.9, 3, 3.0, 300.0, 18e9, 3e6, 4e6, [120] * 3, [[1e6, 1e6]] * 3 + [[0, 1e6]]),
    ]
    costs = {"pae": DeviceCost(0.01, 10_000_000), "fed-lora": DeviceCost(0.05, 100_000_000), "upload-all": DeviceCost()}
    slow = [lora[0], replace(lora[1], metric=0.8, rounds=6)]  # the other seed's run
    found = {"iid": {"pae": [[ours]] * 2, "fed-lora": [lora, slow], "upload-all": [[ours]] * 2}}
    plan = Plan([compared_task("phone-messages")], methods(3, ["pae"]), [0, 1], ["iid"], 10, {}, 1, tmp_path)
    report = cost_to_target(plan, {"t": TaskCurves({}, [], found, costs, 0.5)}, Link())
    (tmp_path / "cost.json").write_text(json.dumps(report.to_dict()))
    return tmp_path / "cost.json"


def test_what_is_replayed_is_what_was_measured(curves: Path) -> None:
    ((pae, _), (lora, slow)), target = read_curves(curves, "", "")
    assert target == 0.8
    assert (pae.metrics, pae.devices, pae.samples, pae.bytes_up, pae.bytes_down) == ({1: 0.8}, 10, 100.0, 1e6, 0.0)
    assert (pae.last_down, pae.server_seconds, pae.peak_bytes) == (3e6, 5.0, 1e7)
    assert (lora.metrics, lora.samples, lora.bytes_up, lora.bytes_down) == ({1: 0.5, 3: 0.9}, 100.0, 1e6, 1e6)
    assert (lora.rounds_to(0.8), slow.rounds_to(0.8)) == (3, 6)


def test_a_simulation_depends_on_its_seed_alone(curves: Path) -> None:
    def outcomes(seed: int) -> object:
        return bench_fleet(curves, sizes=[50], world=World(gflops=100.0), seeds=[seed]).figures["fleets"]

    assert outcomes(0) == outcomes(0)
    assert outcomes(0) != outcomes(1)


def test_each_measured_run_is_replayed_by_itself(curves: Path) -> None:
    world = World(gflops=100.0, on_s=1e9, off_s=0.0, deadline_s=1e9)
    fleets = bench_fleet(curves, sizes=[20], world=world, seeds=[0, 1, 2]).figures["fleets"]["20"]
    assert [one["rounds"] for one in fleets["fed-lora"]] == [3, 6, 3]


@pytest.mark.timeout(120)
def test_ten_thousand_devices(curves: Path) -> None:
    report = bench_fleet(curves, sizes=[10_000], world=World(gflops=100.0), seeds=[0])
    for (outcome,) in report.figures["fleets"]["10000"].values():
        assert 0 < outcome["seconds"] < 86400
        assert outcome["bytes_down"] >= 10_000 * 1e6
    assert "modelled" in report.tables[0].title
    json.dumps(report.to_dict())


def test_files_that_are_something_else_are_refused(curves: Path) -> None:
    for words, message in (
        (("u", ""), "has no task 'u'; give one of t"),
        (("t", "alpha=1"), "has no partition 'alpha=1'"),
    ):
        with pytest.raises(DataError, match=message):
            read_curves(curves, *words)
    curves.write_text(json.dumps({"bench": "fleet"}))
    with pytest.raises(DataError, match="is not what `python -m benchmarks cost-to-target --json` writes"):
        read_curves(curves, "", "")


def test_the_command_writes_table_json_and_page(curves: Path, tmp_path: Path) -> None:
    words = ["fleet", "--curves", str(curves), "--devices", "20,40", "--seeds", "2", "--gflops", "50"]
    files = [tmp_path / "fleet.json", tmp_path / "fleet.html"]
    answer = CliRunner().invoke(app, [*words, "--json", str(files[0]), "--report", str(files[1])])
    assert answer.exit_code == 0, answer.output
    assert "20 devices, target 0.8000 (modelled)" in answer.output
    found = json.loads(files[0].read_text("utf-8"))
    assert found["figures"]["modelled"] is True
    assert found["settings"]["world"]["gflops"] == 50
    assert len(found["figures"]["fleets"]["40"]["pae"]) == 2
    assert files[1].read_text("utf-8").count("<svg") == 2
