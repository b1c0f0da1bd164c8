"""Which class a value is: by name, by the number that a name is, and by place only where nothing else is possible."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from mobillm_flower.config import load_settings
from mobillm_flower.errors import DataError, SettingsError
from mobillm_flower.tasks import load_local_data, read_rows
from mobillm_flower.tasks.labels import class_names, label_rule, value_text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1"),
        (2.0, "2"),
        (-0.5, "-0.5"),
        (True, "true"),
        (np.int64(3), "3"),
        (np.bool_(False), "false"),
        ("01", "01"),
        (None, None),
        (math.nan, None),
        ("  ", None),
    ],
)
def test_how_a_value_is_written_as_a_name(value: Any, text: str | None) -> None:
    assert value_text(value) == text


@pytest.mark.parametrize(
    ("names", "column", "classes"),
    [
        ("1 2 3", [1, 3, 2], [0, 2, 1]),
        ("1 2 3", ["1", "3"], [0, 2]),
        ("-1 0 1", [-1, 0, 1], [0, 1, 2]),
        ("01 02 03", [1, 2, 3], [0, 1, 2]),
        ("01 02 03", ["02", "1", "03"], [1, 0, 2]),
        ("1 01", ["1", "01", "1.0"], [0, 1, None]),
        ("0 1 2", [0.0, 2.0, 1.5], [0, 2, None]),
        ("2 1 0", [0, 2], [2, 0]),
        ("true false", [True, False], [0, 1]),
        ("False True", ["true", False], [1, 0]),
        ("bad fair good", [0, 2, 1], [0, 2, 1]),
        ("bad fair good", ["0", 2.0], [0, 2]),
        ("bad fair good", [0, -1, 2], [0, None, 2]),
        ("bad fair good", [-1, -1], [None, None]),
        ("bad fair good", ["good", "2", 1], [2, None, None]),
        ("10000001 10000002", [10000002, 10000001, 0], [1, 0, None]),
        ("ham spam", [True, False], [None, None]),
    ],
)
def test_names_match_by_name(names: str, column: list[Any], classes: list[int | None]) -> None:
    rule = label_rule(names.split(), column, setting="the column")
    assert [rule(value) for value in column] == classes


@pytest.mark.parametrize("column", [[1, 2, 3], [-1, 0, 1], [-2, 0], ["1", "3"], [0, 1, 7]])
def test_numbers_that_are_not_the_places_of_names_are_refused(column: list[Any]) -> None:
    with pytest.raises(DataError, match=r"the column holds numbers that are neither names .* nor all from 0 to 2"):
        label_rule(["bad", "fair", "good"], column, setting="the column")


def test_a_class_label_s_own_names_count_and_not_its_order() -> None:
    rule = label_rule(["bad", "fair", "good"], [0, 1, 2], ["good", "bad", "fair"], setting="the column")
    assert [rule(value) for value in (0, 1, 2, -1, 3, None)] == [2, 0, 1, None, None, None]
    assert rule.is_missing(-1)
    numbered = label_rule(["bad", "good"], [0, 1], ["0", "1"], setting="the column")
    assert [numbered(value) for value in (0, 1)] == [0, 1]
    with pytest.raises(DataError, match=r"whose names are none of the 2 in task.labels"):
        label_rule(["negative", "positive"], [0, 1], ["neg", "pos"], setting="the column")


def test_a_name_twice_is_refused() -> None:
    with pytest.raises(SettingsError, match="names a class twice"):
        label_rule(["a", "b", "a"], [], setting="the column")


def test_names_of_values() -> None:
    assert class_names([10, 9, 402117, 9], setting="it") == ("9", "10", "402117")
    assert class_names(["02", "01", "10"], setting="it") == ("01", "02", "10")
    assert class_names([True, False], setting="it") == ("false", "true")
    assert class_names(["b", "a, b", None], setting="it") == ("a, b", "b")
    with pytest.raises(DataError, match="it holds no label"):
        class_names([None, math.nan], setting="it")
    with pytest.raises(DataError, match="it holds lists or mappings"):
        class_names([["a"], ["b"]], setting="it")


CODED = {
    "stars": "123",
    "signs": ["-1", "0", "1"],
    "bools": ["false", "true", "false"],
    "floats": ["0.0", "1.0", "2.0"],
}


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("kind", CODED)
def test_a_file_s_codes_are_classes_on_every_device(tmp_path: Path, kind: str, named: bool) -> None:
    codes = list(CODED[kind])
    for split in ("train", "test"):
        lines = [f"text {i},{codes[i % 3]},user{i % 2}" for i in range(12)]
        (tmp_path / f"{split}.csv").write_text("\n".join(["text,label,user", *lines]) + "\n", "utf-8")
    names = [code.removesuffix(".0") for code in dict.fromkeys(codes)]
    settings = load_settings(
        {"data.source": str(tmp_path), "data.partition": "natural", "data.partition-column": "user"}
        | ({"task.labels": ",".join(names)} if named else {})
    )
    for device in range(2):
        data = load_local_data(settings, device, 2)
        got = [data.contract.labels[label].removesuffix(".0") for label in data.train.labels.tolist()]
        assert got == [codes[int(text.split()[1]) % 3].removesuffix(".0") for text in data.train.texts]
        assert not data.left_out.counts


def test_a_class_label_of_the_test_split_may_have_another_order() -> None:
    def rows(names: list[str]) -> datasets.Dataset:
        features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
        return datasets.Dataset.from_list([{"text": name, "label": i} for i, name in enumerate(names)], features)

    data = read_rows(rows(["neg", "pos"]), rows(["pos", "neg"]), load_settings({}))
    for samples in (data.train, data.test):
        assert [data.contract.labels[i] for i in samples.labels] == samples.texts
