"""Texts to predict, read a few at a time: a file may be larger than memory."""

from __future__ import annotations

from collections.abc import Iterator
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
    form = FileForm(texts=columns, encoding=encoding, delimiter=delimiter)
    number = 0
    for piece in read_pieces(file, form, columns):
        for row in zip(*(piece[column].to_pylist() for column in columns), strict=True):
            number += 1
            for column, value in zip(columns, row, strict=True):
                if not isinstance(value, str):
                    raise DataError(f"{file.name}: row {number} has a {type(value).__name__} in {column!r}, not text")
            yield row[0], row[1] if pair_column else None
