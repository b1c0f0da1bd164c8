"""Faults of real processes on loopback: a SuperLink and two SuperNodes, killed and started again.

That a device without a registered key is refused is shown by `test_several_machines.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mobillm_flower.privacy.device_folder import DeviceFolder
from mobillm_flower.server import ActivationCache
from tests.support.superlink import Deployment, events, wait_for
from tests.support.tiny_models import save_tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SAMPLES, WINDOW = 12, 6
NODE = "partition-id={} num-partitions=2"


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    made = Deployment(tmp_path_factory.mktemp("fleet"), {f"device-{i}": NODE.format(i) for i in range(2)})
    try:
        save_tiny(made.folder / "backbone", "bert")
        made.start_superlink()
        for name in made.devices:
            made.start_device(name)
        yield made
    finally:
        made.end()


def submit(deployment: Deployment, name: str, *settings: str) -> tuple[Path, str]:
    """Submit a small run; it releases with settings of its own, since a device releases a sample under one set once."""
    run_path = deployment.folder / name
    chosen = [
        f"backbone.name={deployment.folder / 'backbone'}",
        "backbone.device=cpu",
        "data.num-devices=2",
        f"data.max-samples={SAMPLES}",
        "side-network.bottleneck=4",
        "trainer.epochs=1",
        "trainer.num-threads=1",
        f"rounds.window={WINDOW}",
        "rounds.min-devices=2",
        "strategy=fed",
        "arrivals.ingest-first=true",
        "arrivals.grow-windows=false",
        *settings,
    ]
    return run_path, deployment.submit(run_path, *chosen)


def finish(deployment: Deployment, run_path: Path, run_id: str) -> None:
    """Wait for the end; it is a good one, and all samples are held as they were committed."""
    wait_for(lambda: deployment.is_over(run_id), "the run is over", seconds=600)
    log = (deployment.folder / "superlink.log").read_text("utf-8", "replace")[-3000:]
    assert deployment.status(run_id) == "finished:completed", log
    assert events(run_path, "finished")[-1]["outcome"] == "completed"
    with closing(ActivationCache(run_path / "cache.sqlite")) as cache:
        assert list(cache.devices().values()) == [SAMPLES, SAMPLES]
        assert cache.verify() == []


def committed(run_path: Path) -> int:
    return sum(event["new"] for event in events(run_path, "window"))


def test_a_device_killed_during_its_upload_comes_back_as_the_same_device(deployment: Any) -> None:
    run_path, run_id = submit(deployment, "killed-device", "task.max-length=16")
    wait_for(lambda: len(events(run_path, "window")) >= 1, "a first window is committed")
    deployment.kill("device-1")  # its next window is being made, or on its way
    deployment.start_device("device-1")
    finish(deployment, run_path, run_id)
    assert committed(run_path) == 2 * SAMPLES  # nothing was taken twice
    assert len({event["device"] for event in events(run_path, "device")}) == 2


def test_a_server_app_that_is_killed_fails_its_run_and_the_next_one_goes_on(deployment: Any) -> None:
    run_path, run_id = submit(deployment, "killed-app", "task.max-length=17")
    wait_for(lambda: len(events(run_path, "window")) >= 1, "a first window is committed")
    deployment.kill_server_app()
    wait_for(lambda: deployment.is_over(run_id), "Flower notices", seconds=300)
    assert deployment.status(run_id) == "finished:failed"
    assert not events(run_path, "finished")  # it had no time to say so
    before = committed(run_path)
    again, run_id = submit(deployment, "killed-app", "task.max-length=17")
    finish(deployment, again, run_id)
    assert 0 < before < committed(run_path) == 2 * SAMPLES


def pseudonym(folder: Path) -> str:
    device = DeviceFolder(folder)
    name = device.pseudonym
    device.close()
    return name


def test_a_superlink_killed_is_started_again_and_a_device_killed_after_its_upload_counts(deployment: Any) -> None:
    run_path, _ = submit(deployment, "killed-superlink", "task.max-length=18")
    wait_for(lambda: len(events(run_path, "window")) >= 1, "a first window is committed")
    deployment.kill("superlink")
    before = committed(run_path)
    deployment.start_superlink()
    again, run_id = submit(deployment, "killed-superlink", "task.max-length=18")
    name = pseudonym(deployment.folder / "device-1")
    wait_for(lambda: 0 in [e["remaining"] for e in events(run_path, "window") if e["device"] == name], "it sent all")
    deployment.kill("device-1")  # after its upload: its data is trained on, and it is not evaluated
    finish(deployment, again, run_id)
    assert 0 < before < committed(run_path) == 2 * SAMPLES
    (evaluation,) = events(run_path, "evaluation")
    assert evaluation["devices"] == 1
    assert {event["device"] for event in events(run_path, "failure")} == {name}
