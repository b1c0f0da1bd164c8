"""References to the cache's rows, in the order of their digests: 60 bytes a row, not an object each."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, overload

import numpy as np

_COLUMNS = {
    "digest": "V32",
    "id": "<i8",
    "backbone": "<i4",
    "tokens": "<i4",
    "round": "<i4",
    "device": "<i4",
    "task": "<i4",
}
_FIELDS = np.dtype(list(_COLUMNS.items()))
_CHUNK = 4096  # rows that are objects at a time in a loop over many
_SPARE = 8  # a table that is full grows by an eighth: each row is copied a few times, little memory lies idle

Value = tuple[bytes, int, str, int, int, str, int]
"""(digest, id, backbone, tokens, round, device, task) of a row."""


class RowRef(NamedTuple):
    """Where a sample is and what orders it.

    Attributes
    ----------
    digest : bytes
        SHA-256 over backbone, activations and target.
    id : int
        Row number in SQLite.
    backbone : str
        Fingerprint of its type.
    tokens : int
        Packed rows T.
    round : int
        Round in which it was committed.
    device : str
        Who sent it: for caps and diagnosis, never for the order.
    task : int
        Which task of a sequence it is of, counted from 0.
    """

    digest: bytes
    id: int
    backbone: str
    tokens: int
    round: int
    device: str
    task: int = 0


class _Numbers(dict[str, int]):
    """Numbers of names, given as the names come."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __missing__(self, name: str) -> int:
        self[name] = number = len(self.names)
        self.names.append(name)
        return number


class _Table:
    """Entries in the order in which they were read, which all parts share. They are only ever added to."""

    def __init__(self, values: Iterable[Value], count: int) -> None:
        self.backbones, self.devices = _Numbers(), _Numbers()
        self.count = count
        entries = np.fromiter(self._numbered(values), _FIELDS, count)
        # an array a column: one that is gathered in another order is then read from few places in memory
        self.columns = {name: np.ascontiguousarray(entries[name]) for name in _COLUMNS}
        self._derived: dict[Hashable, np.ndarray] = {}

    def add(self, values: Sequence[Value]) -> None:
        """Append entries; what was handed out before stays as it is."""
        count, needed = self.count, self.count + len(values)
        entries = np.fromiter(self._numbered(values), _FIELDS, len(values))
        for name, column in self.columns.items():
            if needed > len(column):
                larger = np.empty(needed + needed // _SPARE, column.dtype)
                larger[:count] = column[:count]
                self.columns[name] = column = larger
            column[count:needed] = entries[name]
        self.count = needed

    def tuples(self, places: np.ndarray) -> Iterator[tuple[bytes, int, int, int, int, int, int]]:
        """Yield whole entries."""
        return zip(*(self.columns[name][places].tolist() for name in _COLUMNS), strict=True)

    def by_digest(self, key: Hashable, function: Callable[[bytes], bool]) -> np.ndarray:
        """Return a truth of each entry's digest, asked once an entry."""
        known = self._derived.get(key, np.empty(0, bool))
        if len(known) < self.count:
            fresh = self.columns["digest"][len(known) : self.count].tobytes()
            answers = [function(fresh[i : i + 32]) for i in range(0, len(fresh), 32)]
            known = self._derived[key] = np.concatenate([known, np.array(answers, bool)])
        return known

    def _numbered(self, values: Iterable[Value]) -> Iterator[tuple[bytes, int, int, int, int, int, int]]:
        for digest, id_, backbone, tokens, round_, device, task in values:
            yield digest, id_, self.backbones[backbone], tokens, round_, self.devices[device], task


class Rows(Sequence[RowRef]):
    """A sequence of references that a server can hold for every sample of its cache.

    A part of it (`take`, a slice) and what grew from it (`with_new`) share the values and hold places alone.

    Parameters
    ----------
    values : iterable of tuple
        (digest, id, backbone, tokens, round, device, task) of each row.
    count : int
        How many there are.
    """

    def __init__(self, values: Iterable[Value], count: int) -> None:
        self._table = _Table(values, count)
        self._places = np.arange(count, dtype=np.int32)

    def with_new(self, values: Sequence[Value]) -> Rows:
        """Return these rows, which must be in the order of (digest, id), and others put into that order.

        Parameters
        ----------
        values : sequence of tuple
            As for the class; their ids are above those that are there.
        """
        values = sorted(values)
        first = self._table.count
        self._table.add(values)
        digests = self._table.columns["digest"]

        def digest(place: int) -> bytes:
            value: bytes = digests[place].tobytes()
            return value

        # equal digests: those that are there have the lower ids
        after = [bisect_right(self._places, value[0], key=digest) for value in values]
        return self._part(np.insert(self._places, after, np.arange(first, self._table.count, dtype=np.int32)))

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> RowRef: ...
    @overload
    def __getitem__(self, index: slice) -> Rows: ...
    def __getitem__(self, index: int | slice) -> RowRef | Rows:
        """Return one reference, or a part."""
        if isinstance(index, slice):
            return self._part(self._places[index])
        (entry,) = self._table.tuples(self._places[[index]])
        return self._ref(entry)

    def __iter__(self) -> Iterator[RowRef]:
        for start in range(0, len(self), _CHUNK):
            yield from map(self._ref, self._table.tuples(self._places[start : start + _CHUNK]))

    def take(self, indices: Any) -> Rows:
        """Return the rows at some indices, in that order.

        Parameters
        ----------
        indices : array of int, or array of bool
            Places in this sequence, or which of its rows.
        """
        return self._part(self._places[indices])

    def before(self, round_: int) -> Rows:
        """Return the rows that were committed before a round."""
        return self.take(self.column("round") < round_)

    def column(self, name: str) -> np.ndarray:
        """Return one value of each row: "tokens", "round", "task", or the number of its "backbone" or "device"."""
        values: np.ndarray = self._table.columns[name][self._places]
        return values

    def names(self, column: str) -> tuple[str, ...]:
        """Return what the numbers of "backbone" or "device" stand for, also where no row of this part has them."""
        return tuple((self._table.backbones if column == "backbone" else self._table.devices).names)

    def by_digest(self, key: Hashable, function: Callable[[bytes], bool]) -> np.ndarray:
        """Return a truth of each row's digest, which is asked for once a row under one key, however often it is read.

        Parameters
        ----------
        key : hashable
            What names the function.
        function : callable
            Digest -> bool, the same answer for the same digest.
        """
        answers: np.ndarray = self._table.by_digest(key, function)[self._places]
        return answers

    def _part(self, places: np.ndarray) -> Rows:
        part = object.__new__(Rows)
        part._table, part._places = self._table, places
        return part

    def _ref(self, entry: tuple[bytes, int, int, int, int, int, int]) -> RowRef:
        digest, id_, backbone, tokens, round_, device, task = entry
        table = self._table
        return RowRef(digest, id_, table.backbones.names[backbone], tokens, round_, table.devices.names[device], task)
