"""A run's log: events as JSON lines, how they are written and read.

A line holds the time (Unix seconds), the kind, Flower's id of the run, and the event's own fields in snake_case; a
field that has its default is left out.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mobillm_flower.runs.device_events  # noqa: F401 - so that its kinds are known
from mobillm_flower.errors import RunFailed
from mobillm_flower.runs.events import KINDS, Event, Other, own_fields

_LATEST = 1e11  # a time in the 52nd century


def encode(event: Event, *, time: float, run: str) -> bytes:
    """Return an event's line."""
    values = {item.name: getattr(event, item.name) for item in own_fields(type(event))}
    defaults = {item.name: _default(item) for item in own_fields(type(event))}
    own = {name: value for name, value in values.items() if value != defaults[name]}
    head = {"time": time, "event": event.kind} | ({"run": run} if run else {})
    return json.dumps(head | own, sort_keys=False).encode() + b"\n"


def decode(line: bytes | str) -> Event:
    """Return the event of a line.

    Earlier releases wrote some names in kebab-case, and metrics beside the other fields: both are read. Fields that
    a kind does not have are left out.

    Raises
    ------
    ValueError, TypeError, KeyError
        It is no event, or a field holds another type than its kind has.
    """
    values = json.loads(line)
    kind, time, run = values.pop("event"), values.pop("time"), values.pop("run", "")
    if not isinstance(kind, str) or not isinstance(run, str) or not 0 <= time < _LATEST:
        raise TypeError("neither kind nor time")
    cls = KINDS.get(kind)
    if cls is None:
        return Other(kind, values, time=time, run=run)
    known, others = _sorted_out(cls, values)
    for name, value in known.items():
        if not _fits(value, _types(kind)[name]):
            raise TypeError(f"{name} is a {type(value).__name__}")
    if "metrics" in (item.name for item in own_fields(cls)):
        known["metrics"] = others | known.get("metrics", {})
    return cls(**known, time=time, run=run)


@functools.cache
def _types(kind: str) -> dict[str, Any]:
    return typing.get_type_hints(KINDS[kind])


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value of JSON is of a field's type; a whole number is one of any kind."""
    form, of = typing.get_origin(kind), typing.get_args(kind)
    if form is types.UnionType:
        return any(_fits(value, one) for one in of)
    if form is list:
        return isinstance(value, list) and all(_fits(item, of[0]) for item in value)
    if form is Mapping:
        return isinstance(value, dict) and all(_fits(item, of[1]) for item in value.values())
    if kind is Any:
        return True
    return type(value) is kind or (kind is float and type(value) is int)


def _default(item: dataclasses.Field[Any]) -> Any:
    return item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default


def _sorted_out(cls: type[Event], values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return those values that are fields of a kind, by the fields' names, and the others; kebab-case is read too."""
    names = {item.name for item in own_fields(cls)}
    fields = {key: key.replace("-", "_") for key in values}
    known = {fields[key]: value for key, value in values.items() if fields[key] in names}
    return known, {key: value for key, value in values.items() if fields[key] not in names}


class EventReader:
    """Reads a log from where it stopped before; the file need not be there yet.

    Parameters
    ----------
    file : Path
        The log.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._at = 0

    def read(self) -> list[Event]:
        """Return the events of complete new lines; the last line of a run in progress may not be whole yet.

        Raises
        ------
        OSError
            The file cannot be read.
        RunFailed
            A line is no event.
        """
        with self._file.open("rb") as stream:
            stream.seek(self._at)
            lines = stream.read().split(b"\n")[:-1]
        try:
            events = [decode(line) for line in lines]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise RunFailed(f"{self._file} is damaged: a line is no event; name a run's folder") from error
        self._at += sum(len(line) + 1 for line in lines)
        return events
