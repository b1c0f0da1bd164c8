"""Fields of settings with the range or the names that they are held to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from typing import Any


def number(
    default: Any, *, at_least: float | None = None, above: float | None = None, below: float | None = None
) -> Any:
    """Return a dataclass field with a default and the range that `check_settings` holds it to."""
    rules: dict[str, Callable[[Any], bool]] = {}
    if at_least is not None:
        rules[f"at least {at_least:g}"] = lambda value: value >= at_least
    if above is not None:
        rules[f"above {above:g}"] = lambda value: value > above
    if below is not None:
        rules[f"below {below:g}"] = lambda value: value < below
    return field(default=default, metadata=rules)


def one_of(default: str, *names: str) -> Any:
    """Return a dataclass field that takes one of some names."""
    return field(default=default, metadata={" or ".join(names): lambda value: value in names})
