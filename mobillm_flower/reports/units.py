"""Figures with their units, for people."""

from __future__ import annotations

import math
from datetime import UTC, datetime

_BYTES = ("B", "kB", "MB", "GB")


def bytes_text(value: float) -> str:
    """Return bytes in the largest unit that leaves at least 1: "151.59 kB"."""
    for unit in _BYTES:
        if abs(value) < 1000 or unit == _BYTES[-1]:
            return f"{value:,.0f} {unit}" if unit == "B" else f"{value:,.2f} {unit}"
        value /= 1000
    raise AssertionError


def bytes_unit(largest: float) -> tuple[str, float]:
    """Return one unit for values up to `largest`, and how many bytes it is."""
    place = 0 if largest < 1 else min(len(_BYTES) - 1, int(math.log10(largest) // 3))
    return _BYTES[place], 1000.0**place


def seconds_text(value: float) -> str:
    """Return seconds: "0.40 s", "113 s", "12 min 5 s", "3 h 20 min"."""
    if value < 10:
        return f"{value:.2f} s"
    whole = round(value)
    if whole < 180:
        return f"{whole} s"
    minutes, seconds = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def time_text(unix_seconds: float) -> str:
    """Return a time of the log, in UTC."""
    return datetime.fromtimestamp(unix_seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
