"""What others wrote is printed as text: nothing of it commands a terminal."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mobillm_flower.runs.plain import is_plain, plain


@given(st.text())
def test_what_is_printed_is_one_line_without_control_characters(text: str) -> None:
    shown = plain(text)
    assert is_plain(shown)
    assert len(shown.splitlines()) <= 1
    assert is_plain(text) == (plain(text, len(text)) == text)


def test_commands_and_changes_of_direction_are_spelled_out_and_long_texts_cut() -> None:
    assert plain("a\x1b[2J\r\nb\u202ec") == r"a\x1b[2J\r\nb\u202ec"
    assert plain("Grüße 👋 \u200d") == "Grüße 👋 \u200d"
    assert plain("x" * 5_000_000, 10) == "x" * 9 + "…"
