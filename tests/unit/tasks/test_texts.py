"""Texts to predict, from every kind of file."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from mobillm_flower.errors import DataError
from mobillm_flower.tasks import read_texts, text_lines
from mobillm_flower.tasks.readers import FileForm

ROWS = [("wake me at six", "ok"), ('say "hi",\nplease', "5"), ("17", "null")]


def write(folder: Path, suffix: str, columns: Any = ("text", "second")) -> Any:
    """Write ROWS into a file of a kind, beside a column that nobody asked for."""
    file = folder / f"texts{suffix}"
    table = pa.table(
        {columns[0]: [a for a, _ in ROWS], "other": [1, 2, 3], columns[1]: [b for _, b in ROWS]},
    )
    if suffix == ".parquet":
        pq.write_table(table, file)
    elif suffix == ".csv":
        pyarrow.csv.write_csv(table, file)
    else:
        file.write_text("\n\n".join(json.dumps(row) for row in table.to_pylist()) + "\n", "utf-8")
    return file


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet", ".CSV"])
def test_columns_are_read_as_text_whatever_they_look_like(tmp_path: Path, suffix: str) -> None:
    file = write(tmp_path, suffix.lower()).rename(tmp_path / f"texts{suffix}")
    assert list(read_texts(file, FileForm())) == [(text, None) for text, _ in ROWS]
    assert list(read_texts(file, FileForm(texts=("text", "second")))) == ROWS
    assert [text for text, _ in read_texts(file, FileForm(texts=("second",)))] == ["ok", "5", "null"]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_missing_column_is_named_and_those_that_are_there_are_not(tmp_path: Path, suffix: str) -> None:
    file = write(tmp_path, suffix)
    with pytest.raises(DataError, match=rf"texts\{suffix} has no column 'body' among its 3"):
        list(read_texts(file, FileForm(texts=("body",))))


@pytest.mark.parametrize(("suffix", "kind"), [(".jsonl", "int"), (".parquet", "int")])
def test_a_value_that_is_no_text_is_named_by_its_row(tmp_path: Path, suffix: str, kind: str) -> None:
    file = write(tmp_path, suffix, columns=("text", "other2"))
    with pytest.raises(DataError, match=rf"row 1 has a {kind} in 'other', not text"):
        list(read_texts(file, FileForm(texts=("other",))))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n["x"]\n', r"a\.jsonl: line 2 is no JSON object"),
        ("a.jsonl", b'{"text": "secret words"\n', r"a\.jsonl: line 1 is no JSON object"),
        ("a.parquet", b"no parquet", r"a\.parquet cannot be read \(ArrowInvalid: Parquet magic"),
        ("a.csv", b"text,n\nsecret words\n", r"a\.csv: line 2 has 1 field\(s\), the heading 2;"),
        ("a.txt", b"\xff\xfe\x00", r"a\.txt is not text in UTF-8 in line 1; name its encoding with data\.encoding"),
        ("a.jsonl", b"\xff\xfe\x00", r"a\.jsonl is not text in UTF-8 in line 1;"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_and_its_content_is_not(
    tmp_path: Path, name: str, content: Any, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        list(read_texts(tmp_path / name, FileForm()))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".parquet"])
def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(DataError, match=rf"absent\{suffix} does not exist"):
        list(read_texts(tmp_path / f"absent{suffix}", FileForm()))
    (tmp_path / f"folder{suffix}").mkdir()
    with pytest.raises(DataError, match=rf"folder\{suffix} cannot be read \(IsADirectoryError"):
        list(read_texts(tmp_path / f"folder{suffix}", FileForm()))


@pytest.mark.parametrize(("name", "content"), [("a.csv", ""), ("b.csv", "text\n"), ("c.jsonl", "\n"), ("d.txt", " \n")])
def test_a_file_without_rows_yields_nothing(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert list(read_texts(tmp_path / name, FileForm())) == []


def test_lines_are_texts_and_blank_ones_are_passed_over() -> None:
    assert list(text_lines(["one\ttwo\r\n", "\n", "  three \n"], pairs=False)) == [
        ("one\ttwo", None),
        ("  three ", None),
    ]


def test_a_line_of_a_pair_has_one_tab() -> None:
    assert list(text_lines(["a\tb\n"], pairs=True)) == [("a", "b")]
    for line, tabs in (("a b\n", 0), ("a\tb\tc\n", 2)):
        with pytest.raises(DataError, match=f"line 2 has {tabs} tabs; a pair is two texts with one between them"):
            list(text_lines(["a\tb\n", line], pairs=True))


@pytest.mark.parametrize("suffix", [".jsonl", ".txt"])
def test_a_file_is_read_as_far_as_it_is_asked_for(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a{suffix}"
    file.write_bytes(b'{"text": "x"}\n' * 100_000 + b"\xff\n")  # the end cannot be read
    first = list(itertools.islice(read_texts(file, FileForm()), 3))
    assert len(first) == 3
