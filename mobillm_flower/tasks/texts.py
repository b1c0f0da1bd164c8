"""Texts to predict, read a few at a time: a file may be larger than memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from mobillm_flower.errors import DataError
from mobillm_flower.tasks.readers import FileForm, Text, read_pieces


def read_texts(
    file: Path, *, text_column: str, pair_column: str = "", encoding: str = "utf-8", delimiter: str = ""
) -> Iterator[Text]:
    """Yield the texts of a file: every form that training reads, by the same code.

    Parameters
    ----------
    file : path
        The file.
    text_column, pair_column : str
        Where the texts are; without `pair_column` there are no second texts.
    encoding, delimiter : str
        As in `FileForm`.

    Raises
    ------
    DataError
        The file cannot be read, a column is missing, or a value is no text.
    """
    columns = (text_column, pair_column) if pair_column else (text_column,)
    form = FileForm(texts=columns, encoding=encoding, delimiter=delimiter, blank_lines=True)
    number = 0
    for piece in read_pieces(file, form, columns):
        for row in zip(*(piece[column].to_pylist() for column in columns), strict=True):
            number += 1
            for column, value in zip(columns, row, strict=True):
                if not isinstance(value, str | None):
                    raise DataError(f"{file.name}: row {number} has a {type(value).__name__} in {column!r}, not text")
            yield row[0] or "", (row[1] or "") if pair_column else None


def check_texts(texts: Sequence[str], pairs: Sequence[str] | None = None, *, before: int = 0) -> None:
    """Refuse texts to predict of which one is empty: as in training, a blank text is none.

    Raises
    ------
    DataError
        With the text's number, counted from 1 after `before` others.
    """
    for kind, each in (("text", texts), ("second text", pairs or ())):
        for number, text in enumerate(each, start=before + 1):
            if not isinstance(text, str):
                raise DataError(f"{kind} {number} is a {type(text).__name__}, not text; convert or remove it")
            if not text.strip():
                raise DataError(f"{kind} {number} is empty; remove it")
