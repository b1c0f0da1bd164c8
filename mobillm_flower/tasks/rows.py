"""Rows as people have them, and which of them a task can use; the others are left out, and counted by reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import pyarrow as pa

from mobillm_flower.errors import DataError, MissingColumnError
from mobillm_flower.tasks.labels import value_text
from mobillm_flower.wire.left_out import REASONS

_SHOWN = 5  # rows that a message names
_EXAMPLE = (
    "return two of datasets.Dataset, pandas.DataFrame, a list of dicts or a generator of dicts; the second may be "
    "None: "
    'return [{"text": "hello", "label": "greeting"}], None'
)


@dataclass(frozen=True)
class LeftOut:
    """Rows of a device's two splits that take no part.

    Parameters
    ----------
    rows : mapping of str to list of int
        Places of rows in their split, from 0 on, by "train" or "test" and the reason, a key of `REASONS`.
    """

    rows: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """How many, by the same keys."""
        return {key: len(rows) for key, rows in self.rows.items() if rows}

    def __str__(self) -> str:
        return self.of("train", "test")

    def of(self, *splits: str) -> str:
        """Say of which splits how many rows are left out, why, and which ones: numbers, no text."""
        parts = []
        for key, rows in self.rows.items():
            split, reason = key.split(" ")
            if rows and split in splits:
                places = ", ".join(str(row) for row in sorted(rows)[:_SHOWN]) + (", …" if len(rows) > _SHOWN else "")
                kind = "row" if len(rows) == 1 else "rows"
                parts.append(f"{len(rows)} {split} {kind} {REASONS[reason]} ({kind} {places}, counted from 0)")
        return "; ".join(parts)

    @classmethod
    def of_reasons(cls, **splits: Mapping[int, str]) -> LeftOut:
        """Return what is left out by each split's reasons, place in the split -> reason."""
        rows_of: dict[str, list[int]] = {}
        for split, reasons in splits.items():
            for row, reason in reasons.items():
                rows_of.setdefault(f"{split} {reason}", []).append(row)
        return cls(rows_of)


def _missing_column(setting: str, name: str, columns: Sequence[str]) -> MissingColumnError:
    """Return the error of a column that a setting names and the data lack; a wrong delimiter is recognized."""
    said = f"{setting}={name!r} is none of the data's {len(columns)} columns"
    mark = next((mark for mark in ";\t|," if mark in columns[0]), "") if len(columns) == 1 else ""
    if mark:
        said += f", whose name holds {mark!r}; if that is the delimiter, give data.delimiter="
        said += "tab" if mark == "\t" else mark
    return MissingColumnError(said, tuple(columns))


def both_splits(loaded: Any) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Return what a `load_data` returned as two data sets.

    Raises
    ------
    DataError
        It is no pair, or one of the two is nothing that rows can be read from; types are named, and an example given.
    """
    rows_alone = isinstance(loaded, list) and any(isinstance(row, Mapping) for row in loaded)
    if not isinstance(loaded, tuple | list) or len(loaded) != 2 or rows_alone:
        raise DataError(f"load_data returned {_kind(loaded)}, no pair of train and test rows; {_EXAMPLE}")
    train = as_dataset(loaded[0], "train")
    if loaded[1] is None:
        return train, train.select([])
    test = as_dataset(loaded[1], "test")
    return train, test if test.column_names else train.select([])


def as_dataset(rows: Any, split: str) -> datasets.Dataset:
    """Return rows as a data set without a format; see `both_splits`."""
    if isinstance(rows, datasets.Dataset):
        return rows.with_format(None)
    if type(rows).__name__ == "DataFrame" and hasattr(rows, "to_dict") and hasattr(rows, "columns"):
        return _of_columns({str(name): rows[name].tolist() for name in rows.columns}, split)
    if isinstance(rows, pa.Table):
        return datasets.Dataset(rows)
    if rows is None or isinstance(rows, str | bytes | Mapping) or not isinstance(rows, Iterable):
        raise DataError(f"load_data returned {_kind(rows)} for the {split} rows; {_EXAMPLE}")
    columns: dict[str, list[Any]] = {}
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise DataError(f"load_data returned {_kind(rows)} of {_kind(row)} for the {split} rows; {_EXAMPLE}")
        for name in row:
            columns.setdefault(str(name), [None] * number)
        for name, values in columns.items():
            values.append(row.get(name))
    return _of_columns(columns, split)


def _of_columns(columns: Mapping[str, list[Any]], split: str) -> datasets.Dataset:
    """Return columns as a data set; one of several types becomes one of texts."""
    made = {}
    for name, values in columns.items():
        plain = [_plain(value) for value in values]
        try:
            made[name] = pa.array(plain, from_pandas=True)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            scalar = all(value is None or isinstance(value, str | int | float) for value in plain)
            if not scalar:
                raise DataError(
                    f"column {name!r} of the {split} rows holds values of types that do not go together: "
                    f"{', '.join(sorted({type(value).__name__ for value in plain}))}"
                ) from None
            made[name] = pa.array(
                [value if isinstance(value, str) else value_text(value) for value in plain], pa.string()
            )
    return datasets.Dataset(pa.table(made))


def _plain(value: Any) -> Any:
    """Return a number of NumPy or torch as one of Python, and pandas' missing values as None."""
    if hasattr(value, "item") and not getattr(value, "shape", ()):
        return value.item()
    return None if type(value).__name__ in ("NAType", "NaTType") else value


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}" if value is not None else "None"


def column_of(rows: Any, name: str, setting: str) -> list[Any]:
    """Return the values of a data set's column; raises DataError where it has none that a setting names."""
    if name not in rows.column_names:
        raise _missing_column(setting, name, rows.column_names)
    return list(rows[name][:])  # at once: a column by itself is read row by row
