"""A start that is refused leaves what the folder keeps of the run before: settings, samples, checkpoint, network."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord

from mobillm_flower import SideTuningClient, load_settings, make_strategy
from mobillm_flower.errors import CacheError, MismatchError
from tests.support.local_grid import LocalGrid
from tests.support.runs import NUM_DEVICES, NUM_SAMPLES, run, tiny_config
from tests.support.superlink import events
from tests.support.tiny_models import save_tiny

NODES = [{"partition-id": i, "num-partitions": NUM_DEVICES} for i in range(NUM_DEVICES)]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    parent = tmp_path_factory.mktemp("refused")
    return tiny_config(parent / "run", save_tiny(parent / "backbone", "bert"))


@pytest.fixture(scope="module")
def finished(config: Any) -> dict[str, Any]:
    run(config)
    folder = Path(config["run.folder"])
    with closing(sqlite3.connect(folder / "cache.sqlite")) as db, db:
        (device,) = db.execute("SELECT MIN(device) FROM samples").fetchone()  # its rows are more than two days old
        db.execute("UPDATE samples SET received = received - 200000 WHERE device = ?", (device,))
    return kept(folder)


def kept(folder: Path) -> dict[str, Any]:
    """What a folder has beside its lock and the devices' own folders."""
    with closing(sqlite3.connect(folder / "cache.sqlite")) as db:
        tables = [db.execute(f"SELECT * FROM {name}").fetchall() for name in ("samples", "meta")]
    files = [
        folder / "settings.yaml",
        folder / "events.jsonl",
        *folder.glob("checkpoint/*"),
        *folder.glob("side_network/*"),
    ]
    return {"tables": tables, **{str(file.relative_to(folder)): file.read_bytes() for file in files}}


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({"side-network.bottleneck": 8}, MismatchError, "another side network"),
        ({"trainer.epochs": 9}, MismatchError, "another trainer"),
        ({"backbone.layers": 2}, MismatchError, "with other backbones"),
    ],
)
def test_it_is_refused_by_name_and_nothing_is_changed(
    config: Any, finished: Any, changes: Any, error: Any, reason: str
) -> None:
    refused = {**config, "cache.retention-days": 1, **changes}
    grid = LocalGrid(SideTuningClient().app, NODES, refused)
    strategy = make_strategy(load_settings(refused))
    strategy.poll_s = 0.0
    with pytest.raises(error, match=reason):
        strategy.start(grid, ArrayRecord())
    assert kept(Path(config["run.folder"])) == finished


def test_a_checkpoint_that_cannot_be_read_is_no_reason_to_change_anything(config: Any, finished: Any) -> None:
    folder = Path(config["run.folder"])
    whole = (folder / "checkpoint" / "trainer.pt").read_bytes()
    (folder / "checkpoint" / "trainer.pt").write_bytes(whole[:1000])
    try:
        with pytest.raises(CacheError, match="cannot be read"):
            run({**config, "cache.retention-days": 1, "rounds.timeout-s": 99.0})
    finally:
        (folder / "checkpoint" / "trainer.pt").write_bytes(whole)
    assert kept(folder) == finished


def test_one_that_is_accepted_keeps_its_own_settings_and_retention(config: Any, finished: Any) -> None:
    folder = Path(config["run.folder"])
    strategy = run({**config, "cache.retention-days": 1, "rounds.timeout-s": 99.0})
    assert load_settings(file=folder / "settings.yaml").rounds.timeout_s == 99.0
    with closing(sqlite3.connect(folder / "cache.sqlite")) as db:
        held = dict(db.execute("SELECT device, COUNT(*) FROM samples GROUP BY device"))
    (expired,) = {device.description.pseudonym for device in strategy.fleet} - held.keys()
    assert set(held.values()) == {NUM_SAMPLES}
    asked = [event for event in events(folder, "window")[2 * NUM_DEVICES :] if event["device"] == expired]
    assert [event["refused"] for event in asked] == [NUM_SAMPLES]  # asked again; it releases nothing twice
