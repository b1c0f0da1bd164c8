"""`docs/explanation/continual.md` quotes the study's JSON, and every method has figures."""

from __future__ import annotations

import statistics
from pathlib import Path
from types import ModuleType

import pytest

from tests.support import pages
from tests.support.pages import ROOT


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    return pages.generator("generate_continual")


def test_the_figures_are_up_to_date(generator: ModuleType) -> None:
    page = (ROOT / "docs" / "explanation" / "continual.md").read_text("utf-8")
    assert page == generator.written(page, generator.load()), "run: python docs/generate_continual.py"


def test_every_method_is_measured_in_every_sequence(generator: ModuleType) -> None:
    found = generator.load()
    for sequence in generator.SEQUENCES:
        assert all(generator.cells(found, sequence, name) for name in generator.NAMES), sequence


def test_a_backbone_of_another_width_keeps_other_sums(generator: ModuleType) -> None:
    """What a solution keeps follows from the vectors: the same number of bytes would be of the same features."""
    found = generator.load()
    kept = {
        sequence: generator.cells(found, sequence, "joint")[0]["sizes"][-1]["bytes_kept"]
        for sequence in ("five tasks", "five tasks, smollm2")
    }
    assert len(set(kept.values())) == 2


def test_replay_forgets_less_than_learning_in_sequence(generator: ModuleType) -> None:
    found = generator.load()
    replay, sequential = (
        statistics.mean(generator.measured(found, "five tasks", name)["unknown AA"]) for name in ("joint", "sequential")
    )
    assert replay > sequential + 5


def test_the_figure_is_drawn_from_the_trials_that_are_there(
    generator: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generator, "FIGURE", tmp_path / "figure.svg")
    generator.draw(generator.load())
    assert "τ₀" in (tmp_path / "figure.svg").read_text("utf-8")
