"""Each test that `docs/reference/faults.md` names is there."""

from __future__ import annotations

import ast
import re

import pytest

from tests.support.pages import ROOT

NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::(\w+)`", (ROOT / "docs/reference/faults.md").read_text("utf-8"))))


def test_the_page_names_tests() -> None:
    assert len(NAMED) > 20


@pytest.mark.parametrize(("file", "test"), NAMED)
def test_a_test_that_is_named_exists(file: str, test: str) -> None:
    tree = ast.parse((ROOT / "tests" / file).read_text("utf-8"))
    assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_row_has_a_test() -> None:
    rows = re.findall(r"^\| (?!fault |---)(.*) \|$", (ROOT / "docs/reference/faults.md").read_text("utf-8"), re.M)
    for row in rows:
        *_, shown = row.split(" | ")
        assert shown == "the same" or re.fullmatch(r"`[\w/]+\.py::\w+`", shown), row
