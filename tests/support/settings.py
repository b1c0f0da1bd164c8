"""One of the settings by its key."""

from __future__ import annotations

from typing import Any


def setting(settings: Any, key: str) -> Any:
    """Return the value of a dotted key."""
    value = settings
    for part in key.replace("-", "_").split("."):
        value = getattr(value, part)
    return value
