"""`docs/reference/benchmarks.md` quotes the benchmarks' JSON, and the JSON is what its repetitions say."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.support import pages

ROOT = Path(__file__).parents[3]
FILES = sorted((ROOT / "benchmarks" / "results").glob("bench_*.json"))


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    return pages.generator("generate_benchmarks")


def test_the_page_is_up_to_date(generator: ModuleType) -> None:
    page = (ROOT / "docs" / "reference" / "benchmarks.md").read_text("utf-8")
    fresh = generator.generate().rstrip("\n") + "\n"
    assert page == fresh, "run: python docs/generate_benchmarks.py > docs/reference/benchmarks.md"


def test_every_benchmark_has_a_file(generator: ModuleType) -> None:
    assert {f"bench_{name}.json" for name in generator.NAMES} <= {file.name for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_ratios_and_bars_are_those_of_the_repetitions(file: Path) -> None:
    found: dict[str, Any] = json.loads(file.read_text("utf-8"))
    assert found["commit"]
    for name, sides in found["comparisons"].items():
        assert sides["pairs"] == len(sides["ours"]) == len(sides["other"]) >= 10, name
        assert sides["ratio"] == statistics.median(sides["ours"]) / statistics.median(sides["other"]), name
    ratios = {sides["ratio"] for sides in found["comparisons"].values()}
    figures = set(found["figures"].get("codecs", []) and {row["bits_per_value"] for row in found["figures"]["codecs"]})
    figures |= {value for value in found["figures"].values() if isinstance(value, float)}
    sizes = [
        part["peak_bytes"] for part in found["figures"].values() if isinstance(part, dict) and "peak_bytes" in part
    ]
    figures |= {size / 1e9 for size in sizes}
    for name, bar in found["bars"].items():
        assert bar["value"] in ratios | figures, name
        assert bar["holds"] is (bar["value"] <= bar["bar"] if bar["rule"] == "at most" else bar["value"] >= bar["bar"])
