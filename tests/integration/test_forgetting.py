"""A device is forgotten, and the run is trained again without it: what `mobillm cache forget` tells people to do."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from mobillm_flower.errors import InUseError
from mobillm_flower.runs import folder as run_folder
from mobillm_flower.runs.folder import RunFolder
from mobillm_flower.server import ActivationCache
from mobillm_flower.server.plan import replay
from tests.support.caches import state_bytes
from tests.support.runs import NUM_DEVICES, NUM_SAMPLES, run, tiny_config
from tests.support.tiny_models import save_tiny


@pytest.fixture
def config(tmp_path: Path) -> Any:
    return tiny_config(tmp_path / "run", save_tiny(tmp_path / "backbone", "bert"))


@pytest.mark.parametrize("preset", ["pae", "mobillm", "fed"])
def test_a_run_started_again_trains_without_the_device_that_was_forgotten(
    config: Any, tmp_path: Path, preset: str
) -> None:
    config["preset"] = preset
    before = run(config)
    folder = RunFolder(tmp_path / "run").make()
    cache = ActivationCache(folder.cache)
    gone, *others = cache.devices()
    assert cache.forget(gone) == NUM_SAMPLES
    cache.close()
    shutil.rmtree(folder.checkpoint.parent)
    shutil.rmtree(folder.side_network)
    after = run(config)  # the forgotten device takes part; it keeps to what it released before
    assert after.cache.file == folder.cache
    cache = ActivationCache(folder.cache)
    assert cache.devices() == dict.fromkeys(others, NUM_SAMPLES)
    assert len(others) == NUM_DEVICES - 1
    retrained = state_bytes(after.trainer.network)
    assert retrained != state_bytes(before.trainer.network)
    assert retrained == state_bytes(replay(cache, scores=after.rule.scores))  # nothing but these rows went in


def test_a_run_holds_its_folder_and_lets_go_of_it(config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "_LOCK_WAIT_S", 0.1)
    folder = RunFolder(tmp_path / "run").make()
    holders = []

    def look(_message: Any, reply: Any) -> Any:
        holders.append(folder.holder())
        with pytest.raises(InUseError, match="is in use by process"):
            folder.hold()
        return reply

    run(config, tamper=look)
    assert len(holders) >= 2 * NUM_DEVICES
    assert None not in holders
    assert folder.holder() is None


def test_a_second_run_in_the_same_folder_is_refused_and_touches_nothing(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "_LOCK_WAIT_S", 0.1)
    folder = RunFolder(tmp_path / "run").make()
    with folder.hold(), pytest.raises(InUseError, match="run is in use by process"):
        run(config)
    assert [file.name for file in folder.path.iterdir()] == ["lock"]


def test_a_run_that_fails_lets_go_of_its_folder(config: Any, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no grid"):
        run(config, tamper=_broken)
    assert RunFolder(tmp_path / "run").holder() is None


def _broken(*_: object) -> None:
    raise RuntimeError("no grid")
