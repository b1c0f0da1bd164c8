"""`docs/explanation/poisoning.md` quotes the study's JSON, which holds what the default defence promises."""

from __future__ import annotations

import json
import statistics
from types import ModuleType
from typing import Any

import pytest

from tests.support import pages


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    return pages.generator("generate_poisoning")


@pytest.fixture(scope="module")
def cells(generator: ModuleType) -> Any:
    return json.loads(generator.RESULTS.read_text("utf-8"))["cells"]


def mean(seeds: Any, kind: str, column: str) -> float:
    return float(statistics.mean(by[kind][column][0] for by in seeds.values()))


def test_the_figures_are_up_to_date(generator: ModuleType, cells: Any) -> None:
    page = generator.PAGE.read_text("utf-8")
    assert page == generator.written(page, cells), "run: python docs/generate_poisoning.py"


def test_three_seeds_on_two_sets(generator: ModuleType, cells: Any) -> None:
    assert all(len(cells[name]) == 3 for name in generator.FLEETS.values())


def test_one_liar_costs_at_most_two_points_beyond_leaving_it_out(generator: ModuleType, cells: Any) -> None:
    for name in generator.FLEETS.values():
        kinds = [kind for kind in next(iter(cells[name].values())) if kind.startswith("one liar")]
        assert len(kinds) == 4
        for kind in kinds:
            cost = mean(cells[name], kind, "left out") - mean(cells[name], kind, "defended")
            assert cost <= 0.02, (name, kind)


def test_where_nobody_lies_the_default_costs_at_most_half_a_point(generator: ModuleType, cells: Any) -> None:
    for name in generator.FLEETS.values():
        for kind in ("nobody lies", "nobody lies, uneven"):
            cost = mean(cells[name], kind, "undefended") - mean(cells[name], kind, "defended")
            assert cost <= 0.005, (name, kind)
    fleet = cells["examples/fleet"].values()
    assert statistics.mean(by["undefended"][0] - by["defended"][0] for by in fleet) <= 0.005
