"""`docs/reference/settings.md` is what its generator prints."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from mobillm_flower.config import PRESETS, setting_keys
from tests.support import pages

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    return pages.generator("generate_settings")


def test_the_page_is_up_to_date(generator: ModuleType) -> None:
    page = (DOCS / "reference" / "settings.md").read_text("utf-8")
    assert page == generator.generate(), "run: python docs/generate_settings.py > docs/reference/settings.md"


def test_every_setting_has_a_row(generator: ModuleType) -> None:
    rows = [line.split("`")[1] for line in generator.generate().splitlines() if line.startswith("| `")]
    assert sorted(rows) == sorted(setting_keys())


def test_every_setting_has_a_meaning(generator: ModuleType) -> None:
    rows = [line for line in generator.generate().splitlines() if line.startswith("| `")]
    assert rows
    assert not [row for row in rows if row.endswith("|  |")]


def test_presets_name_settings_that_exist() -> None:
    assert {key for values in PRESETS.values() for key in values} <= set(setting_keys())
