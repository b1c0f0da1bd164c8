"""Mathematics raises about its arguments: `config.compatibility.settings_of` says which setting that is."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import mobillm_flower.core
from mobillm_flower.config import setting_keys

MODULES = sorted(Path(mobillm_flower.core.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.stem)
def test_no_error_of_the_core_names_a_setting(module: Path) -> None:
    raised = [node for node in ast.walk(ast.parse(module.read_text("utf-8"))) if isinstance(node, ast.Raise)]
    said = [part.value for node in raised for part in ast.walk(node) if isinstance(part, ast.Constant)]
    texts = [text for text in said if isinstance(text, str)]
    assert not [(key, text) for key in setting_keys() if "." in key for text in texts if key in text]
