"""`mobillm data`: what is understood before a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mobillm_flower.cli import app
from tests.support.cli import lines, parsed
from tests.support.tiny_models import save_tiny

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


LONG = "the cat sat on the mat and then " * 4


def ask(folder: Path, family: str, *settings: str) -> list[str]:
    """Rows in order of their labels; of the second class all are long, and a word of theirs is unknown."""
    folder.mkdir(exist_ok=True)
    write(folder)
    backbone = save_tiny(folder / "backbone", family)
    rows = ["the cat sat,bad"] * 40 + [f"{LONG} zebra,good"] * 10
    for split in ("train", "test"):
        (folder / f"{split}.csv").write_text("\n".join(["text,label", *rows]) + "\n", "utf-8")
    words = [
        f"data.source={folder}",
        "data.num-devices=2",
        f"backbone.name={backbone}",
        "task.max-length=24",
        *settings,
    ]
    return ["data", str(folder), *(word for setting in words for word in ("-c", setting))]


def test_lengths_words_and_the_backbone_s_own_prediction_are_counted_over_all_rows(tmp_path: Path) -> None:
    words = ("task.prompt={text} it", "task.labels=bad,good", "task.label-words=no,yes yes")
    found = parsed(*ask(tmp_path, "opt", *words))
    tokens = found["tokens"]
    assert (tokens["rows"], tokens["cut"]) == (50, 10)
    assert tokens["most"] > 24
    assert tokens["label_words"] == {"no": 1, "yes yes": 2}
    assert 0 <= found["base"]["right"] <= found["base"]["rows"] == 13  # every fourth row
    assert sum(found["base"]["mean"]) == pytest.approx(1)
    shown = " ".join(" ".join(lines(*ask(tmp_path / "again", "opt", *words))).split())
    assert "texts cut 10 longer than task.max-length" in shown
    assert "label word yes yes 2 tokens" in shown
    assert "mean of 13 texts: bad 0." in shown


def test_language_modelling_cuts_nothing_and_has_lengths(tmp_path: Path) -> None:
    tokens = parsed(*ask(tmp_path, "opt", "task.kind=language-modelling"))["tokens"]
    assert tokens["most"] > 24
    assert tokens["rows"] == 50
