"""Any label column in any file, cut in any way: rows have the class of their value, and `predict` says that name."""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobillm_flower.config import list_text, load_settings
from mobillm_flower.errors import DataError
from mobillm_flower.tasks.data import Splits
from mobillm_flower.tasks.labels import value_text
from mobillm_flower.tasks.sources import load_splits
from tests.property.test_files import PACKING
from tests.property.test_labels_and_rows import NAMED
from tests.support.cli import parsed
from tests.support.runs import run, tiny_config
from tests.support.tiny_models import save_tiny

TIMES = int(os.environ.get("MOBILLM_EXAMPLES", "1"))
"""As many times as many examples, by hand."""

Row = dict[str, Any]
SUFFIXES = [".csv", ".tsv", ".jsonl", ".json", ".parquet", ".feather"]
SHAPES = ["files", "shards", "folders", "data", "column"]
ODD_TEXT = ["plain", "a, b; c", "one\ntwo", 'a "quote"', "ä\tö", "", "NA", "0012"]


def write(file: Path, rows: list[Row], encoding: str, delimiter: str) -> None:
    """Write rows in the form and the packing that a file's name says."""
    suffix, packing = file.suffixes[0], "".join(file.suffixes[1:])
    columns = list(rows[0])
    if suffix in (".csv", ".tsv"):
        stream = io.StringIO(newline="")
        lines = csv.writer(stream, delimiter="\t" if suffix == ".tsv" else delimiter)
        lines.writerow(columns)
        lines.writerows([["" if row[name] is None else row[name] for name in columns] for row in rows])
        content = stream.getvalue().encode(encoding)
    elif suffix in (".jsonl", ".json"):
        texts = [json.dumps(row, ensure_ascii=False) for row in rows]
        content = (f"[{', '.join(texts)}]" if suffix == ".json" else "".join(f"{t}\n" for t in texts)).encode(encoding)
    else:
        table, out = pa.Table.from_pylist(rows), io.BytesIO()
        if suffix == ".parquet":
            pq.write_table(table, out)
        else:
            pyarrow.feather.write_feather(table, out)
        content = out.getvalue()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(PACKING[packing](content))


@st.composite
def cases(draw: Callable[..., Any]) -> tuple[str, list[tuple[str, Any]], dict[str, Any]]:
    """A kind of label column with its names in some order, or without any, and how files are written."""
    kind = draw(st.sampled_from(sorted(NAMED)))
    named = NAMED[kind] if kind == "places" else draw(st.permutations(NAMED[kind]))
    form = {
        "suffix": draw(st.sampled_from(SUFFIXES)),
        "packing": draw(st.sampled_from(list(PACKING))),
        "encoding": draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"])),
        "delimiter": draw(st.sampled_from([",", ";"])),
        "shape": draw(st.sampled_from(SHAPES)),
    }
    return kind, named, form


def put(folder: Path, form: dict[str, Any], train: list[Row], test: list[Row]) -> dict[str, Any]:
    """Write both splits; returns the settings that say where they are. Shards differ in the order of their columns."""
    end, how = form["suffix"] + form["packing"], (form["encoding"], form["delimiter"])
    source = folder
    if form["shape"] == "column":
        source = folder / f"all{end}"
        write(source, [{**row, "part": part} for part, of in (("train", train), ("test", test)) for row in of], *how)
    elif form["shape"] == "shards":
        half = len(train) // 2
        turned = [dict(reversed(row.items())) for row in train[half:]]
        for i, part in enumerate((train[:half], turned)):
            write(folder / f"train-{i:05}-of-00002{end}", part, *how)
        write(folder / f"test{end}", test, *how)
    else:
        for split, rows in (("train", train), ("test", test)):
            names = {"files": f"{split}{end}", "folders": f"{split}/rows{end}", "data": f"data/{split}{end}"}
            write(folder / names[form["shape"]], rows, *how)
    encoding = "utf-8" if form["encoding"] == "utf-8-sig" else form["encoding"]
    delimiter = form["delimiter"] if form["suffix"] == ".csv" else ""
    column = {"data.split-column": "part"} if form["shape"] == "column" else {}
    return {"data.source": str(source), "data.encoding": encoding, "data.delimiter": delimiter, **column}


def expected(names: list[str], named: bool, values: dict[str, Any]) -> list[str]:
    """Return how classes are called: as `task.labels` has them, or as their values are written."""
    return [name if named else str(value_text(values[name])).casefold() for name in names]


@given(case=cases(), data=st.data(), is_named=st.booleans(), devices=st.integers(1, 5))
@settings(max_examples=20 * TIMES, deadline=None, database=None)
def test_each_row_has_the_class_of_its_value_wherever_it_was_written(
    case: Any, data: st.DataObject, is_named: bool, devices: int
) -> None:
    kind, named, form = case
    values = dict(named)
    classes = [*values, *data.draw(st.lists(st.sampled_from(sorted(values)), min_size=3, max_size=24)), *values]
    missing = data.draw(st.sets(st.integers(len(values), len(classes) - 1 - len(values)), max_size=3))
    users, texts = st.sampled_from(["ana", "ben", None]), st.sampled_from(ODD_TEXT)
    rows = [
        {
            "text": f"{i} {data.draw(texts)}",
            "label": None if i in missing else values[name],
            "user": data.draw(users),
        }
        for i, name in enumerate(classes)
    ]
    cut = data.draw(st.sampled_from(["iid", "natural", "dirichlet"]))
    chosen: dict[str, Any] = {"data.label-column": "label", "data.partition": cut, "data.partition-column": "user"}
    if is_named or kind == "words":
        chosen["task.labels"] = list_text(name for name, _ in named)
    wanted = expected(classes, "task.labels" in chosen, values)
    with tempfile.TemporaryDirectory() as folder:
        read = load_settings({**chosen, "data.alpha": 5.0, **put(Path(folder), form, rows, rows)})
        splits = Splits.of(*load_splits(read.data), read)
    kept: list[int] = []
    for device in range(devices):
        try:
            held = splits.local(read, device, devices)
        except DataError as error:
            assert "counted from 0" in str(error) or "cannot be cut" in str(error)  # noqa: PT017 - of many devices
            continue
        for samples in (held.train, held.test):
            for text, label in zip(samples.texts, samples.labels.tolist(), strict=True):
                number = int(text.split(" ")[0])
                assert text == rows[number]["text"]
                name = held.contract.labels[label]
                assert (name if "task.labels" in chosen else name.casefold()) == wanted[number]
        kept += [int(text.split(" ")[0]) for text in held.train.texts]
        assert {place for places in held.left_out.rows.values() for place in places} <= missing
    assert len(kept) == len(set(kept))
    assert not set(kept) & missing


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("backbone"), "bert")


@given(case=cases(), is_named=st.booleans(), cut=st.sampled_from(["iid", "natural"]))
@settings(max_examples=2 * TIMES, deadline=None, database=None)
def test_predict_gives_back_the_names_of_what_can_be_told_apart(
    backbone: Path, case: Any, is_named: bool, cut: str
) -> None:
    kind, named, form = case
    values = dict(named)
    words = dict(zip(sorted(values), ("cat dog sat", "yes no maybe", "under the hill"), strict=False))
    rows = [
        {"text": f"{words[name]} {more}", "label": values[name], "user": f"u{i % 3}"}
        for i, more in enumerate(("and then", "all day", "on a mat", "it ran", "slept", "good"))
        for name in sorted(values)
    ]
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, "data")
        put_there = put(folder, form, rows, rows)
        config = {**tiny_config(Path(parent, "run"), backbone), **put_there, "side-network.name": "closed-form"}
        config.pop("side-network.bottleneck")
        config |= {"data.label-column": "label", "data.partition": cut, "data.partition-column": "user"}
        if is_named or kind == "words":
            config["task.labels"] = list_text(name for name, _ in named)
        run(config)
        file = next(path for path in [folder, *folder.rglob("*")] if path.is_file() and "train-" not in path.name)
        said = parsed("predict", Path(parent, "run"), "--file", file)
    names = [name for _ in range(6) for name in sorted(values)] * (2 if form["shape"] == "column" else 1)
    wanted = expected(names, "task.labels" in config, values)
    found = [str(row["label"]) if "task.labels" in config else str(row["label"]).casefold() for row in said]
    assert found == wanted
