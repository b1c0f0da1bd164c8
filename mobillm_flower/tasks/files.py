"""The files of a split, read into one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from mobillm_flower.errors import DataError
from mobillm_flower.tasks.labels import value_text
from mobillm_flower.tasks.readers import DELIMITERS, FileForm, form_of, forms, read_pieces

_INTEGER, _NUMBER = r"^(0|-?[1-9]\d{0,17})$", r"^-?((0|[1-9]\d{0,14})(\.\d*)?|\.\d+)([eE][+-]?\d+)?$"


def split_files(folder: Path, split: str) -> list[Path]:
    """Return the files of a split: those named after it, or all in a folder of its name; in the folder or in `data/`.

    Raises
    ------
    DataError
        There is none, or a split is there twice.
    """
    for place in (folder, folder / "data"):
        if not place.is_dir():
            continue
        files = [file for file in _data_files(place) if _stem(file).split("-")[0] == split]
        inside = _data_files(place / split) if (place / split).is_dir() else []
        if files and inside:
            raise DataError(f"data.source has both {files[0].name} and a folder {split}: remove or rename one")
        files = files or inside
        stems = [_stem(file) for file in files]
        twice = [file.name for file in files if stems.count(_stem(file)) > 1]
        if twice:
            raise DataError(f"data.source has {' and '.join(twice)}: the same rows twice? Remove or rename one")
        if files:
            return files
    raise DataError(
        f"data.source has no file of split {split!r}: {split}.parquet, .jsonl, .json, .csv, …, {split}-*.parquet, or a "
        f"folder {split}. Read are {forms()}. Where one split has all rows, data.test-share=0.2 draws test rows from it"
    )


def _data_files(folder: Path) -> list[Path]:
    """Return the files of rows in a folder, without those that tools hide or mark with an underscore."""
    files = (f for f in folder.iterdir() if f.suffix and form_of(f) and f.is_file() and f.name[0] not in "._")
    return sorted(files, key=lambda file: (_stem(file), file.name))


def _stem(file: Path) -> str:
    return file.name.split(".")[0]


def read_files(files: Sequence[Path], form: FileForm) -> pa.Table:
    """Read the files of one split into one table.

    Files may differ in the order of columns, in columns that nothing names, in the width of their numbers and strings.
    Where the values of a column are numbers and strings, all are strings. Of CSV files, columns that hold numbers alone
    become numbers, unless two of them would become the same one (1.1 and 1.10).

    Raises
    ------
    DataError
        A file cannot be read, with the file, the line or column, and the reason; or files lack a column that others
        have and that the settings name.
    """
    tables = {}
    for file in files:
        pieces = list(read_pieces(file, form, rows=1 << 16))
        if pieces:
            tables[file.name] = _joined(pieces, file.name, form)
    for column in (*form.texts, *form.named):
        lacking = [name for name, table in tables.items() if column not in table.column_names]
        if 0 < len(lacking) < len(tables):
            raise DataError(f"{lacking[0]} has no column {column!r}, which other files of its split have")
    strings = [name for name in tables if form_of(Path(name)) in DELIMITERS]
    for column in dict.fromkeys(column for name in strings for column in tables[name].column_names):
        if column in form.texts:
            continue
        having = [name for name in strings if column in tables[name].column_names]
        kind = _number_type(pa.chunked_array([part for name in having for part in tables[name][column].chunks]))
        for name in having:
            i = tables[name].column_names.index(column)
            tables[name] = tables[name].set_column(i, column, tables[name][column].cast(kind))
    return _joined(list(tables.values()), "data.source", form) if tables else pa.table({})


def _joined(tables: list[pa.Table], where: str, form: FileForm) -> pa.Table:
    """Return tables one below the other, their columns of one type each."""
    if all(table.schema == tables[0].schema for table in tables):
        return pa.concat_tables(tables)
    for name in dict.fromkeys(name for table in tables for name in table.column_names):
        kinds = list(dict.fromkeys(table.schema.field(name).type for table in tables if name in table.column_names))
        try:
            pa.unify_schemas([pa.schema([(name, kind)]) for kind in kinds], promote_options="permissive")
        except (pa.ArrowException, TypeError) as error:
            nested = any(pa.types.is_nested(kind) or pa.types.is_binary(kind) for kind in kinds)
            if nested and name in (*form.texts, *form.named):
                raise DataError(
                    f"{where}: column {name!r} is of several types: {', '.join(map(str, kinds))}"
                ) from error
            tables = [_with_strings(table, name, drop=nested) for table in tables]
    return pa.concat_tables(tables, promote_options="permissive")


def _with_strings(table: pa.Table, name: str, *, drop: bool) -> pa.Table:
    if name not in table.column_names:
        return table
    if drop:
        return table.drop_columns([name])
    values = [value if isinstance(value, str) else value_text(value) for value in table[name].to_pylist()]
    return table.set_column(table.column_names.index(name), name, pa.array(values, pa.string()))


def _number_type(column: pa.ChunkedArray) -> pa.DataType:
    """Return the type of a column of strings: a number's where each is one and no two differ in spelling alone."""
    held = column.drop_null()
    for pattern, kind in ((_INTEGER, pa.int64()), (_NUMBER, pa.float64())):
        numbers = len(held) and pc.all(pc.match_substring_regex(held, pattern)).as_py()
        if numbers and len(held.cast(kind).unique()) == len(held.unique()):
            return kind
    return pa.string()
