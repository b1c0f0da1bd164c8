"""Texts to predict, read a few at a time: a file may be larger than memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mobillm_flower.errors import DataError
from mobillm_flower.tasks.readers import FileForm, Text, read_pieces


def read_texts(file: Path, form: FileForm) -> Iterator[Text]:
    """Yield the texts of a file: every form that training reads, by the same code.

    Parameters
    ----------
    file : path
        The file.
    form : FileForm
        Its one or two columns of texts; with one there are no second texts.

    Raises
    ------
    DataError
        The file cannot be read, a column is missing, or a value is no text.
    """
    number = 0
    for piece in read_pieces(file, form, form.texts):
        for row in zip(*(piece[column].to_pylist() for column in form.texts), strict=True):
            number += 1
            for column, value in zip(form.texts, row, strict=True):
                if not isinstance(value, str):
                    raise DataError(f"{file.name}: row {number} has a {type(value).__name__} in {column!r}, not text")
            yield row[0], row[1] if len(row) > 1 else None
