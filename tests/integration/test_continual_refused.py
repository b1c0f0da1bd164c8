"""A run that cannot go on with another says so before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mobillm_flower.errors import InUseError, MismatchError, RunFailed, SettingsError
from mobillm_flower.runs.folder import RunFolder
from tests.support.task_runs import SOLVED, run
from tests.support.tiny_models import save_tiny


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("backbone"), "bert")


REFUSED: list[tuple[dict[str, Any], dict[str, Any], type[Exception], str]] = [
    ({}, {"continual__task": "mood"}, SettingsError, "continual.task='mood' is taken: .* has learned mood"),
    ({}, {"continual__method": "oa-adapter"}, SettingsError, "run the first task with continual.method=oa-adapter"),
    ({}, {"continual__method": "closed-form"}, SettingsError, "adds to a solution, and .* trained additive"),
    (
        {},
        {"activations__codec": "int8"},
        MismatchError,
        "what is uploaded differs: codec is 'int8' in this run, 'nf4' in",
    ),
    ({}, {"activations__pivot": "mean"}, MismatchError, "what is uploaded differs: num_vectors is 1 in this run"),
    ({}, {"activations__num_blocks": 2}, MismatchError, "what is uploaded differs: layers is"),
    ({}, {"side_network__bottleneck": 8}, MismatchError, "the side network differs: bottleneck is 8 in this run, 4 in"),
    (
        {"continual__keep": "nothing", "continual__method": "sequential"},
        {},
        SettingsError,
        "continual.method=replay needs samples of earlier tasks, and .* kept none of some; choose sequential",
    ),
    (
        SOLVED,
        {**SOLVED, "preset": "analytic", "continual__method": "closed-form", "continual__keep": "sums"},
        SettingsError,
        "devices sent samples, and strategy=analytic asks for sums; choose pae or fed",
    ),
    (
        SOLVED,
        {**SOLVED, "continual__keep": "sums", "continual__method": "closed-form"},
        SettingsError,
        "run the first task with continual.method=closed-form and continual.keep=sums",
    ),
]


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory, backbone: Path) -> Callable[..., Path]:
    """A finished run of the first task, made once for each way."""
    made: dict[str, Path] = {}

    def of(**way: Any) -> Path:
        key = repr(sorted(way.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("first") / "mood"
            run(made[key], backbone, "mood", **way)
        return made[key]

    return of


@pytest.mark.parametrize(("first", "second", "error", "said"), REFUSED)
def test_what_cannot_be_gone_on_with_is_refused_before_anything_is_written(
    tmp_path: Path,
    backbone: Path,
    first_run: Callable[..., Path],
    first: dict[str, Any],
    second: dict[str, Any],
    error: type[Exception],
    said: str,
) -> None:
    after = first_run(**first)
    with pytest.raises(error, match=said):
        run(tmp_path / "topic", backbone, "topic", **{"continual__after": str(after), **second})
    assert not RunFolder(tmp_path / "topic").side_network.exists()


def test_a_run_after_one_that_was_refused_is_made(
    tmp_path: Path, backbone: Path, first_run: Callable[..., Path]
) -> None:
    after = str(first_run())
    with pytest.raises(SettingsError, match="is taken"):
        run(tmp_path / "topic", backbone, "topic", continual__after=after, continual__task="mood")
    assert run(tmp_path / "topic", backbone, "topic", continual__after=after, nodes=[0]).trainer.position.finished


def test_another_backbone_is_refused_by_name(tmp_path: Path, first_run: Callable[..., Path]) -> None:
    after = str(first_run())
    other = save_tiny(tmp_path / "other", "bert", num_hidden_layers=2)
    with pytest.raises(
        MismatchError, match=r"\(continual.after\) was a run of .*backbone.* and the devices have .*other"
    ):
        run(tmp_path / "topic", other, "topic", continual__after=after)


def test_a_run_that_is_none_or_is_not_over_is_refused(tmp_path: Path, backbone: Path) -> None:
    after: dict[str, Any] = {"continual__after": str(tmp_path / "mood")}
    with pytest.raises(SettingsError, match="is no folder of a run with its settings and cache"):
        run(tmp_path / "topic", backbone, "topic", **after)
    run(tmp_path / "mood", backbone, "mood")
    with (
        RunFolder(tmp_path / "mood").hold(),
        pytest.raises(InUseError, match="the run goes on; wait until it has ended"),
    ):
        run(tmp_path / "topic", backbone, "topic", **after)
    (tmp_path / "mood" / "side_network" / "config.json").unlink()
    with pytest.raises(RunFailed, match="the run is not finished"):
        run(tmp_path / "topic", backbone, "topic", **after)
