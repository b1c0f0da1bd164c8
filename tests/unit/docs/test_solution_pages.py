"""Pages about the closed form quote the studies' JSON."""

from __future__ import annotations

import pytest

from tests.support import pages


@pytest.mark.parametrize("name", ["generate_samples_held", "generate_vectors"])
def test_the_figures_are_up_to_date(name: str) -> None:
    generator = pages.generator(name)
    page = generator.PAGE.read_text("utf-8")
    assert page == generator.written(page, generator.load()), f"run: python docs/{name}.py"


def test_the_closed_form_is_ahead_of_steps_with_all_samples_and_while_they_arrive() -> None:
    generator = pages.generator("generate_samples_held")
    for curve in generator.load()["curves"].values():
        assert all(len(of_way) == 3 for of_way in curve.values())
        solved, by_steps = (generator.means(curve[way]) for way in ("closed form", "by steps"))
        assert solved[-1] > by_steps[-1]
        assert sum(solved) > sum(by_steps)


def test_vectors_are_measured_with_three_draws_on_three_backbones() -> None:
    found = pages.generator("generate_vectors").load()
    assert len(found) == 3
    assert all(
        len(one["metric"]) == 3 for sets in found.values() for of_set in sets.values() for one in of_set.values()
    )
    for sets in found.values():
        assert [len(of_set) for of_set in sets.values()] == [20] * 6
