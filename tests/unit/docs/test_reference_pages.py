"""The API reference has every public name and no other, and their docstrings name every argument."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

from tests.support.pages import ROOT
from tests.support.public_api import find, public_names, undocumented

PUBLIC = public_names()
FOLDER = ROOT / "docs" / "reference" / "api"
LISTED = [
    name for page in sorted(FOLDER.glob("*.md")) for name in re.findall(r"^::: (\S+)$", page.read_text("utf-8"), re.M)
]


def test_the_rule_finds_what_it_says() -> None:
    assert {
        "mobillm_flower.CODECS",  # in __all__
        "mobillm_flower.errors.CacheFull",  # an exception
        "mobillm_flower.core.side_networks.protocol.ActivationBatch",  # imported by a how-to guide
        "mobillm_flower.core.codecs.Codec",  # in the annotation of CODECS
        "mobillm_flower.wire.contract.TaskContract",  # in a signature of Task
    } <= PUBLIC.keys()
    assert "mobillm_flower.core.targets.recover" not in PUBLIC


def test_no_name_is_missing_and_none_is_too_many() -> None:
    listed = [find(name) for name in LISTED]
    missing = [place for place, thing in PUBLIC.items() if not any(thing is other for other in listed)]
    assert not missing, f"public, but in no page of {FOLDER.relative_to(ROOT)}: {missing}"
    private = [name for name in LISTED if not any(find(name) is thing for thing in PUBLIC.values())]
    assert not private, f"in the reference, but not public: {private}"


def test_no_name_is_there_twice() -> None:
    assert len({id(find(name)) for name in LISTED}) == len(LISTED)


def test_the_index_has_every_page() -> None:
    index = (FOLDER / "index.md").read_text("utf-8")
    assert {page.name for page in FOLDER.glob("*.md")} - {"index.md"} == set(re.findall(r"\]\((\w[\w-]*\.md)\)", index))


@pytest.mark.parametrize("place", [place for place, thing in PUBLIC.items() if callable(thing)])
def test_its_docstring_names_every_argument(place: str) -> None:
    thing: Any = PUBLIC[place]
    assert inspect.getdoc(thing)
    assert not undocumented(thing), f"{place}: not under Parameters"


def test_a_docstring_that_lacks_an_argument_is_found() -> None:
    def scale(values: list[float], factor: float) -> list[float]:
        """Scale.

        Parameters
        ----------
        values : list of float
            What is scaled.
        """
        return [factor * value for value in values]

    assert undocumented(scale) == {"factor"}
