"""The server is killed, its disk is full, its cache is locked: nothing committed is lost, and the run goes on."""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord

from mobillm_flower import SideTuningClient, load_settings, make_strategy
from mobillm_flower.errors import CacheError, MismatchError
from mobillm_flower.privacy.device_folder import DeviceFolder
from mobillm_flower.runs.folder import RunFolder
from mobillm_flower.server import ActivationCache, cache_file
from mobillm_flower.server.plan import replay
from mobillm_flower.wire import keys
from tests.support.caches import state_bytes
from tests.support.killed import partial_files, run, run_killed
from tests.support.local_grid import LocalGrid
from tests.support.runs import tiny_config
from tests.support.superlink import events
from tests.support.tiny_models import save_tiny

DEVICES, SAMPLES, WINDOW = 2, 12, 4
NODES = [{"partition-id": i, "num-partitions": DEVICES} for i in range(DEVICES)]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("backbone"), "bert")


def make_config(folder: Path, backbone: Path, preset: str = "fed", **changes: Any) -> dict[str, Any]:
    ordered = {"arrivals__ingest_first": True} if preset == "fed" else {}
    return tiny_config(
        folder,
        backbone,
        **{
            "preset": preset,
            "data__max_samples": SAMPLES,
            "rounds__window": WINDOW,
            "trainer__batch_size": 4,
            "trainer__checkpoint_every": 2,
            "arrivals__grow_windows": False,
            **ordered,
            **changes,
        },
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, backbone: Any) -> bytes:
    """Weights of a fed run that nothing happens to."""
    strategy, _ = run(make_config(tmp_path_factory.mktemp("undisturbed"), backbone), NODES)
    return state_bytes(strategy.trainer.network)


def require_whole(folder: Path, strategy: Any) -> None:
    """All samples are held as they were committed, and the run can be trained again from them."""
    with closing(ActivationCache(folder / "cache.sqlite")) as cache:
        assert list(cache.devices().values()) == [SAMPLES] * DEVICES
        assert cache.verify() == []
        assert state_bytes(replay(cache, scores=strategy.rule.scores)) == state_bytes(strategy.trainer.network)
    assert events(folder, "finished")[-1]["outcome"] == "completed"


def held_in(folder: Path) -> dict[str, frozenset[bytes]]:
    with closing(ActivationCache(folder / "cache.sqlite")) as cache:
        return {device: cache.held(device) for device in cache.devices()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "at", "count", "committed"),
    [
        ("fed", "window", 3, 3 * WINDOW),
        ("fed", "epoch", 1, DEVICES * SAMPLES),
        ("fed", "fsync", 3, DEVICES * SAMPLES),
        ("pae", "window", 3, 3 * WINDOW),
        ("pae", "fsync", 3, None),
    ],
    ids=["fed, ingesting", "fed, training", "fed, writing a checkpoint", "pae, ingesting", "pae, writing a checkpoint"],
)
def test_a_killed_server_asks_for_what_it_lacks_and_trains_the_same(
    tmp_path: Path, backbone: Any, undisturbed: Any, preset: str, at: str, count: int, committed: Any
) -> None:
    config = make_config(tmp_path, backbone, preset)
    run_killed(config, NODES, at, count)
    assert not events(tmp_path, "finished")
    assert RunFolder(tmp_path).holder() is None
    before = held_in(tmp_path)
    num_before = sum(map(len, before.values()))
    assert committed in (num_before, None)
    assert partial_files(tmp_path) == ([".trainer.pt.draft"] if at == "fsync" else [])
    strategy, grid = run(config, NODES)
    assert partial_files(tmp_path) == []
    asked = [m.content[keys.REQUEST] for m in grid.sent if m.metadata.message_type == keys.EXTRACT]
    whole = sum(len(held) == SAMPLES for held in before.values())  # asked once, whether others came in their place
    assert len(asked) == (DEVICES * SAMPLES - num_before) // WINDOW + whole
    pseudonyms = {node: device.description.pseudonym for node, device in strategy.fleet.devices.items()}
    for message in (m for m in grid.sent if m.metadata.message_type == keys.EXTRACT):
        held = before.get(pseudonyms[message.metadata.dst_node_id], frozenset())
        assert all(release in message.content[keys.REQUEST][keys.HELD] for release in held)
    require_whole(tmp_path, strategy)
    if preset == "fed":
        assert state_bytes(strategy.trainer.network) == undisturbed


def test_a_device_killed_before_it_answers_sends_the_bytes_that_it_had_made(
    tmp_path: Path, backbone: Any, undisturbed: Any
) -> None:
    config = make_config(tmp_path, backbone)
    run_killed(config, NODES, "answer", 3)
    waiting: dict[tuple[str, bytes], Any] = {}
    for file in sorted((tmp_path / "devices").glob("*/ledger.sqlite")):
        folder = DeviceFolder(file.parent)
        with closing(sqlite3.connect(file)) as ledger:
            made = [row[0] for row in ledger.execute("SELECT release FROM releases WHERE held = 0")]
        waiting |= {(folder.pseudonym, release): item for release, item in folder.ledger.outbox(made).items()}
        folder.close()
    before = held_in(tmp_path)
    lost = {key: item for key, item in waiting.items() if key[1] not in before.get(key[0], frozenset())}
    assert len(lost) == WINDOW
    strategy, _ = run(config, NODES)
    with closing(ActivationCache(tmp_path / "cache.sqlite")) as cache, closing(sqlite3.connect(cache.file)) as db:
        for (device, release), item in lost.items():
            query = "SELECT activations, target FROM samples WHERE device = ? AND release = ?"
            assert db.execute(query, (device, release)).fetchone() == (item.activations, item.target)
    again = events(tmp_path, "window")[2:]
    assert [event["samples"] for event in again] == [WINDOW] * len(again)
    assert [event["forward_seconds"] for event in again].count(0.0) == 1  # what had been made was not computed again
    require_whole(tmp_path, strategy)
    assert state_bytes(strategy.trainer.network) == undisturbed


def start(config: dict[str, Any], at_third_window: Any) -> None:
    """Run; `at_third_window` is called with the cache when the third window has come, before it is committed."""
    strategy = make_strategy(load_settings(config))
    strategy.poll_s = 0.0
    seen = 0

    def tamper(message: Any, reply: Any) -> Any:
        nonlocal seen
        seen += message.metadata.message_type == keys.EXTRACT
        if seen == 3 and message.metadata.message_type == keys.EXTRACT:
            at_third_window(strategy.cache)
        return reply

    strategy.start(LocalGrid(SideTuningClient().app, NODES, config, order_seed=2, tamper=tamper), ArrayRecord())


@pytest.mark.parametrize("preset", ["pae", "fed"])
def test_a_full_disk_ends_the_run_by_name_and_what_was_committed_is_used_by_the_next(
    tmp_path: Path, backbone: Any, preset: str
) -> None:
    config = make_config(tmp_path, backbone, preset, activations__codec="fp32")

    def fill(cache: ActivationCache) -> None:
        (pages,) = cache._disk.db.execute("PRAGMA page_count").fetchone()
        cache._disk.db.execute(f"PRAGMA max_page_count={pages}")  # SQLite refuses as it does when the disk is full

    with pytest.raises(CacheError, match=r"a window was not committed: database or disk is full; .* is safe"):
        start(config, fill)
    (end,) = events(tmp_path, "finished")
    assert end["outcome"] == "failed"
    assert "disk is full" in end["reason"]
    before = sum(map(len, held_in(tmp_path).values()))
    assert before in range(2 * WINDOW, DEVICES * SAMPLES, WINDOW)  # what the last page had room for
    strategy, grid = run(config, NODES)
    asked = sum(m.metadata.message_type == keys.EXTRACT for m in grid.sent)
    assert asked == (DEVICES * SAMPLES - before) // WINDOW
    require_whole(tmp_path, strategy)


def write_lock(cache: ActivationCache) -> sqlite3.Connection:
    other = sqlite3.connect(cache.file, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    return other


def test_a_locked_cache_is_waited_for(tmp_path: Path, backbone: Any, undisturbed: Any) -> None:
    config = make_config(tmp_path, backbone)
    waited = []

    def lock(cache: ActivationCache) -> None:
        other = write_lock(cache)

        def let_go() -> None:
            time.sleep(0.3)
            other.execute("ROLLBACK")
            other.close()
            waited.append(True)

        threading.Thread(target=let_go).start()

    start(config, lock)
    assert waited == [True]
    assert not events(tmp_path, "rejected")
    assert not events(tmp_path, "failure")
    strategy, _ = run(config, NODES)
    require_whole(tmp_path, strategy)
    assert state_bytes(strategy.trainer.network) == undisturbed


def test_a_cache_that_stays_locked_ends_the_run_and_loses_nothing(
    tmp_path: Path, backbone: Any, undisturbed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_file, "_LOCK_WAIT_S", 0.1)
    config = make_config(tmp_path, backbone)
    others: list[sqlite3.Connection] = []
    with pytest.raises(CacheError, match=r"a window was not committed: database is locked; .* is safe"):
        start(config, lambda cache: others.append(write_lock(cache)))
    others[0].close()
    assert "database is locked" in events(tmp_path, "finished")[0]["reason"]
    assert sum(map(len, held_in(tmp_path).values())) == 2 * WINDOW
    strategy, _ = run(config, NODES)
    require_whole(tmp_path, strategy)
    assert state_bytes(strategy.trainer.network) == undisturbed


def test_a_run_goes_on_while_the_only_device_of_a_type_is_away(tmp_path: Path, backbone: Any) -> None:
    config = make_config(tmp_path, backbone)
    nodes = [NODES[0], {**NODES[1], "backbone.layers": 2}]
    run_killed(config, nodes, "epoch", 1)
    strategy, _ = run(config, nodes[:1])
    require_whole(tmp_path, strategy)
    assert len(strategy.plan.specs) == 2


def test_devices_of_another_type_that_come_while_the_run_is_down_are_refused_and_it_goes_on(
    tmp_path: Path, backbone: Any
) -> None:
    config = make_config(tmp_path, backbone, "pae")
    run(config, NODES)
    other = {
        **NODES[1],
        "backbone.layers": 2,
        "device-folder": str(tmp_path / "another"),
        "backbone.name": str(backbone),
    }
    strategy, _ = run(config, [NODES[0], other])
    require_whole(tmp_path, strategy)
    (refused,) = events(tmp_path, "refused")
    assert "with 2 layers is not among those the run started with" in refused["reason"]
    with pytest.raises(MismatchError, match=r"other backbones than those of the devices that are there"):
        run(config, [other])
