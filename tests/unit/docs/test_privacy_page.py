"""`docs/explanation/privacy.md` quotes the benchmark's JSON and the mechanism's own numbers."""

from __future__ import annotations

import json
import re
import statistics
from types import ModuleType
from typing import Any

import pytest

from mobillm_flower.privacy.labelled_cap import LabelledCap
from tests.support import pages
from tests.support.pages import ROOT

PAGE = ROOT / "docs" / "explanation" / "privacy.md"
FOUND: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / "privacy.json").read_text("utf-8"))
CELLS = [(task, name) for task, found in FOUND["tasks"].items() for name in found["cells"]]


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    return pages.generator("generate_privacy_tables")


def test_the_tables_are_up_to_date(generator: ModuleType) -> None:
    page = PAGE.read_text("utf-8")
    assert page == generator.written(page, FOUND), "run: python docs/generate_privacy_tables.py"


@pytest.mark.parametrize(("task", "name"), CELLS)
def test_means_are_those_of_the_repetitions(task: str, name: str) -> None:
    cell = FOUND["tasks"][task]["cells"][name]
    assert re.fullmatch(r"[0-9a-f]{40}", cell["commit"])
    assert cell["mean"] == pytest.approx(statistics.mean(row["metric"] for row in cell["repetitions"]))
    if cell["mechanism"] != "none":
        assert len(cell["repetitions"]) == 3
        # σ is rounded up, so that what is promised may be a little less than what was asked for
        assert all(
            cell["epsilon"] * 0.999 < row["epsilon"] <= cell["epsilon"] * (1 + 1e-9) for row in cell["repetitions"]
        )


def test_an_epsilon_of_8_reaches_what_is_said() -> None:
    assert FOUND["tasks"]["sst2"]["cells"]["joint, other sets text, ε = 8"]["mean"] >= 0.65


def test_height_and_kept_labels_are_the_mechanisms() -> None:
    rows = re.findall(r"^\| (\d+) \| (\d\.\d{3}) \| (\d\.\d{3}) \|$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert len(rows) == 5
    for epsilon, height, kept in rows:
        cap = LabelledCap(float(epsilon), 2)
        assert (f"{cap.height:.3f}", f"{cap.label_kept:.3f}") == (height, kept)
