"""Threads: none spins while it waits, and the server takes one where more do not pay."""

import json
import os
import subprocess
import sys

import pytest

from mobillm_flower.launch.superlink import flower_environment
from mobillm_flower.strategies.run_plan import computes_on_tokens
from tests.support.caches import make_spec

SPIN = "GOMP_SPINCOUNT"


def _imported(script: str, **environment: str) -> dict[str, object]:
    clean = {name: value for name, value in os.environ.items() if name not in (SPIN, "KMP_BLOCKTIME")}
    answer = subprocess.run(
        [sys.executable, "-c", f"import json, os, sys, {script}"],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(json.loads(answer.stdout))


_AT_TORCH = f"""importlib.abc
def said():
    print(json.dumps([["spin", os.environ.get("{SPIN}", "")]]), flush=True)
    os._exit(0)
class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        return said() if name == "torch" else None
sys.meta_path.insert(0, Watch())
"""


@pytest.mark.parametrize(
    "package", ["mobillm_flower", "mobillm_flower.cli", "mobillm_flower.clients", "mobillm_flower.launch"]
)
def test_waiting_threads_do_not_spin_before_torch_is_imported(package: str) -> None:
    assert _imported(f"{_AT_TORCH}import {package}\nsaid()") == {"spin": "0"}


def test_what_starts_and_watches_runs_loads_no_torch() -> None:
    script = "mobillm_flower.launch; print(json.dumps([[name, name in sys.modules] for name in ('torch', 'datasets')]))"
    assert _imported(script) == {"torch": False, "datasets": False}


def test_flowers_programs_inherit_it() -> None:
    assert flower_environment()[SPIN] == os.environ[SPIN]


def test_one_thread_for_a_few_vectors_a_text_and_torchs_choice_for_every_token() -> None:
    assert not computes_on_tokens({"a": make_spec()})
    assert computes_on_tokens({"a": make_spec(), "b": make_spec(pivot="all")})
