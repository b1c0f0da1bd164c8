"""A run's life: the folder is held, the log has both ends, a refused start leaves what is kept of the run before."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Error

from mobillm_flower import load_settings
from mobillm_flower.errors import CacheError, MismatchError, RunFailed
from mobillm_flower.runs.folder import RunFolder
from mobillm_flower.strategies.lifecycle import running
from tests.support.runs import run, tiny_config, tiny_run
from tests.support.superlink import events
from tests.support.tiny_models import save_tiny

GRID: Any = SimpleNamespace(run=SimpleNamespace(run_id=7))


def start(folder: Path, **overrides: Any) -> Any:
    settings = load_settings(overrides)
    return running(settings, folder, GRID, strategy="PaeMobiLLM")


def test_a_run_that_ends_well_is_logged_from_its_start_to_its_end(tmp_path: Path) -> None:
    with start(tmp_path) as started:
        cache = started.open_cache()
        started.before_the_end(lambda: started.folder.settings.write_text(str(len(cache)), "utf-8"))
        assert started.folder.holder() is not None
    (first,), (last,) = events(tmp_path, "started"), events(tmp_path, "finished")
    assert (first["strategy"], first["run"], last["outcome"]) == ("PaeMobiLLM", "7", "completed")
    assert started.folder.settings.read_text("utf-8") == "0"  # the cache was open still
    assert started.folder.holder() is None
    with pytest.raises(CacheError, match="closed"):
        len(cache)


def test_a_run_that_fails_is_logged_with_the_reason_and_the_error_goes_on(tmp_path: Path) -> None:
    said = []

    def fail() -> None:
        with start(tmp_path) as started:
            started.before_the_end(lambda: said.append("last words"))
            raise RunFailed("nobody came")

    with pytest.raises(RunFailed, match="nobody came"):
        fail()
    (last,) = events(tmp_path, "finished")
    assert (last["outcome"], last["reason"], said) == ("failed", "nobody came", ["last words"])
    assert RunFolder(tmp_path).holder() is None


def test_an_error_that_is_not_ours_is_named_without_its_text(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="a private sentence"), start(tmp_path):
        raise KeyError("a private sentence")
    assert events(tmp_path, "finished")[0]["reason"] == "KeyError"


def everything(folder: Path) -> dict[str, bytes]:
    """What the files of a folder hold, but for the lock."""
    return {str(f): f.read_bytes() for f in folder.rglob("*") if f.is_file() and f.name != "lock"}


def test_a_refused_start_changes_nothing_in_the_folder_of_a_run_from_before(tmp_path: Path) -> None:
    with start(tmp_path, **{"run.seed": 1}) as started:
        started.keep_settings()
    before = everything(tmp_path)
    with pytest.raises(RunFailed, match="refused"), start(tmp_path, **{"run.seed": 2}):
        raise RunFailed("refused")
    assert everything(tmp_path) == before

    def accepted() -> None:
        with start(tmp_path, **{"run.seed": 2}) as again:
            again.keep_settings()
            raise RunFailed("later")

    with pytest.raises(RunFailed, match="later"):
        accepted()
    assert everything(tmp_path) != before
    assert events(tmp_path, "finished")[-1]["reason"] == "later"


def test_files_of_a_run_are_its_owners_alone_also_in_a_folder_that_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o755)
    umask = os.umask(0o022)
    try:
        with start(folder) as started:
            started.open_cache()
            started.keep_settings()
            (folder / "side_network").mkdir()
            (folder / "side_network" / "config.json").write_text("{}", "utf-8")
        (tmp_path / "after").write_text("", "utf-8")
    finally:
        os.umask(umask)
    assert {f.name: f.stat().st_mode & 0o077 for f in folder.rglob("*") if f.stat().st_mode & 0o077} == {}
    assert (tmp_path / "after").stat().st_mode & 0o077


def test_what_changed_since_a_run_began_is_named_where_it_cannot_go_on(tmp_path: Path) -> None:
    """Whatever the error blames: devices, backbones or the task."""
    begun: dict[str, Any] = {"data__num_devices": 3, "task__max_length": 16, "trainer__overlap_steps": 2}
    path = tiny_run(tmp_path, **begun)
    other = save_tiny(tmp_path / "other", "opt")
    for key, value, then in (
        ("data.label-column", "persona", "intent"),
        ("data.text-column", "missing", "text"),
        ("backbone.name", str(other), str(tmp_path / "backbone")),
        ("task.max-length", "20", "16"),
        ("trainer.epochs", "3", "2"),
        ("task.labels", "alarm,music", ""),
    ):
        said = f"was started with other settings: {key}={then} (now {value}). To go on with it, give these again"
        with pytest.raises((MismatchError, RunFailed), match=re.escape(said)):
            run({**tiny_config(path, tmp_path / "backbone", **begun), key: value})
    with pytest.raises(RunFailed, match=r"of at least 1 device.*no reason") as caught:  # nothing has changed
        run(tiny_config(path, tmp_path / "backbone", **begun), tamper=lambda *_: Error(1, "no reason"))
    assert "other settings" not in str(caught.value)
