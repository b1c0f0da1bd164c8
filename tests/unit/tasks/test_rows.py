"""Rows as people have them; those that cannot be used cost nothing but themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest

from mobillm_flower.config import Settings, load_settings
from mobillm_flower.errors import DataError, PacketRejected
from mobillm_flower.tasks import both_splits, load_central_data, load_local_data, read_rows
from mobillm_flower.wire.left_out import left_out_text, open_left_out, pack_left_out

NAMES = ["bad", "fair", "good"]
WORDS = {"text": ["it broke", "it will do", "a joy"] * 4, "label": NAMES * 4}
PLAIN = datasets.Dataset.from_dict(WORDS)
NUMBERED = datasets.Dataset.from_dict({"text": WORDS["text"], "label": [0, 1, 2] * 4}).cast_column(
    "label", datasets.ClassLabel(names=NAMES)
)


def settings(**more: str) -> Settings:
    return load_settings({"task.labels": ",".join(NAMES), **{k.replace("__", "."): v for k, v in more.items()}})


FORMS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "no test": lambda: (PLAIN, None),
    "data frames": lambda: (pd.DataFrame(WORDS), pd.DataFrame(WORDS)),
    "categories": lambda: (pd.DataFrame(WORDS).astype({"label": "category"}), None),
    "lists": lambda: (PLAIN.to_list(), PLAIN.to_list()),
    "generators": lambda: ((row for row in PLAIN), (row for row in PLAIN)),
    "an iterable data set": lambda: (PLAIN.to_iterable_dataset(), None),
    "torch": lambda: (NUMBERED.with_format("torch"), NUMBERED.with_format("torch")),
    "numpy": lambda: (NUMBERED.with_format("numpy"), NUMBERED),
    "some columns": lambda: (NUMBERED.with_format("torch", columns=["label"]), NUMBERED),
    "a selection": lambda: (NUMBERED.select(range(12)), []),
}


@pytest.mark.parametrize("form", FORMS)
def test_what_load_data_may_return(form: str) -> None:
    data = read_rows(*FORMS[form](), settings())
    assert data.train.labels.tolist() == [0, 1, 2] * 4
    assert data.train.texts == WORDS["text"]
    assert len(data.test) in (0, 12)


@pytest.mark.parametrize(
    ("train", "match"),
    [
        (None, "returned None for the train rows"),
        ("rows.csv", "returned a str for the train rows"),
        (WORDS, "returned a dict for the train rows"),
        (datasets.DatasetDict({"train": PLAIN}), "returned a DatasetDict for the train rows"),
        ([["it broke", "bad"]], "returned a list of a list for the train rows"),
        (3, "returned a int for the train rows"),
    ],
)
def test_other_types_are_refused_with_an_example(train: Any, match: str) -> None:
    with pytest.raises(DataError, match=rf"{match}.*return \[\{{"):
        read_rows(train, None, settings())


@pytest.mark.parametrize("loaded", [PLAIN, PLAIN.to_list()[:2], (PLAIN,), None])
def test_what_is_no_pair_is_refused(loaded: Any) -> None:
    with pytest.raises(DataError, match=r"no pair of train and test rows"):
        both_splits(loaded)


def test_values_of_several_types_are_read_as_texts() -> None:
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": "2"}, {"text": "c", "label": None}, {"text": "d"}]
    data = read_rows(rows, None, load_settings({"task.labels": "1,2"}))
    assert (data.train.labels.tolist(), data.left_out.counts) == ([0, 1], {"train no-label": 2})
    with pytest.raises(DataError, match="column 'label' of the train rows holds values of types that do not go"):
        read_rows([{"text": "a", "label": 1}, {"text": "b", "label": ["x"]}], None, load_settings({"task.labels": "1"}))


def write(folder: Path, split: str, rows: list[tuple[str, str, str]]) -> None:
    lines = ["text,label,user", *(",".join(row) for row in rows)]
    (folder / f"{split}.csv").write_text("\n".join(lines) + "\n", "utf-8")


GOOD = [(f"text {i}", NAMES[i % 3], f"user{i % 3}") for i in range(30)]


@pytest.mark.parametrize("partition", ["iid", "dirichlet", "natural"])
def test_bad_rows_cost_no_device(tmp_path: Path, partition: str) -> None:
    train = [*GOOD, ("one more", "", "user1")]
    write(tmp_path, "train", train)
    write(tmp_path, "test", [("a", "excellent", "user1"), ("b", "-1", "user2"), ("c", "good", "user0")])
    more = {"data__source": str(tmp_path), "data__partition": partition, "data__partition_column": "user"}
    found = [load_local_data(settings(**more, data__alpha="5.0"), i, 3) for i in range(3)]
    assert sum(len(data.train) for data in found) == 30
    assert sum(len(data.test) for data in found) == 1
    counts = [data.left_out.rows for data in found]
    assert sorted(row for rows in counts for row in rows.get("test unknown-label", [])) == [0]
    assert sorted(row for rows in counts for row in rows.get("test no-label", [])) == [1]
    if partition != "dirichlet":  # which cuts by label, so that a row without one is on no device
        assert [row for rows in counts for row in rows.get("train no-label", [])] == [30]
    whole = load_central_data(settings(**more))
    assert (len(whole.train), len(whole.test)) == (30, 1)


def test_a_split_all_of_whose_labels_are_minus_one_has_no_labels(tmp_path: Path) -> None:
    write(tmp_path, "train", [(text, str(i % 2), user) for i, (text, _, user) in enumerate(GOOD)])
    write(tmp_path, "test", [(text, "-1", user) for text, _, user in GOOD])
    for i in range(3):
        data = load_local_data(load_settings({"data.source": str(tmp_path)}), i, 3)
        assert (len(data.train), len(data.test), data.left_out.counts) == (10, 0, {"test no-label": 10})


def test_a_device_is_refused_where_nothing_is_left_and_rows_and_reasons_are_named(tmp_path: Path) -> None:
    write(tmp_path, "train", [*GOOD, ("a", "odd", "zoe"), ("b", "", "zoe")])
    write(tmp_path, "test", GOOD)
    cut = {"data__source": str(tmp_path), "data__partition": "natural", "data__partition_column": "user"}
    assert len(load_local_data(settings(**cut), 0, 4).train) == 10
    with pytest.raises(DataError, match=r"no train row is left: .*\(row 30, .*\(row 31, counted from 0\)") as caught:
        load_local_data(settings(**cut), 3, 4)
    assert "odd" not in str(caught.value)
    with pytest.raises(DataError, match=r"data.bad-rows=drop"):
        load_local_data(settings(**cut, data__bad_rows="refuse"), 3, 4)


@pytest.mark.parametrize("blank", ["", '"  "'])
def test_a_blank_cell_is_no_text_whatever_reads_the_file(tmp_path: Path, blank: str) -> None:
    write(tmp_path, "train", [*GOOD, (blank, "bad", "user1")])
    write(tmp_path, "test", GOOD)
    assert len(load_local_data(settings(data__source=str(tmp_path)), 0, 1).train) == len(GOOD)
    with pytest.raises(DataError, match=rf"without a text .*row {len(GOOD)}"):
        load_local_data(settings(data__source=str(tmp_path), data__bad_rows="refuse"), 0, 1)


def test_fewer_test_rows_than_devices(tmp_path: Path) -> None:
    write(tmp_path, "train", GOOD)
    write(tmp_path, "test", GOOD[:3])
    for partition in ("iid", "dirichlet"):
        more = settings(data__source=str(tmp_path), data__partition=partition, data__alpha="5.0")
        assert sorted(len(load_local_data(more, i, 5).test) for i in range(5)) == [0, 0, 1, 1, 1]


def test_natural_devices_are_the_same_whatever_type_a_split_gives_their_names(tmp_path: Path) -> None:
    for split, kind in (("train", int), ("test", float)):
        rows = {"text": ["a", "b", "c"], "label": NAMES, "user": [kind(1), kind(2), kind(3)]}
        datasets.Dataset.from_dict(rows).to_parquet(tmp_path / f"{split}.parquet")
    cut = {"data__source": str(tmp_path), "data__partition": "natural", "data__partition_column": "user"}
    assert [load_local_data(settings(**cut), i, 3).test.texts for i in range(3)] == [["a"], ["b"], ["c"]]


def test_counts_come_back_and_only_counts() -> None:
    counts = {"train no-label": 2, "test no-text": 1}
    assert open_left_out(pack_left_out(counts)) == counts
    assert left_out_text(counts) == "train: 2 without a label; test: 1 without a text"
    for bad in (
        "[]",
        "{",
        '{"train no-label": 0}',
        '{"train secret": 1}',
        '{"train no-label": true}',
        3,
        '{"train": 1}',
    ):
        with pytest.raises(PacketRejected, match="left out are malformed"):
            open_left_out(bad)
