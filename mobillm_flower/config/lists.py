"""Lists in one line of text: entries between commas, in quotes where they hold a comma."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

from mobillm_flower.errors import SettingsError

_ENTRY = re.compile(r"""\s*(?:"((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)'|([^,]*))\s*(?:,|$)""")
_WORD = re.compile(r"""(?:[^\s'"\\]|\\.|'[^']*'|"(?:[^"\\]|\\.)*")+""", re.DOTALL)


def list_entries(text: str) -> list[str]:
    """Return the entries of a list, without brackets around it and quotes around them.

    Examples
    --------
    >>> list_entries("World, 'Business, money', it's")
    ['World', 'Business, money', "it's"]
    """
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    entries, place = [], 0
    while place < len(text):
        match = _ENTRY.match(text, place)
        assert match is not None  # its third form takes anything up to a comma
        quoted = match[1] if match[1] is not None else match[2]
        entry = (match[3] or "").strip() if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
        if entry or quoted is not None:
            entries.append(entry)
        place = max(match.end(), place + 1)
    return entries


def list_text(entries: Iterable[object]) -> str:
    """Return entries as `list_entries` reads them.

    Examples
    --------
    >>> list_text(["World", "Business, money"])
    'World,"Business, money"'
    """
    return ",".join(_entry_text(str(entry)) for entry in entries)


def _entry_text(entry: str) -> str:
    if list_entries(entry) == [entry] and not entry.startswith("["):
        return entry
    escaped = entry.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def split_words(text: str) -> list[str]:
    """Return the words of an inline string as they stand, quotes included; blanks within quotes do not part them.

    Raises
    ------
    SettingsError
        A quote is not closed.
    """
    words, place = [], 0
    for match in _WORD.finditer(text):
        if text[place : match.start()].strip():
            break
        words.append(match.group())
        place = match.end()
    if text[place:].strip():
        raise SettingsError(f"settings={text!r} cannot be split into key=value words: a quote is not closed")
    return words


def unquoted_word(word: str) -> str:
    """Return a word without its quotes, as a shell reads it."""
    return "".join(shlex.split(word))
