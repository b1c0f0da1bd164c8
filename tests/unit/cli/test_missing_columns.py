"""A column that is not there: which are, on the user's own terminal alone; and data without any."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mobillm_flower.cli import main
from mobillm_flower.config import load_settings
from mobillm_flower.errors import DataError, MissingColumnError
from mobillm_flower.tasks import load_local_data
from tests.support.runs import tiny_run

ROWS = [{"body": f"text {i}", "topic": "ab"[i % 2]} for i in range(8)]


def app(folder: Path) -> list[str]:
    (folder / "pyproject.toml").write_text('[tool.flwr.app]\n[tool.flwr.app.config]\nsettings = ""\n', "utf-8")
    return [str(folder), "-c", f"data.source={folder}", "-c", "data.text-column=body"]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def of(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["mobillm", *map(str, arguments)])
        with pytest.raises(SystemExit, match="1"):
            main()
        return capsys.readouterr().err

    return of


@pytest.mark.parametrize(
    "setting", ["data.label-column=x", "data.text-column=x", "data.pair-column=x", "data.split-column=x", "partition"]
)
def test_every_command_lists_the_columns_that_are_there_and_a_device_does_not(
    tmp_path: Path, setting: str, said: Callable[..., str]
) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, ROWS)), "utf-8")
    words = ["data.label-column=topic", setting]
    if setting == "partition":
        words[1:] = ["data.partition=natural", "data.partition-column=x"]
    options = [*app(tmp_path), *(part for word in words for part in ("-c", word))]
    for command in (["data", *options, "--no-backbone"], ["run", *options]):
        assert "='x' is none of the data's 2 columns. There are: body, topic" in said(*command)
    words += [f"data.source={tmp_path}"] + (["data.text-column=body"] if "text-column" not in setting else [])
    with pytest.raises(MissingColumnError, match=r"is none of the data's 2 columns$") as caught:
        load_local_data(load_settings(overrides=words), 0, 1)
    assert caught.value.columns == ("body", "topic")


def test_of_many_columns_and_long_names_some_are_listed(tmp_path: Path, said: Callable[..., str]) -> None:
    (tmp_path / "train.csv").write_text(",".join(f"{i}{'x' * 60}" for i in range(99)) + "\n", "utf-8")
    (tmp_path / "test.csv").write_text("", "utf-8")
    options = app(tmp_path)
    (tmp_path / "test.csv").write_text("a\n", "utf-8")
    told = said("data", *options, "--no-backbone")
    assert f"There are: 0{'x' * 39}, 1{'x' * 39}, " in told
    assert told.endswith(f"29{'x' * 38}, …\n")


def test_the_columns_of_a_file_to_predict_are_listed(tmp_path: Path, said: Callable[..., str]) -> None:
    run = tiny_run(tmp_path)
    (tmp_path / "a.csv").write_text("body,topic\na,b\n", "utf-8")
    assert "a.csv has no column 'text' among its 2. There are: body, topic" in said(
        "predict", run, "--file", tmp_path / "a.csv"
    )


@pytest.mark.parametrize(("mark", "named"), [(";", ";"), ("\t", "tab"), ("|", "|")])
def test_a_delimiter_that_is_none_is_recognized(tmp_path: Path, mark: str, named: str) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text(f"text{mark}label\na{mark}x\nb{mark}y\n", "utf-8")
    words = [f"data.source={tmp_path}", "data.num-devices=1"]
    with pytest.raises(MissingColumnError) as caught:
        load_local_data(load_settings(overrides=words), 0, 1)
    assert str(caught.value).endswith(f"if that is the delimiter, give data.delimiter={named}")
    assert len(load_local_data(load_settings(overrides=[*words, f"data.delimiter={named}"]), 0, 1).train) == 2


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json", "txt"])
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_is_said_to_be_empty(tmp_path: Path, suffix: str, split: str, content: str) -> None:
    other = {"train": "test", "test": "train"}[split]
    (tmp_path / f"{split}.{suffix}").write_text(content, "utf-8")
    (tmp_path / f"{other}.csv").write_text("text,label\na,x\nb,y\n", "utf-8")
    with pytest.raises(DataError, match=f"the {split} split is empty: it has neither rows nor columns; give it rows"):
        load_local_data(load_settings({"data.source": str(tmp_path)}), 0, 1)


@pytest.mark.parametrize(
    ("rows", "message"), [("", "has no rows; give the split rows"), ("a,\nb,\n", "holds no label in any row")]
)
def test_a_heading_alone_and_labels_that_are_all_empty_are_told_apart(tmp_path: Path, rows: str, message: str) -> None:
    (tmp_path / "train.csv").write_text(f"text,label\n{rows}", "utf-8")
    (tmp_path / "test.csv").write_text("text,label\na,x\n", "utf-8")
    with pytest.raises(DataError, match=f"data.label-column='label' {message}.*, or name the labels with task.labels"):
        load_local_data(load_settings({"data.source": str(tmp_path)}), 0, 1)
