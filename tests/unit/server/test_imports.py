"""What the server's code loads: neither texts nor backbones, and transformers only where a run needs a part of one."""

from __future__ import annotations

import subprocess
import sys

import pytest

SERVER = """
import importlib, pkgutil, sys
import mobillm_flower.server as server
for module in pkgutil.walk_packages(server.__path__, "mobillm_flower.server."):
    importlib.import_module(module.name)
"""
STRATEGY = """
import sys
from mobillm_flower.config import load_settings
from mobillm_flower.strategies import PaeMobiLLM
PaeMobiLLM(load_settings())
"""


@pytest.mark.parametrize(
    ("code", "names"),
    [
        (SERVER, ["transformers", "datasets", "mobillm_flower.tasks", "mobillm_flower.backbones"]),
        (STRATEGY, ["transformers", "peft", "onnxruntime"]),
    ],
    ids=["server", "strategy"],
)
def test_nothing_that_only_a_device_needs_is_loaded(code: str, names: list[str]) -> None:
    code += f"print([name for name in {names!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip().splitlines()[-1:]) == (0, ["[]"]), done.stderr
