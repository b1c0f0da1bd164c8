"""No app here names a package that Flower would fetch, so that the installed one is what runs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.support.pages import ROOT

FILES = sorted(
    file
    for folder in ("examples", "tests", "mobillm_flower", "benchmarks")
    for file in (ROOT / folder).rglob("pyproject.toml")
    if "[tool.flwr.app]" in file.read_text("utf-8")
)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_an_app_depends_on_flower_alone_in_the_versions_that_are_supported(file: Path) -> None:
    (only,) = tomllib.loads(file.read_text("utf-8"))["project"]["dependencies"]
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    supported = next(Requirement(word) for word in ours if Requirement(word).name == "flwr")
    assert (Requirement(only).name, Requirement(only).specifier) == ("flwr", supported.specifier)
    assert not Requirement(only).extras  # Flower leaves out flwr itself, but not what its extras bring


def test_apps_are_found() -> None:
    assert {file.parent.name for file in FILES} >= {"quickstart", "fleet", "newcomer_app"}


def test_the_pinned_flower_is_one_that_is_supported_and_the_other_is_too() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    (flower,) = (Requirement(word) for word in project["dependencies"] if Requirement(word).name == "flwr")
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE))
    (other,) = re.findall(r"^VERSION \?= (\S+)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert flower.specifier.contains(pins["flwr"])
    assert flower.specifier.contains(other)
    assert pins["flwr"] != other
