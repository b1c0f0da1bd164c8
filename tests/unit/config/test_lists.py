"""Lists in one line: what is written is read, wherever it is given."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobillm_flower.config import list_text, load_settings
from mobillm_flower.config.lists import list_entries, split_words
from mobillm_flower.errors import SettingsError
from mobillm_flower.launch.app import App

NAMES = ["World", "Business, money", "Sci/Tech", "it's", 'a "b" c', " blank "]


@settings(max_examples=100, deadline=None, database=None, derandomize=True)
@given(st.lists(st.text(max_size=8).filter(lambda text: "\x00" not in text), max_size=5))
def test_entries_come_back(entries: list[str]) -> None:
    assert list_entries(list_text(entries)) == entries


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        ("a,b", ["a", "b"]),
        ("[a, b]", ["a", "b"]),
        ("'a,b',c", ["a,b", "c"]),
        ('"a \\"q\\"",it\'s,', ['a "q"', "it's"]),
        ("", []),
        ("'tis,b", ["'tis", "b"]),
    ],
)
def test_entries(text: str, entries: list[str]) -> None:
    assert list_entries(text) == entries


def test_names_with_commas_in_every_place_that_a_setting_can_be_given(tmp_path: Path) -> None:
    written = list_text(NAMES)
    file = tmp_path / "settings.yaml"
    file.write_text("task:\n  labels:\n" + "".join(f"    - {name!r}\n" for name in NAMES[:3]), "utf-8")
    assert load_settings(file=file).task.labels == NAMES[:3]
    assert load_settings({"task.labels": written}).task.labels == NAMES
    assert load_settings(overrides=[f"task.labels={written}"]).task.labels == NAMES
    assert load_settings({"settings": "task.labels=World,'Business, money' trainer.epochs=5"}).task.labels == NAMES[:2]
    assert load_settings({"settings": "task.prompt='{text} is:' task.labels=a,b"}).task.prompt == "{text} is:"
    for config in ({"settings": ""}, {"task.labels": "", "settings": ""}):
        app = App(tmp_path, config)
        assert app.settings([f"task.labels={written}", "trainer.epochs=5"]).task.labels == NAMES
    assert load_settings(overrides=["task.labels='a,b'"]).task.labels == ["a", "b"]


def test_a_quote_that_is_not_closed_is_refused() -> None:
    assert split_words("a=1  b='x y'") == ["a=1", "b='x y'"]
    with pytest.raises(SettingsError, match="a quote is not closed"):
        load_settings({"settings": "task.prompt='{text}"})
