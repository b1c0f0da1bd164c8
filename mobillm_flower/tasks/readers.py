"""Readers of files of rows as tools write them: Parquet, Arrow, JSON, CSV, TSV and plain text, compressed or not.

Each yields a file's rows a piece at a time. CSV is read by Python's own reader in its strict form: pyarrow's takes a
quote that is never closed for a text that runs to the end of the file.
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import lzma
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from mobillm_flower.backbones.git_lfs import is_pointer
from mobillm_flower.errors import DataError, MissingColumnError, SettingsError
from mobillm_flower.tasks.labels import value_text

_FIELD = 1 << 24  # characters of the longest field of a CSV file
_COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".xz": "xz"}
DELIMITERS = {".csv": ",", ".tsv": "\t"}
"""What stands between the fields of a file, by its suffix."""


@dataclass(frozen=True)
class FileForm:
    """What the settings say of the files, beside what the files say themselves.

    Parameters
    ----------
    texts : tuple of str
        Columns of texts: what looks like a number there is text.
    named : tuple of str
        Other columns that the settings name. Columns that nothing names may be left out.
    encoding : str
        Of files that are text. A byte order mark is passed over.
    delimiter : str
        Between the fields of a CSV file; empty: a comma, in a `.tsv` file a tab.
    blank_lines : bool
        Whether a blank line of a plain text file is an empty text, as in `text_lines`.
    """

    texts: tuple[str, ...] = ("text",)
    named: tuple[str, ...] = ()
    encoding: str = "utf-8"
    delimiter: str = ""
    blank_lines: bool = False

    def codec(self) -> str:
        """Return Python's name of the encoding; raises SettingsError where there is none."""
        try:
            "a".encode(self.encoding).decode(self.encoding)
        except (LookupError, UnicodeError) as error:
            raise SettingsError(
                f"data.encoding={self.encoding!r} is no encoding that Python has; try utf-8, utf-16, latin-1 or cp1252"
            ) from error
        return "utf-8-sig" if self.encoding.lower().replace("_", "-") in ("utf-8", "utf8") else self.encoding


Pieces = Iterator[pa.Table]


@dataclass(frozen=True)
class _Request:
    """What a reader is asked for: some columns of a file (none: all), so many rows at a time."""

    file: Path
    form: FileForm
    columns: Sequence[str]
    rows: int


def form_of(file: Path) -> str:
    """Return the suffix that says what a file is, without that of its compression; empty for none that is read.

    A file without a suffix is text.
    """
    if not file.suffix:
        return ".txt"
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in _READERS else ""


def forms() -> str:
    """Return the suffixes that are read, for messages."""
    return f"{', '.join(_READERS)}, each also with {', '.join(_COMPRESSED)}"


def read_pieces(file: Path, form: FileForm, columns: Sequence[str] = (), *, rows: int = 1024) -> Pieces:
    """Yield a file's rows as tables of `rows` rows; with `columns`, of these alone.

    Raises
    ------
    DataError
        The file cannot be read, or lacks one of `columns`.
    """
    reader, codec = _READERS.get(form_of(file)), form.codec()
    if reader is None:
        raise DataError(f"{file.name}: files of this kind are not read; save it as one of {forms()}")
    try:
        if file.is_dir():
            raise IsADirectoryError("it is a folder")
        if is_pointer(file):
            raise DataError(
                f"{file.name} is a Git LFS pointer, not the data themselves; run `git lfs pull` in the clone"
            )
        for piece in reader(_Request(file, form, columns, rows)):
            for name in columns:
                if name not in piece.column_names:
                    said = f"{file.name} has no column {name!r} among its {len(piece.column_names)}"
                    raise MissingColumnError(said, tuple(piece.column_names))
            yield piece.select(columns) if columns else piece
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{file.name} does not exist") from error
    except UnicodeError as error:
        raise DataError(
            f"{file.name} is not text in {form.encoding.upper()}{_undecodable(file, codec)}; name its encoding with "
            "data.encoding"
        ) from error
    except (pa.ArrowException, OSError, EOFError, lzma.LZMAError, ValueError) as error:
        raise DataError(f"{file.name} cannot be read ({reason(error)})") from error


def reason(error: BaseException) -> str:
    """Return an error's class and the first line of what it says, unless it holds a path."""
    said = (str(error).strip().splitlines() or [""])[0][:200]
    return f"{type(error).__name__}: {said}" if said and not re.search(r"[/\\]", said) else type(error).__name__


def _parquet(ask: _Request) -> Pieces:
    whole = _stream(ask.file).read() if ask.file.suffix.lower() in _COMPRESSED else None
    with pq.ParquetFile(
        ask.file if whole is None else pa.BufferReader(whole), page_checksum_verification=True
    ) as reader:
        schema = reader.schema_arrow
        yield _plain(schema.empty_table())
        wanted = [name for name in ask.columns if name in schema.names]
        for batch in reader.iter_batches(batch_size=ask.rows, columns=wanted or None):
            yield _plain(pa.Table.from_batches([batch]))


def _arrow(ask: _Request) -> Pieces:
    with contextlib.closing(_stream(ask.file)) as stream:
        content = pa.py_buffer(stream.read())  # not mapped: a mapped file that is cut short ends the process
    opener = pa.ipc.open_file if content.to_pybytes().startswith(b"ARROW1") else pa.ipc.open_stream
    yield _plain(opener(content).read_all())


def _json(ask: _Request) -> Pieces:
    file, form = ask.file, ask.form
    with _text(file, form) as stream:
        listed = form_of(file) == ".json" and stream.read(1024).lstrip().startswith("[")
    with _text(file, form) as stream:
        if listed:
            numbered: Iterator[tuple[int, Any]] = enumerate(_parsed(file, stream.read(), "", ""), start=1)
        else:
            also = " or one list of objects" if form_of(file) == ".json" else ""
            numbered = (
                (i, _parsed(file, line, f"line {i} is no JSON object", f"; it needs one object a line{also}"))
                for i, line in enumerate(stream, start=1)
                if line.strip()
            )
        unit = "row" if listed else "line"
        while part := list(itertools.islice(numbered, ask.rows)):
            yield _table(file, form, part, unit)


def _parsed(file: Path, content: str, what: str, hint: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        said = type(error).__name__
        if isinstance(error, json.JSONDecodeError):
            said = f"{error.msg}, " + (f"line {error.lineno}, " if not what else "") + f"column {error.colno}"
        raise DataError(f"{file.name}: {what or 'no list of JSON objects'} ({said}){hint}") from error


def _table(file: Path, form: FileForm, part: list[tuple[int, Any]], unit: str) -> pa.Table:
    """Return JSON objects, each with the number of its line or row, as a table."""
    for number, row in part:
        if not isinstance(row, dict):
            raise DataError(f"{file.name}: {unit} {number} is no JSON object")
    columns = {}
    for name in dict.fromkeys(name for _, row in part for name in row):
        values = [row.get(name) for _, row in part]
        try:
            columns[name] = _array(values)
        except _NO_ARRAY as error:
            if name in (*form.texts, *form.named):
                odd = _first_odd(values)
                raise DataError(
                    f"{file.name}: {unit} {part[odd][0]}, column {name!r}: a {type(values[odd]).__name__} that is "
                    "unlike the values before it, or that cannot be stored"
                ) from error
    return pa.table(columns)


_NO_ARRAY = (pa.ArrowException, OverflowError, ValueError)


def _array(values: list[Any]) -> pa.Array:
    """Return values as an Arrow array; numbers and strings together are strings."""
    try:
        return pa.array(values)
    except _NO_ARRAY:
        if any(isinstance(value, dict | list) for value in values):
            raise
        return pa.array([value if isinstance(value, str) else value_text(value) for value in values], pa.string())


def _first_odd(values: list[Any]) -> int:
    for i in range(len(values)):
        try:
            _array(values[: i + 1])
        except _NO_ARRAY:
            return i
    return 0


def _separated(ask: _Request) -> Pieces:
    file, form = ask.file, ask.form
    delimiter = {"": DELIMITERS[form_of(file)], "tab": "\t"}.get(form.delimiter, form.delimiter)
    csv.field_size_limit(max(csv.field_size_limit(), _FIELD))
    with _text(file, form) as stream:
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        try:
            heading = next(reader, [])
            twice = [name for name in (*form.texts, *form.named) if heading.count(name) > 1]
            if twice:
                raise DataError(f"{file.name}: the heading names the column {twice[0]!r} twice")
            if heading:
                yield _columns([], heading, form)
            fields = (_checked(file, reader.line_num, row, heading) for row in reader if row)
            while part := list(itertools.islice(fields, ask.rows)):
                yield _columns(part, heading, form)
        except csv.Error as error:
            raise DataError(
                f"{file.name}: line {reader.line_num}: {error}; a quote within a quoted text is doubled"
            ) from error


def _checked(file: Path, line: int, row: list[str], heading: list[str]) -> list[str]:
    if len(row) != len(heading):
        raise DataError(
            f"{file.name}: line {line} has {len(row)} field(s), the heading {len(heading)}; a text "
            "that holds the delimiter or a line break stands in double quotes"
        )
    return row


def _columns(rows: list[list[str]], heading: list[str], form: FileForm) -> pa.Table:
    """Return rows of strings as a table; an empty field is an empty text, in other columns a missing value."""
    held: dict[str, pa.Array] = {}
    for i, name in enumerate(heading):
        if name not in held:
            held[name] = pa.array([row[i] if row[i] or name in form.texts else None for row in rows], pa.string())
    return pa.table(held)


def _lines(ask: _Request) -> Pieces:
    with _text(ask.file, ask.form) as stream:
        texts = text_lines(stream, pairs=len(ask.form.texts) > 1, keep_blank=ask.form.blank_lines)
        while part := list(itertools.islice(texts, ask.rows)):
            yield pa.table({name: [row[i] for row in part] for i, name in enumerate(ask.form.texts)})


Text = tuple[str, str | None]
"""A text and, where the task is about pairs, the second one."""


def text_lines(lines: Iterable[str], *, pairs: bool, keep_blank: bool = False) -> Iterator[Text]:
    """Yield one text a line, or two with a tab between them; blank lines are passed over.

    With `keep_blank` they are empty texts, so that the n-th text is the n-th line; those at the end are passed over.

    Raises
    ------
    DataError
        A line holds no pair.
    """
    blank = 0
    for number, line in enumerate(lines, start=1):
        text = line.rstrip("\r\n")
        if not text.strip():
            blank += keep_blank
            continue
        yield from itertools.repeat(("", "" if pairs else None), blank)
        blank = 0
        if not pairs:
            yield text, None
            continue
        first, tab, second = text.partition("\t")
        if not tab or "\t" in second:
            raise DataError(f"line {number} has {text.count(chr(9))} tabs; a pair is two texts with one between them")
        yield first, second


_READERS: dict[str, Callable[[_Request], Pieces]] = {
    ".parquet": _parquet,
    ".jsonl": _json,
    ".ndjson": _json,
    ".json": _json,
    ".csv": _separated,
    ".tsv": _separated,
    ".txt": _lines,
    ".arrow": _arrow,
    ".feather": _arrow,
}


def _stream(file: Path) -> Any:
    """Open a file's bytes, unpacked."""
    kind = _COMPRESSED.get(file.suffix.lower())
    return lzma.open(file) if kind == "xz" else pa.input_stream(str(file), compression=kind)


def _text(file: Path, form: FileForm) -> IO[str]:
    return io.TextIOWrapper(_stream(file), encoding=form.codec(), newline="")


def _undecodable(file: Path, codec: str) -> str:
    """Return which line is not text in an encoding, as far as lines of bytes can be told."""
    with contextlib.suppress(OSError, EOFError, lzma.LZMAError), contextlib.closing(_stream(file)) as stream:
        for number, line in enumerate(io.BufferedReader(stream), start=1):
            try:
                line.decode(codec)
            except UnicodeError:
                return f" in line {number}"
    return ""


def _plain(table: pa.Table) -> pa.Table:
    """Check a table's bytes, and undo encodings of columns that nothing else here reads."""
    table.validate(full=True)
    fields = []
    for field in table.schema:
        kind = field.type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if pa.types.is_string_view(kind):
            kind = pa.large_string()
        fields.append(field.with_type(kind))
    return table.cast(pa.schema(fields, table.schema.metadata))
