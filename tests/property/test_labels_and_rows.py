"""Random label columns and partitions: each row has the class of its value, or is left out with a reason."""

from __future__ import annotations

from typing import Any

import datasets
from hypothesis import given, settings
from hypothesis import strategies as st

from mobillm_flower.config import list_text, load_settings
from mobillm_flower.errors import DataError
from mobillm_flower.tasks.data import Splits

EXAMPLES = settings(max_examples=40, deadline=None, database=None, derandomize=True)

NAMED: dict[str, list[tuple[str, Any]]] = {
    "words": [("bad", "bad"), ("fair, at most", "fair, at most"), ("a/b", "a/b")],
    "stars": [("1", 1), ("2", 2), ("3", 3)],
    "signs": [("-1", -1), ("0", 0), ("1", 1)],
    "zeros": [("01", "01"), ("02", "02"), ("10", "10")],
    "padded": [("01", 1), ("02", 2), ("10", 10)],
    "floats": [("0", 0.0), ("1", 1.0), ("2", 2.0)],
    "codes": [("40211700", 40211700), ("40211900", 40211900), ("7", 7)],
    "truth": [("true", True), ("false", False)],
    "places": [("bad", 0), ("fair", 1), ("good", 2)],
}
"""Kinds of columns: names with the values that mean them."""


@EXAMPLES
@given(data=st.data(), kind=st.sampled_from(sorted(NAMED)), devices=st.integers(1, 6))
def test_rows_have_the_class_of_their_value_or_are_counted(data: st.DataObject, kind: str, devices: int) -> None:
    named = data.draw(st.permutations(NAMED[kind])) if kind != "places" else NAMED[kind]
    values = dict(named)
    classes = data.draw(st.lists(st.sampled_from(sorted(values)), min_size=3, max_size=30))
    classes += sorted(values)  # so that places are seen to be places
    missing = data.draw(st.sets(st.integers(0, len(classes) - 1), max_size=4))
    blank = data.draw(st.sets(st.integers(0, len(classes) - 1), max_size=3))
    rows = {
        "text": [None if i in blank else str(i) for i in range(len(classes))],
        "label": [None if i in missing else values[name] for i, name in enumerate(classes)],
        "user": [data.draw(st.sampled_from(["ana", "ben", None])) for _ in classes],
    }
    cut = data.draw(st.sampled_from(["iid", "natural", "dirichlet"]))
    chosen = load_settings(
        {
            "data.partition": cut,
            "data.partition-column": "user",
            "data.alpha": 5.0,
            "task.labels": list_text(name for name, _ in named),
        }
    )
    table = datasets.Dataset.from_dict(rows)
    if len({value for i, value in enumerate(rows["label"]) if i not in missing}) < len(values) and kind == "places":
        return  # the last place is not seen
    splits = Splits.of(table, table, chosen)
    kept: list[int] = []
    for device in range(devices):
        try:
            held = splits.local(chosen, device, devices)
        except DataError as error:
            assert "counted from 0" in str(error) or "cannot be cut" in str(error)  # noqa: PT017 - of many rows
            continue
        for samples in (held.train, held.test):
            for text, label in zip(samples.texts, samples.labels.tolist(), strict=True):
                assert held.contract.labels[label] == classes[int(text)]
        assert not {int(text) for text in held.train.texts} & (missing | blank)
        kept += [int(text) for text in held.train.texts]
        for key, places in held.left_out.rows.items():
            reason = {"no-label": missing, "no-text": blank}[key.split(" ")[1]]
            assert set(places) <= reason
    assert len(kept) == len(set(kept))  # on one device each
