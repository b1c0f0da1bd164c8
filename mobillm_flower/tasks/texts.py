"""Texts to predict, read a few at a time: a file may be larger than memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
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
    form, number = dataclasses.replace(form, blank_lines=True), 0
    for piece in read_pieces(file, form, form.texts):
        for row in zip(*(piece[column].to_pylist() for column in form.texts), strict=True):
            number += 1
            for column, value in zip(form.texts, row, strict=True):
                if not isinstance(value, str | None):
                    raise DataError(f"{file.name}: row {number} has a {type(value).__name__} in {column!r}, not text")
            yield row[0] or "", (row[1] or "") if len(row) > 1 else None


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
