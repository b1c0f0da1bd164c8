"""How commands print: tables on a terminal, plain lines in a pipe, JSON when asked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mobillm_flower.errors import MissingColumnError

_MOST_NAMES, _LONGEST_NAME = 30, 40  # of columns, and their characters, in a message


def say_json(value: Any) -> None:
    """Print a value as one line of JSON."""
    typer.echo(json.dumps(value))


def print_rows(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, headed: bool = False) -> None:
    """Print rows of text; the second column holds figures, the last may be long.

    On a terminal a table, in a pipe one aligned line a row; there without a heading, unless it is asked for.
    """
    console = Console()
    if not console.is_terminal:
        if headed:
            typer.echo(f"\n{title}")
            rows = [columns, *rows]
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(len(columns))]
        for row in rows:
            cells = [f"{cell:>{widths[i]}}" if i == 1 else f"{cell:<{widths[i]}}" for i, cell in enumerate(row)]
            typer.echo("   ".join(cells).rstrip())
        return
    table = Table(title=title)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i == 1 else "left", style="dim" if i > 1 else None)
    for row in rows:
        table.add_row(*map(Text, row))  # a cell is shown as it is: no markup
    console.print(table)


def relative(path: Path) -> str:
    """Return a path as seen from the current folder, where it lies below it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def plain_line(text: str) -> str:
    """Return a text on one line, without what would move a terminal's cursor."""
    return "".join(character if character.isprintable() else " " for character in text)


def told(error: BaseException) -> str:
    """Return what an error says on the user's own terminal: where a column is missing, those that are there, too."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MissingColumnError) and cause.columns:
            names = [plain_line(name[:_LONGEST_NAME]) for name in cause.columns[:_MOST_NAMES]]
            more = ", …" if len(cause.columns) > _MOST_NAMES else ""
            return f"{error}. There are: {', '.join(names)}{more}"
        cause = cause.__cause__
    return str(error)
