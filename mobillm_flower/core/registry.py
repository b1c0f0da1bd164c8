"""Named things that a user can add to: pivots, codecs, side networks, tasks, strategies."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from mobillm_flower.errors import SettingsError

T = TypeVar("T")


class Registry(Generic[T]):
    """A mapping from a setting's value to the thing it names.

    Parameters
    ----------
    kind : str
        What is registered, in the singular, for error messages ("pivot").

    Examples
    --------
    >>> shapes: Registry[int] = Registry("shape")
    >>> _ = shapes.add("triangle", 3)
    >>> shapes["triangle"]
    3
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def add(self, name: str, entry: T) -> T:
        """Register `entry` under `name`; a name that is taken by another entry raises SettingsError."""
        if self._entries.get(name, entry) is not entry:
            raise SettingsError(f"{self.kind} {name!r} is registered already; choose another name")
        self._entries[name] = entry
        return entry

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers a class or function under `name`."""
        return lambda entry: self.add(name, entry)

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            near = difflib.get_close_matches(name, self._entries, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise SettingsError(f"unknown {self.kind} {name!r}{hint} Known: {', '.join(self)}")
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __contains__(self, name: object) -> bool:
        return name in self._entries
