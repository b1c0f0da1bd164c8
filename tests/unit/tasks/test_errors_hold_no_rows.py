"""No error of tasks/ holds a word of a row, of a column's name or of a file's, whatever is wrong with them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mobillm_flower.config import load_settings
from mobillm_flower.errors import MobiLLMError
from mobillm_flower.tasks import load_local_data, read_texts
from mobillm_flower.tasks.readers import FileForm

CANARY = "canary"
ROW = {f"{CANARY}-column": f"{CANARY} text", "text": f"{CANARY} text", "label": f"{CANARY}-label", "number": 7}


def written(folder: Path, name: str, content: str | bytes) -> None:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def jsonl(*rows: dict[str, Any]) -> str:
    return "\n".join(map(json.dumps, rows))


WRONG: dict[str, tuple[str, str | bytes, dict[str, Any]]] = {
    "no heading": ("train.csv", f"{CANARY} text,{CANARY}-label\n" * 9, {}),
    "no such label column": ("train.jsonl", jsonl(ROW), {"data.label-column": "other"}),
    "no such text column": ("train.jsonl", jsonl(ROW), {"data.text-column": "other"}),
    "no such pair column": ("train.jsonl", jsonl(ROW), {"data.pair-column": "other"}),
    "no such partition column": (
        "train.jsonl",
        jsonl(ROW),
        {"data.partition": "natural", "data.partition-column": "x"},
    ),
    "label not in the contract": ("train.jsonl", jsonl(ROW), {"task.labels": "a,b"}),
    "text is a number": ("train.jsonl", jsonl(ROW), {"data.text-column": "number"}),
    "pair is a number": ("train.jsonl", jsonl(ROW), {"data.pair-column": "number"}),
    "number is a text": ("train.jsonl", jsonl(ROW), {"task.kind": "regression"}),
    "number out of range": ("train.jsonl", jsonl(ROW), {"task.kind": "regression", "data.label-column": "number"}),
    "no label": ("train.jsonl", jsonl({**ROW, "label": None}), {}),
    "texts as labels": ("train.jsonl", jsonl(*({**ROW, "label": f"{CANARY} {i}"} for i in range(1001))), {}),
    "no JSON": ("train.jsonl", f"{CANARY} text", {}),
    "JSON of two kinds": ("train.jsonl", jsonl(ROW, {**ROW, "text": {CANARY: CANARY}}), {}),
    "no parquet": ("train.parquet", f"{CANARY} text", {}),
    "rows of other columns": ("train-1.jsonl", jsonl({"other": CANARY}), {}),
    "not UTF-8": ("train.csv", f"text,label\n{CANARY},{CANARY}\xff\n".encode("latin-1"), {}),
    "rows of other lengths": ("train.csv", f"text,label\n{CANARY},{CANARY},{CANARY}\n", {}),
    "no prompt": ("train.jsonl", jsonl(ROW), {"task.kind": "language-modelling", "task.prompt": "{text}"}),
    "no such split": ("train.jsonl", jsonl(ROW), {"data.train-split": "other"}),
}


@pytest.mark.parametrize("bad_rows", ["refuse", "drop"])
@pytest.mark.parametrize("wrong", WRONG)
def test_no_word_of_a_row_leaves(
    tmp_path: Path, wrong: str, bad_rows: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    name, content, settings = WRONG[wrong]
    folder = tmp_path / f"{CANARY}-folder"
    folder.mkdir()
    written(folder, "test.jsonl", jsonl(ROW))
    written(folder, f"{CANARY}.csv", "x")
    if name == "train-1.jsonl":
        written(folder, "train-0.jsonl", jsonl(ROW))
    written(folder, name, content)
    asked = load_settings({"data.source": str(folder), "data.bad-rows": bad_rows, **settings})
    with caplog.at_level(logging.DEBUG):
        try:
            told = str(load_local_data(asked, 0, 1).left_out)
        except MobiLLMError as error:
            told = str(error)
    assert told
    said = [told, caplog.text, *capfd.readouterr()]
    assert CANARY not in "".join(said)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("x.csv", lambda file: file.write_text(f"{CANARY} text,{CANARY}\n" * 3)),
        ("x.jsonl", lambda file: file.write_text(jsonl({CANARY: CANARY}))),
        ("x.jsonl", lambda file: file.write_text(f"[{CANARY}]")),
        ("x.jsonl", lambda file: file.write_text(jsonl({"text": [CANARY]}))),
        ("x.parquet", lambda file: pq.write_table(pa.table({CANARY: [CANARY]}), file)),
        ("x.parquet", lambda file: file.write_text(CANARY)),
        ("x.txt", lambda file: file.write_bytes(CANARY.encode() + b"\xff")),
    ],
)
def test_no_word_of_a_text_to_predict_stands_in_an_error(
    tmp_path: Path, name: str, write: Callable[[Path], object]
) -> None:
    write(tmp_path / name)
    with pytest.raises(MobiLLMError, match=r"\w") as caught:
        list(read_texts(tmp_path / name, FileForm()))
    assert CANARY not in str(caught.value)
