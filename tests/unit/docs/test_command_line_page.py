"""The pages of commands name every command, every option and every argument."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer

from benchmarks.comparison.commands import app as benchmarks
from mobillm_flower.cli import app

REFERENCE = Path(__file__).parents[3] / "docs" / "reference"
PAGE = (REFERENCE / "command-line.md").read_text("utf-8")


def commands(group: click.Group, name: str) -> Iterator[tuple[str, click.Command]]:
    """Yield every command below a group with its whole name."""
    for word, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{name} {word}")
        else:
            yield f"{name} {word}", command


PROGRAM = typer.main.get_command(app)
assert isinstance(PROGRAM, click.Group)
MEASURES = typer.main.get_command(benchmarks)
assert isinstance(MEASURES, click.Group)
COMMANDS = dict(commands(PROGRAM, "mobillm")) | dict(commands(MEASURES, "python -m benchmarks"))
PAGES = PAGE + (REFERENCE / "benchmark-commands.md").read_text("utf-8")
SECTIONS = dict(
    re.findall(r"^## ((?:mobillm|python -m benchmarks) [^\n]*)\n(.*?)(?=^## |\Z)", PAGES, re.MULTILINE | re.DOTALL)
)


def options(command: click.Command) -> set[str]:
    found = [option for option in command.params if isinstance(option, click.Option)]
    return {word for option in found for word in option.opts + option.secondary_opts}


def test_every_command_has_a_section() -> None:
    assert not set(COMMANDS) - set(SECTIONS)
    assert "mobillm cache verify" in COMMANDS


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_option_of_a_command_has_an_entry(name: str) -> None:
    entries = re.findall(r"^- ((?:`--?[a-z-]+`(?:,\s+)?)+)", SECTIONS[name], re.MULTILINE)
    named = {word for entry in entries for word in re.findall(r"`(--?[a-z-]+)`", entry)}
    assert not options(COMMANDS[name]) - named


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_argument_of_a_command_stands_in_its_usage(name: str) -> None:
    usage = re.search(r"^    ((?:mobillm|python) [^\n]*)$", SECTIONS[name], re.MULTILINE)
    assert usage is not None
    assert usage.group(1).startswith(name)
    assert SECTIONS[name].index(f"    {name}") < 10  # it comes first
    arguments = [p for p in COMMANDS[name].params if isinstance(p, click.Argument)]
    assert [p.name for p in arguments if not re.search(_shown(p), usage.group(1))] == []


def _shown(argument: click.Argument) -> str:
    names = {"folder": "APP", "keys": "KEY"}
    assert argument.name is not None
    return rf"\b{names.get(argument.name, argument.name.upper())}\b"


def test_the_programs_own_options_are_named() -> None:
    assert all(f"`{option}`" in PAGE for option in options(PROGRAM) - {"--help"})
