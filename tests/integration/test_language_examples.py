"""`mobillm run` on the apps of language modelling, with a tiny random model: they end with a table and a report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pages import ROOT
from tests.support.tiny_models import TEXTS, WORDS, save_tiny

SMALL = ["data.num-devices=2", "task.max-length=16", "trainer.epochs=1", "backbone.device=cpu", "data.max-samples=6"]
FILES = {"summarize": ("train", "validation"), "personas": ("train", "test")}
ROWS = {
    "summarize": [{"dialogue": TEXTS[i % 4], "summary": f"the {WORDS[i % 5]}"} for i in range(12)],
    "personas": [{"speaker": "AB"[i % 2], "text": f"{TEXTS[i % 4]} {WORDS[i % 7]}"} for i in range(12)],
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "row"), [("summarize", "ROUGE-L of responses"), ("personas", "better, by speaker")])
def test_the_app_runs_and_prints_its_table(tmp_path: Path, name: str, row: str) -> None:
    backbone = save_tiny(tmp_path / "backbone", "opt")
    data, out = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    for split in FILES[name]:
        text = "".join(json.dumps(values) + "\n" for values in ROWS[name])
        data.joinpath(f"{split}.jsonl").write_text(text, "utf-8")
    words = [*SMALL, f"backbone.name={backbone}", f"data.source={data}"]
    words += ["task.responses=3", "task.show-responses=1"] if name == "summarize" else []
    command = [str(Path(sys.executable).parent / "mobillm"), "run", str(ROOT / "examples" / name), "--out", str(out)]
    command += [part for word in words for part in ("-c", word)]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=280)
    assert made.returncode == 0, made.stderr[-2000:]
    assert row in made.stdout
    assert "side-tuned" in made.stdout
    page = (out / "report.html").read_text("utf-8")
    assert ("Response 1" in page) is (name == "summarize")
