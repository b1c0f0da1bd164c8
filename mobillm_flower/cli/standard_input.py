"""Lines that are piped into a command."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator

from mobillm_flower.errors import DataError


def piped_lines(encoding: str = "") -> Iterator[str]:
    """Yield the lines of standard input; a byte order mark is passed over.

    Parameters
    ----------
    encoding : str
        As in `data.encoding`; empty: UTF-8, whatever the terminal's is.

    Raises
    ------
    DataError
        A line is not text in this encoding, or there is no such encoding.
    """
    named = encoding or "utf-8"
    try:
        text = io.TextIOWrapper(sys.stdin.buffer, "utf-8-sig" if named.lower() in ("utf-8", "utf8") else named)
    except LookupError:
        raise DataError(f"{named!r} is the name of no encoding; give one such as utf-8, cp1252 or utf-16") from None
    try:
        yield from text
    except UnicodeError:
        raise DataError(
            f"standard input is not text in {named.upper()}; name its encoding with --encoding, or convert it to UTF-8"
        ) from None
    finally:
        with contextlib.suppress(ValueError):  # closed meanwhile
            text.detach()  # or it would close standard input with itself
