"""Random kills for as long as one likes: nothing that was held is lost, and each run comes to a good end.

MOBILLM_SOAK_MINUTES=20 pytest -m slow -s tests/integration/test_soak.py
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import sqlite3
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from mobillm_flower.server import ActivationCache
from tests.support.superlink import Deployment, events
from tests.support.tiny_models import save_tiny

MINUTES = float(os.environ.get("MOBILLM_SOAK_MINUTES", "0"))
SEED = int(os.environ.get("MOBILLM_SOAK_SEED", "0"))
DEVICES, SAMPLES, WINDOW = 4, 24, 4
PAUSE_S = (20.0, 80.0)  # between two kills: starting a device's or a run's processes takes some ten seconds

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(MINUTES * 60 + 1800),
    pytest.mark.skipif(not MINUTES, reason="run by hand, with MOBILLM_SOAK_MINUTES"),
]


class Soak:
    """One deployment, one run after another, and what happened to them."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment, self.random = deployment, random.Random(SEED)
        self.count: Counter[str] = Counter()
        self.held: dict[Path, frozenset[tuple[str, bytes]]] = {}

    def submit(self, number: int) -> tuple[Path, str]:
        run_path = self.deployment.folder / f"run-{number}"
        chosen = [
            f"backbone.name={self.deployment.folder / 'backbone'}",
            "backbone.device=cpu",
            f"data.num-devices={DEVICES}",
            f"data.max-samples={SAMPLES}",
            f"task.max-length={16 + number}",  # a device releases a sample once under the same settings
            "side-network.bottleneck=4",
            "trainer.epochs=2",
            "trainer.num-threads=1",
            f"rounds.window={WINDOW}",
            f"rounds.min-devices={DEVICES}",
            "rounds.timeout-s=300",
            "rounds.max-failures=1000",
            "strategy=fed",
            "arrivals.grow-windows=false",
        ]
        self.count["submitted"] += 1
        return run_path, self.deployment.submit(run_path, *chosen)

    def look(self, run_path: Path) -> None:
        """Nothing that was ever seen in the cache is missing from it now."""
        now = held(run_path)
        assert self.held.get(run_path, frozenset()) <= now
        self.held[run_path] = now

    def kill_something(self) -> None:
        # of what stops a run altogether less often: it must meet its devices anew each time
        name = self.random.choice([*self.deployment.devices, *self.deployment.devices, "server app", "superlink"])
        if name == "server app":
            with contextlib.suppress(AssertionError):  # it is not running at the moment
                self.deployment.kill_server_app()
                self.count["killed server app"] += 1
            return
        self.deployment.kill(name)
        time.sleep(self.random.uniform(0, 5))
        if name == "superlink":
            self.deployment.start_superlink()
        else:
            self.deployment.start_device(name)
        self.count[f"killed {'superlink' if name == 'superlink' else 'device'}"] += 1

    def is_over(self, run_id: str) -> bool:
        with contextlib.suppress(AssertionError):  # the SuperLink has just come back
            return self.deployment.status(run_id).startswith("finished")
        return False

    def run(self, number: int, until: float) -> None:
        """Finish one run whatever happens, killing while there is time."""
        run_path, run_id = self.submit(number)
        deadline = max(time.monotonic(), until) + 1200  # while there are kills, a run may not get to its end
        while not ended_well(run_path):
            assert time.monotonic() < deadline, f"{run_path.name} did not end; {dict(self.count)}"
            time.sleep(self.random.uniform(*PAUSE_S))
            if time.monotonic() < until:
                self.kill_something()
            self.look(run_path)
            if self.is_over(run_id) and not ended_well(run_path):
                _, run_id = self.submit(number)
        self.look(run_path)
        assert len(self.held[run_path]) == DEVICES * SAMPLES
        cache = ActivationCache(run_path / "cache.sqlite")
        assert cache.verify() == []
        cache.close()
        new = sum(event["new"] for event in events(run_path, "window"))
        self.count["runs ended well"] += 1
        self.count["samples held"] += DEVICES * SAMPLES
        # a server killed between commit and log leaves fewer events than samples, never more
        assert new <= DEVICES * SAMPLES


def held(run_path: Path) -> frozenset[tuple[str, bytes]]:
    file = run_path / "cache.sqlite"
    if not file.exists():
        return frozenset()
    with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=30)) as db:
        try:
            return frozenset(db.execute("SELECT device, release FROM samples"))
        except sqlite3.OperationalError:  # killed before the table was made
            return frozenset()


def ended_well(run_path: Path) -> bool:
    ends = events(run_path, "finished")
    return bool(ends) and ends[-1]["outcome"] == "completed"


def test_random_kills_lose_nothing(tmp_path: Path) -> None:
    node = "partition-id={} num-partitions={}"
    deployment = Deployment(tmp_path, {f"device-{i}": node.format(i, DEVICES) for i in range(DEVICES)})
    soak = Soak(deployment)
    try:
        save_tiny(tmp_path / "backbone", "bert")
        deployment.start_superlink()
        for name in deployment.devices:
            deployment.start_device(name)
        until = time.monotonic() + 60 * MINUTES
        number = 0
        while time.monotonic() < until:
            soak.run(number, until)
            number += 1
            sys.stdout.write(json.dumps(soak.count) + "\n")
    finally:
        deployment.end()
    assert soak.count["runs ended well"] >= 1
    assert sum(count for name, count in soak.count.items() if name.startswith("killed")) >= MINUTES / 2
