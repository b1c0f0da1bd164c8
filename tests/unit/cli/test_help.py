"""What `--help` says: whole sentences, in 80 columns, and one wording for an option that several commands have."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import click
import pytest
import typer
from typer.testing import CliRunner

from mobillm_flower.cli import app


def commands(command: click.Command, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield a command and those below it, each with its words."""
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, *path, name)


COMMANDS = dict(commands(typer.main.get_command(app)))
EVERY = pytest.mark.parametrize("words", COMMANDS, ids=" ".join)


@EVERY
def test_help_is_whole_sentences(words: tuple[str, ...]) -> None:
    command = COMMANDS[words]
    said = {option.name: getattr(option, "help", None) for option in command.params if option.name}
    said = {name: text for name, text in said.items() if name not in ("install_completion", "show_completion")}
    for name, text in {**said, "the command": command.help}.items():
        assert text, f"{name} has no help"
        assert text[0] == text[0].upper(), f"{name}: {text}"
        assert text.rstrip().endswith("."), f"{name}: {text}"


@EVERY
def test_help_fits_80_columns(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    answer = CliRunner().invoke(app, [*words, "--help"])
    assert answer.exit_code == 0
    assert not [line for line in answer.stdout.splitlines() if len(line) > 80]
    assert "…" not in answer.stdout, "a name or its help is cut off"


def test_an_option_of_several_commands_is_said_once() -> None:
    shared = {"config", "up_mbit", "down_mbit", "as_json"}
    wordings: dict[str, set[str]] = defaultdict(set)
    for command in COMMANDS.values():
        for option in command.params:
            if option.name in shared:
                wordings[option.name].add(str(getattr(option, "help", "")))
    assert {name: len(texts) for name, texts in wordings.items()} == dict.fromkeys(shared, 1)
