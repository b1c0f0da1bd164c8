"""`mobillm data`: what is understood before a run."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from mobillm_flower.cli import app

CONFIG = """
[tool.flwr.app]
publisher = "me"
[tool.flwr.app.components]
serverapp = "a:app"
clientapp = "a:app"
[tool.flwr.app.config]
settings = ""
"""


def write(folder: Path) -> list[str]:
    (folder / "pyproject.toml").write_text(CONFIG, "utf-8")
    rows = [f"secret text {i},{['bad', 'good'][i % 2]},user{i % 2}" for i in range(20)]
    for split, more in (("train", ["one more,,user1"]), ("test", ["a,excellent,user1", "b,good,user9"])):
        (folder / f"{split}.csv").write_text("\n".join(["text,label,user", *rows, *more]) + "\n", "utf-8")
    words = [f"data.source={folder}", "task.labels=good,bad", "data.partition=natural", "data.partition-column=user"]
    return ["data", str(folder), "--no-backbone", *(w for s in [*words, "data.num-devices=3"] for w in ("-c", s))]


def test_what_is_understood_is_shown_and_no_text(tmp_path: Path) -> None:
    words = write(tmp_path)
    found = json.loads(CliRunner().invoke(app, [*words, "--json"]).output)
    assert found["classes"] == {"good": [10, 11], "bad": [10, 10]}
    assert found["devices"] == [[10, 10], [10, 10], [0, 0]]
    assert found["unmatched"] == {"(none)": 1, "excellent": 1}
    assert found["on_no_device"] == 1
    assert "row 20" in found["left_out"]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0
    assert "secret" not in shown.output
    assert "secret text 0" in CliRunner().invoke(app, [*words, "--show-texts"]).output


def test_what_would_end_the_run_is_an_error_here(tmp_path: Path) -> None:
    words = write(tmp_path)
    result = CliRunner().invoke(app, [*words, "-c", "data.label-column=labels"])
    assert result.exit_code != 0
    assert "data.label-column='labels' is none of the data's 3 columns" in str(result.exception)
