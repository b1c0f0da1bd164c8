"""`docs/explanation/language-modelling.md` quotes the benchmarks' JSON, which holds what was promised."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.support import pages
from tests.support.pages import ROOT

PAGE = ROOT / "docs" / "explanation" / "language-modelling.md"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    return pages.generator("generate_language")


def test_the_figures_are_up_to_date(generator: ModuleType) -> None:
    page = PAGE.read_text("utf-8")
    assert page == generator.written(page, generator.load()), "run: python docs/generate_language.py"


def test_labels_reach_60_percent_of_what_lora_gains_with_three_seeds(generator: ModuleType) -> None:
    tasks = generator.load()["language"]["tasks"]
    assert set(tasks) == set(generator.TASKS)
    for task in tasks.values():
        assert all(len(task["cross_entropy"][row]) == 3 for row in generator.ROWS)
        assert generator.gain(task, "label") >= 0.6 * generator.gain(task, "lora") > 0


def test_memory_and_generation_stay_under_their_bars(generator: ModuleType) -> None:
    found = generator.load()
    memory, made = found["language_memory"], found["language_generate"]
    assert memory["settings"]["vocabulary"] == 150_000
    for loss in ("label", "difference"):
        assert memory["figures"][loss]["peak_bytes"] < 4 << 30
        assert memory["bars"][f"{loss}_peak_bytes"]["holds"]
    for sides in made["comparisons"].values():
        assert sides["pairs"] == len(sides["ours"]) == len(sides["other"]) >= 10
        assert sides["ratio"] == statistics.median(sides["ours"]) / statistics.median(sides["other"])
    assert all(made["comparisons"][f"{name}_cpu"]["ratio"] <= 1.1 for name in ("additive", "causal"))


@pytest.mark.slow
def test_a_step_never_holds_whole_logits(tmp_path: Path) -> None:
    """Of 1,024 tokens they are 0.57 GiB a copy, and a step would need three of them beside the head's 1.14 GiB."""
    file = tmp_path / "memory.json"
    script = ROOT / "benchmarks" / "overhead" / "language_memory.py"
    subprocess.run(
        [sys.executable, str(script), "--tokens", "1024", "--turns", "1", "--json", str(file)], check=True, timeout=280
    )
    losses = json.loads(file.read_text("utf-8"))["figures"]
    assert set(losses) == {"label", "difference"}
    assert all(values["peak_bytes"] < 2.8 * 2**30 for values in losses.values())
