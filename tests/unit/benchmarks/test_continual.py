"""The study of tasks one after another, on three tiny tasks of random vectors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks.studies import continual
from mobillm_flower.core.backbone_info import BackboneInfo
from mobillm_flower.core.codecs import CODECS
from mobillm_flower.core.sparse import encode_sample
from mobillm_flower.core.task_sequence import TaskSequence

INFO = BackboneInfo("m", "bert", False, 2, 16, "fp32", "f" * 64, "constant")
ORDER = ["a", "b", "c"]


class Store(continual.Tasks):
    """Tasks whose classes are read from one direction each."""

    def __init__(self) -> None:
        self.info = INFO
        self.spec = continual.plan_of(INFO, TaskSequence().append("a", "ab"), 1, "closed-form").specs["f" * 64]
        self._known = {name: self._task(name, number) for number, name in enumerate(ORDER)}

    def _task(self, name: str, number: int) -> continual.Task:
        rows = torch.randn(120, len(self.spec.layers), 1, 16, generator=torch.Generator().manual_seed(number))
        labels = rows[:, -1, 0, 2 * number : 2 * number + 2].argmax(1)
        blobs = [encode_sample(row[None], CODECS[self.spec.codec], 1.0) for row in rows[:80]]
        return continual.Task(name, 2, blobs, labels[:80], {"test": (rows[80:].flatten(2), labels[80:])})


@pytest.mark.parametrize("name", list(continual.METHODS))
def test_every_way_of_learning_is_measured_after_each_task(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continual, "EPOCHS", 2)
    method: Any = continual.METHODS[name]
    cell = continual.in_turn(method, ORDER, Store(), 0, 60, "test")
    assert [len(row) for row in cell["known"]] == [len(row) for row in cell["unknown"]] == [1, 2, 3]
    kept = [sizes["bytes_kept"] for sizes in cell["sizes"]]
    per_row = len(Store()["a"].blobs[0])
    if method.keep:
        assert 0 < kept[0] < kept[1] < kept[2] < 0.35 * 180 * (per_row + 12)
    else:
        assert all(kept) == (name == "closed-form")
    if name == "closed-form":
        assert sum(cell["known"][-1]) > 1.8
    if method.network in ("o-lora", "oa-adapter"):
        assert [len(sizes["ranks"]) for sizes in cell["sizes"]] == [1, 2, 3]


@pytest.mark.parametrize("name", list(continual.TOGETHER))
def test_all_tasks_at_once_need_all_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continual, "EPOCHS", 2)
    store = Store()
    cell = continual.at_once(continual.TOGETHER[name], ORDER, store, 0, 60, "test")
    assert [len(row) for row in cell["known"]] == [3]
    assert cell["sizes"][-1]["bytes_kept"] == 180 * (len(store["a"].blobs[0]) + 12)


def test_rows_that_were_kept_are_those_that_were_drawn(tmp_path: Any) -> None:
    learner = continual.Learner(continual.METHODS["replay of a tenth"], Store(), 0, 60, tmp_path)
    learner.learn("a")
    first = learner.kept_rows
    assert first
    learner.learn("b")
    assert learner.kept_rows[: len(first)] == first  # a share of a share is not taken
    assert {name for name, _ in learner.kept_rows[len(first) :]} == {"b"}


def test_features_of_one_backbone_are_not_those_of_another(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(store: continual.Tasks) -> Any:
        return type("Loaded", (), {"info": replace(INFO, name=store.backbone)})

    monkeypatch.setattr(continual.Tasks, "_load", load)
    stores = [continual.Tasks(tmp_path, tmp_path, name, pool) for name, pool in (("m", 9), ("n", 9), ("m", 8))]
    assert [store.info.name for store in stores] == ["m", "n", "m"]
    assert len({store.work for store in stores}) == 3
