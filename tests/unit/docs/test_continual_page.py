"""`docs/explanation/continual.md` quotes the study's JSON, and every method has figures."""

from __future__ import annotations

import statistics
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


def test_every_method_is_measured(generator: ModuleType) -> None:
    found = generator.load()
    for name in generator.ORDER:
        assert len(generator.cells(found, "five tasks", name)) >= 1, name


def test_replay_forgets_less_than_learning_in_sequence(generator: ModuleType) -> None:
    found = generator.load()
    replay, sequential = (
        statistics.mean(generator.measured(found, "five tasks", name)["unknown AA"]) for name in ("joint", "sequential")
    )
    assert replay > sequential + 5
