"""The names of a run's files stand in `runs/folder.py`, and nowhere else in the package."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from mobillm_flower.runs.folder import RunFolder
from tests.support.pages import ROOT

HOME = ROOT / "mobillm_flower" / "runs" / "folder.py"
RUN = RunFolder("run")
PATHS = [value for value in vars(RUN).values() if isinstance(value, Path)]
NAMES = {part for path in [*PATHS, RUN.device(0), RUN.round_weights(1)] for part in path.parts[1:]}
FILES = {name for name in NAMES if "." in name} - {"1.pt", "config.json"}  # any saved network has a config.json
FOLDERS = {name for name in NAMES if "." not in name}


def strings(tree: ast.AST) -> Iterator[tuple[ast.Constant, bool]]:
    """Yield the strings of a module but for its docstrings, and whether each is joined to a path by `/`."""
    described = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, described) and node.body
                  and isinstance(node.body[0], ast.Expr)}  # fmt: skip
    joined = {id(node.right) for node in ast.walk(tree) if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node, id(node) in joined


def spelled(source: str) -> list[str]:
    """Return what a module spells: a file's name in any string, a folder's after a `/`."""
    result = []
    for node, joined in strings(ast.parse(source)):
        text = str(node.value)
        result += [f"{node.lineno}: {name}" for name in FILES if name in text]
        result += [f"{node.lineno}: {text}" for _ in [0] if joined and text in FOLDERS]
    return result


@pytest.mark.parametrize("source", ['a / "side_network"', 'f"see {b}/events.jsonl"', 'x = "settings.yaml"'])
def test_a_name_is_noticed_wherever_it_is_spelled(source: str) -> None:
    assert spelled(source)


def test_no_other_module_of_the_package_spells_a_file_of_a_run() -> None:
    assert {"settings.yaml", "events.jsonl", "cache.sqlite", "report.html", "results.json"} <= FILES
    assert {"side_network", "checkpoint", "devices", "rounds", "flower"} <= FOLDERS
    files = [file for file in Path(ROOT / "mobillm_flower").rglob("*.py") if file != HOME]
    assert len(files) > 200
    places = [f"{file.relative_to(ROOT)}:{place}" for file in files for place in spelled(file.read_text("utf-8"))]
    assert not places


def test_naming_a_folder_makes_nothing(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    assert run.holder() is None
    assert not run.path.exists()
    assert run.make().path.is_dir()


def test_what_is_deleted_as_bulk_leaves_what_reports_read(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run").make()
    kept = [run.settings, run.events, run.results, run.side_config]
    for file in [*kept, run.cache, run.checkpoint, run.round_weights(2), run.device(0) / "secret", run.flower_log]:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    run.delete_bulk()
    assert {file for file in run.path.rglob("*") if file.is_file()} == set(kept)
