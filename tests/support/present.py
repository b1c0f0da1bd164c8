"""A value that a test knows to be there, where the library's type says that it may be missing."""

from __future__ import annotations

from typing import TypeVar

Value = TypeVar("Value")


def present(value: Value | None) -> Value:
    """Return `value`; fails the test where it is None."""
    assert value is not None
    return value
