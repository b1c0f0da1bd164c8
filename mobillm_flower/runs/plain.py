"""Text that others wrote, made safe to print: a terminal, a log and a page take it as text and as nothing else."""

from __future__ import annotations

import re

# control characters, surrogates, line and paragraph separators, and what turns the direction of writing around
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def is_plain(text: str) -> bool:
    """Whether a text has nothing that a terminal would obey."""
    return _UNSAFE.search(text) is None


def plain_line(text: str) -> str:
    """Return a text on one line, without what would move a terminal's cursor."""
    return "".join(character if character.isprintable() else " " for character in text)


def plain(text: object, most: int = 500) -> str:
    r"""Return a text as one line: control characters are escaped, and what is beyond `most` characters is cut.

    Examples
    --------
    >>> plain("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    whole = str(text)
    cut = whole if len(whole) <= most else f"{whole[: most - 1]}…"
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), cut)
