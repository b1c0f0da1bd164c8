"""Why rows take no part: the reasons that may be told, in numbers, never by what a row holds."""

from __future__ import annotations

import json
from collections.abc import Mapping

from mobillm_flower.errors import PacketRejected

NO_TEXT = "no-text"
NO_LABEL = "no-label"
UNKNOWN_LABEL = "unknown-label"
BAD_TARGET = "bad-target"
NO_TOKENS = "no-tokens"

REASONS: Mapping[str, str] = {
    NO_TEXT: "without a text",
    NO_LABEL: "without a label",
    UNKNOWN_LABEL: "with a label that is none of the classes",
    BAD_TARGET: "whose target is no number in task.label-range",
    NO_TOKENS: "without a token to read",
}
"""What each reason means, as the end of a sentence that begins with a number of rows."""

_MOST = 10**8


def pack_left_out(counts: Mapping[str, int]) -> str:
    """Return the counts of rows that a device leaves out, by `SPLIT REASON`, as canonical JSON."""
    return json.dumps(dict(counts), sort_keys=True, separators=(",", ":"))


def open_left_out(text: object) -> dict[str, int]:
    """Read `pack_left_out` back.

    Raises
    ------
    PacketRejected
        It is not JSON, names another split or reason, or holds what is no count.
    """
    try:
        if not isinstance(text, str):
            raise TypeError
        counts = json.loads(text)
        for key, count in counts.items():
            split, reason = key.split(" ")
            if split not in ("train", "test") or reason not in REASONS or type(count) is not int:
                raise ValueError
            if not 0 < count <= _MOST:
                raise ValueError
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise PacketRejected("description", "the counts of rows that are left out are malformed") from error
    return dict(counts)


def left_out_text(counts: Mapping[str, int]) -> str:
    """Return counts in words: "train: 2 rows without a label; test: 1 without a text"."""
    parts = []
    for split in ("train", "test"):
        of_split = {key.split(" ")[1]: count for key, count in counts.items() if key.startswith(f"{split} ")}
        if of_split:
            named = ", ".join(f"{count:,} {REASONS[reason]}" for reason, count in sorted(of_split.items()))
            parts.append(f"{split}: {named}")
    return "; ".join(parts)
