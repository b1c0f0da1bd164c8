"""Secure sums on a SuperLink: of four SuperNodes one is killed between two phases, and the sum is the others'."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.superlink import Deployment, events, wait_for
from tests.support.tiny_models import save_tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_supernode_that_is_killed_before_its_masked_sum_is_left_out(tmp_path: Path) -> None:
    names = [f"device-{i}" for i in range(4)]
    fleet = Deployment(tmp_path, {name: f"partition-id={i} num-partitions=4" for i, name in enumerate(names)})
    try:
        save_tiny(tmp_path / "backbone", "bert")
        fleet.start_superlink()
        for name in names:
            fleet.start_device(name)
        run_path = tmp_path / "run"
        run_id = fleet.submit(
            run_path,
            "preset=analytic",
            f"backbone.name={tmp_path / 'backbone'}",
            "backbone.device=cpu",
            "data.num-devices=4",
            "data.max-samples=20",
            "activations.projection=8",
            "privacy.min-samples=2",
            "privacy.secure-sums=always",
            "privacy.secure-sums-devices=3",
            "rounds.min-devices=4",
            "rounds.timeout-s=90",
        )
        over = lambda: fleet.status(run_id).startswith("finished")  # noqa: E731
        wait_for(lambda: knows_the_roster(tmp_path / names[0]) or over(), "the first device knows who takes part")
        fleet.kill(names[0])
        wait_for(over, "the run is over")
        log = (tmp_path / "superlink.log").read_text("utf-8", "replace")[-3000:]
        assert fleet.status(run_id) == "finished:completed", log
        (summed,) = events(run_path, "group-summed")
        assert len(summed["devices"]) == 3
    finally:
        fleet.end()


def knows_the_roster(device_folder: Path) -> bool:
    files = list((device_folder / "secure-sums").glob("*.open.json"))
    return bool(files) and bool(json.loads(files[0].read_bytes())["roster"])
