"""Runs of a sequence of tasks that are interrupted, corrected or get late samples: as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mobillm_flower.errors import CacheError, MismatchError, RunFailed
from mobillm_flower.runs import events
from mobillm_flower.runs.folder import RunFolder
from mobillm_flower.runs.record import read_run
from mobillm_flower.server import ActivationCache, Trainer
from mobillm_flower.strategies import continual
from tests.support.caches import state_bytes
from tests.support.task_runs import SOLVED, STEPS, run
from tests.support.tiny_models import save_tiny

LINEAR: dict[str, Any] = {**SOLVED, "side_network__random_features": 0}
SUMS: dict[str, Any] = {**LINEAR, "continual__method": "closed-form", "continual__keep": "sums"}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("backbone"), "bert")


@pytest.fixture(scope="module")
def mood(tmp_path_factory: pytest.TempPathFactory, backbone: Path) -> Path:
    """A run that has learned a first task and kept its sums."""
    folder = tmp_path_factory.mktemp("first") / "mood"
    run(folder, backbone, "mood", **SUMS)
    return folder


def fail(error: Exception) -> Callable[..., None]:
    def raising(*_: object) -> None:
        raise error

    return raising


def num_held(folder: Path) -> int:
    cache = ActivationCache(folder / "cache.sqlite")
    count = len(cache)
    cache.close()
    return count


def counts(folder: Path) -> list[list[float]]:
    """Samples of each task in the sums that a run kept, of each type."""
    return [v.tolist() for name, v in continual.kept_sums(RunFolder(folder)).items() if name.endswith(".count")]


def test_sums_are_of_all_samples_wherever_the_run_was_killed(
    tmp_path: Path, backbone: Path, mood: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    way = {**SUMS, "continual__after": str(mood)}
    with monkeypatch.context() as patched:
        patched.setattr(continual, "end", fail(RunFailed("killed")))
        with pytest.raises(RunFailed, match="killed"):
            run(tmp_path / "topic", backbone, "topic", **way)
    run(tmp_path / "topic", backbone, "topic", **way)
    assert (counts(tmp_path / "topic"), num_held(tmp_path / "topic")) == ([[72, 72]], 0)


def test_sums_are_of_all_samples_where_an_accuracy_ends_the_run(tmp_path: Path, backbone: Path) -> None:
    """Samples that came after the accuracy was reached are deleted, too."""
    made = run(tmp_path / "mood", backbone, "mood", rounds__window=6, stop__accuracy=0.3, **SUMS)
    kept = read_run(tmp_path / "mood").last(events.TaskKept)
    assert kept is not None
    assert 18 < kept.deleted < 72
    assert counts(tmp_path / "mood") == [[kept.deleted]]
    assert made.trainer.position.finished


def test_no_sample_is_deleted_where_sums_are_of_other_samples(
    tmp_path: Path, backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_task = Trainer.end_task

    def fewer(trainer: Trainer) -> dict[str, Tensor]:
        return {k: v - 1 if k.endswith(".count") else v for k, v in end_task(trainer).items()}

    monkeypatch.setattr(Trainer, "end_task", fewer)
    with pytest.raises(RunFailed, match="sums are of 71 samples of the task, and 72 are held; no sample was deleted"):
        run(tmp_path / "mood", backbone, "mood", **SUMS)
    assert num_held(tmp_path / "mood") == 72


def test_late_samples_leave_what_earlier_tasks_were(tmp_path: Path, backbone: Path, mood: Path) -> None:
    way = {**SUMS, "continual__keep": "all", "continual__after": str(mood)}
    whole = run(tmp_path / "whole", backbone, "topic", **way)
    run(tmp_path / "late", backbone, "topic", nodes=[0, 1], **way)
    late = run(tmp_path / "late", backbone, "topic", **way)
    assert read_run(tmp_path / "late").session.all(events.StartedAgain)[-1].what == "learns"
    assert state_bytes(late.trainer.network) == state_bytes(whole.trainer.network)


def test_what_is_said_of_samples_is_of_the_task(tmp_path: Path, backbone: Path) -> None:
    """Rows of earlier tasks that replay keeps are not this run's devices' to bring."""
    run(tmp_path / "mood", backbone, "mood", continual__keep="all")
    way: dict[str, Any] = {"continual__after": str(tmp_path / "mood"), "continual__method": "replay"}
    run(tmp_path / "topic", backbone, "topic", nodes=[0, 1], **way)
    run(tmp_path / "topic", backbone, "topic", **way)
    assert num_held(tmp_path / "topic") == 144
    said = read_run(tmp_path / "topic").session.all(events.StartedAgain)[-1]
    assert (said.what, said.held, said.new, said.gone) == ("learns", 72, 24, 0)


@pytest.mark.parametrize("method", ["replay", "sequential", None])
def test_a_start_that_brought_no_sample_leaves_nothing_behind(
    tmp_path: Path, backbone: Path, method: str | None
) -> None:
    """It may be started again after another run, by another method, or after none."""
    for name in ("A", "B"):
        run(tmp_path / name, backbone, "mood", nodes=[0] if name == "A" else range(3))
    none: dict[str, Any] = {"nodes": [0], "rounds__num_rounds": 1, "stop__seconds": 1e-9}
    with pytest.raises(RunFailed, match="no sample was received"):
        run(tmp_path / "topic", backbone, "topic", continual__after=str(tmp_path / "A"), **none)
    way: dict[str, Any] = {"continual__after": str(tmp_path / "B"), "continual__method": method} if method else {}
    states = [state_bytes(run(tmp_path / n, backbone, "topic", **way).trainer.network) for n in ("topic", "whole")]
    assert num_held(tmp_path / "topic") == num_held(tmp_path / "whole") == (144 if method == "replay" else 72)
    assert states[0] == states[1]


@pytest.mark.parametrize("fault", ["keep", "_shrink"])
def test_an_interrupted_deletion_is_finished_when_the_run_is_started_again(
    tmp_path: Path, backbone: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Before the samples are gone, and after it."""
    with monkeypatch.context() as patched:
        patched.setattr(ActivationCache, fault, fail(CacheError("database or disk is full")))
        with pytest.raises(CacheError, match="database or disk is full"):
            run(tmp_path / "mood", backbone, "mood", **SUMS)
    assert num_held(tmp_path / "mood") == (72 if fault == "keep" else 0)
    run(tmp_path / "mood", backbone, "mood", **SUMS)
    record = read_run(tmp_path / "mood")
    assert record.outcome == "completed"
    assert [(kept.keep, kept.samples, kept.deleted) for kept in record.all(events.TaskKept)] == [("sums", 0, 72)]
    with pytest.raises(MismatchError, match=r"is finished, and samples of its task were deleted"):
        run(tmp_path / "mood", backbone, "mood", **SUMS)
    run(tmp_path / "topic", backbone, "topic", continual__after=str(tmp_path / "mood"), **SUMS)
    assert counts(tmp_path / "topic") == [[72, 72]]


def test_enough_samples_are_enough_of_the_task(tmp_path: Path, backbone: Path) -> None:
    """Strategy fed does not count samples of earlier tasks, which stand in the same cache."""
    run(tmp_path / "mood", backbone, "mood")
    way: dict[str, Any] = {"preset": "fed", "arrivals__enough": 0.5, "rounds__window": 6}
    second = run(tmp_path / "topic", backbone, "topic", continual__after=str(tmp_path / "mood"), **way)
    assert second.trainer.position.finished
    cache = ActivationCache(tmp_path / "topic" / "cache.sqlite")
    assert 36 <= cache.num_of_task < 72
    cache.close()


def test_a_sequential_run_that_is_started_again_goes_on_with_the_weights_it_took_over(
    tmp_path: Path, backbone: Path
) -> None:
    run(tmp_path / "mood", backbone, "mood", **STEPS)
    way = {**STEPS, "trainer__overlap_steps": 0, "continual__method": "sequential"}
    way["continual__after"] = str(tmp_path / "mood")
    whole = run(tmp_path / "whole", backbone, "topic", **way)
    with pytest.raises(RunFailed, match="no sample was received"):
        run(tmp_path / "topic", backbone, "topic", nodes=[0], rounds__num_rounds=1, stop__seconds=1e-9, **way)
    stopped = run(tmp_path / "topic", backbone, "topic", **way)
    assert state_bytes(stopped.trainer.network) == state_bytes(whole.trainer.network)


def test_a_run_that_was_killed_before_it_kept_its_sums_keeps_them_when_it_is_started_again(
    tmp_path: Path, backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    way = {**SOLVED, "continual__method": "closed-form", "continual__keep": "sums"}
    whole = run(tmp_path / "whole", backbone, "mood", **way)
    with monkeypatch.context() as patched:
        patched.setattr(continual, "end", fail(RunFailed("killed")))
        with pytest.raises(RunFailed, match="killed"):
            run(tmp_path / "mood", backbone, "mood", **way)
    again = run(tmp_path / "mood", backbone, "mood", **way)
    assert state_bytes(again.trainer.network) == state_bytes(whole.trainer.network)
    expected, kept = (continual.kept_sums(RunFolder(tmp_path / name)) for name in ("whole", "mood"))
    assert kept.keys() == expected.keys()
    assert all(torch.equal(kept[name], expected[name]) for name in kept)
