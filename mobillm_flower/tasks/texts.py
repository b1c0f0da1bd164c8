"""Unlabelled texts to predict, read a few at a time: a file may be larger than memory."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from mobillm_flower.errors import DataError

Text = tuple[str, str | None]
"""A text and, where the task is about pairs, the second one."""


def read_texts(file: Path, *, text_column: str, pair_column: str = "") -> Iterator[Text]:
    """Yield the texts of a file.

    `.jsonl` and `.json` (one object a line), `.csv` and `.parquet` hold them in columns; any other file holds one a
    line, see `text_lines`.

    Parameters
    ----------
    file : path
        The file.
    text_column, pair_column : str
        Where the texts are; without `pair_column` there are no second texts.

    Raises
    ------
    DataError
        The file cannot be read, a column is missing, or a value is no text.
    """
    columns = [text_column, pair_column] if pair_column else [text_column]
    readers = {".jsonl": _json_rows, ".json": _json_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}
    try:
        suffix = file.suffix.lower()
        if suffix not in readers:
            with file.open(encoding="utf-8") as stream:
                yield from text_lines(stream, pairs=bool(pair_column))
            return
        for number, row in enumerate(readers[suffix](file, columns), start=1):
            for column, value in zip(columns, row, strict=True):
                if not isinstance(value, str):
                    raise DataError(f"{file.name}: row {number} has a {type(value).__name__} in {column!r}, not text")
            yield row[0], row[1] if pair_column else None
    except FileNotFoundError as error:
        raise DataError(f"{file} does not exist") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not text in UTF-8") from error
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file} cannot be read ({type(error).__name__})") from error


def text_lines(lines: Iterable[str], *, pairs: bool) -> Iterator[Text]:
    """Yield one text a line, or two with a tab between them; blank lines are passed over.

    Raises
    ------
    DataError
        A line holds no pair.
    """
    for number, line in enumerate(lines, start=1):
        text = line.rstrip("\r\n")
        if not text.strip():
            continue
        if not pairs:
            yield text, None
            continue
        first, tab, second = text.partition("\t")
        if not tab or "\t" in second:
            raise DataError(f"line {number} has {text.count(chr(9))} tabs; a pair is two texts with one between them")
        yield first, second


def _json_rows(file: Path, columns: list[str]) -> Iterator[list[Any]]:
    with file.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            row = None
            with contextlib.suppress(ValueError):
                row = json.loads(line)
            if not isinstance(row, dict):
                raise DataError(f"{file.name}: line {number} is no JSON object")
            _require(file, columns, list(row))
            yield [row[column] for column in columns]


def _csv_rows(file: Path, columns: list[str]) -> Iterator[list[Any]]:
    parse = pa.csv.ParseOptions(newlines_in_values=True)
    try:
        with pa.csv.open_csv(file, parse_options=parse) as reader:
            _require(file, columns, reader.schema.names)
    except pa.ArrowInvalid as error:
        if file.stat().st_size == 0:
            return
        raise DataError(f"{file} is no CSV file with a heading") from error
    convert = pa.csv.ConvertOptions(include_columns=columns, column_types=dict.fromkeys(columns, pa.string()))
    with pa.csv.open_csv(file, parse_options=parse, convert_options=convert) as reader:
        for batch in reader:
            yield from _rows(batch, columns)


def _parquet_rows(file: Path, columns: list[str]) -> Iterator[list[Any]]:
    with pq.ParquetFile(file) as reader:
        _require(file, columns, reader.schema_arrow.names)
        for batch in reader.iter_batches(batch_size=1024, columns=columns):
            yield from _rows(batch, columns)


def _rows(batch: Any, columns: list[str]) -> Iterator[list[Any]]:
    values = [batch.column(column).to_pylist() for column in columns]
    return (list(row) for row in zip(*values, strict=True))


def _require(file: Path, columns: list[str], present: list[str]) -> None:
    for column in columns:
        if column not in present:
            raise DataError(f"{file.name} has no column {column!r} among its {len(present)}")
