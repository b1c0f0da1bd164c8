"""Fields of settings with the range or the names that they are held to."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import field, fields
from typing import Any

from mobillm_flower.errors import SettingsError


def number(
    default: Any, *, at_least: float | None = None, above: float | None = None, below: float | None = None
) -> Any:
    """Return a dataclass field with a default and the range that `check_ranges` holds it to."""
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


def check_ranges(name: str, part: Any) -> None:
    """Refuse values of a part that are not finite or out of range; names in registries are checked when looked up."""
    for item in fields(part):
        value = getattr(part, item.name)
        key = f"{name}.{item.name}".replace("_", "-")
        if any(isinstance(n, float) and not math.isfinite(n) for n in (value if isinstance(value, list) else [value])):
            raise SettingsError(f"{key}={value!r} must be finite")
        for words, holds in item.metadata.items():
            if not holds(value):
                raise SettingsError(f"{key}={value!r} must be {words}")
