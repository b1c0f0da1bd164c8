"""A checkpoint that is damaged is refused by name, whatever the damage is."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mobillm_flower.errors import CacheError
from mobillm_flower.server import ActivationCache
from mobillm_flower.server.checkpoints import Checkpoint, read_checkpoint, write_checkpoint
from mobillm_flower.server.options import Position
from mobillm_flower.server.plan import TrainingPlan, known_backbones, last_round
from mobillm_flower.server.sums import num_noised_totals
from mobillm_flower.strategies.secure_groups import groups_held
from tests.support.caches import fill, make_plan, make_samples, make_spec, train


@pytest.mark.parametrize("content", [b"", b"torn", b"PK\x03\x04 and no more", bytes(200)])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "trainer.pt"
    file.write_bytes(content)
    with pytest.raises(CacheError, match=r"trainer\.pt cannot be read"):
        read_checkpoint(file, make_plan([make_spec()]).options)


@pytest.mark.parametrize("saved", [{}, {"options": {}}, {"options": {}, "position": {"speed": 1}}, [1, 2]])
def test_a_checkpoint_of_another_form_is_refused(tmp_path: Path, saved: object) -> None:
    file = tmp_path / "trainer.pt"
    torch.save(saved, file)
    with pytest.raises(CacheError, match=r"trainer\.pt cannot be read"):
        read_checkpoint(file, make_plan([make_spec()]).options)


def test_a_checkpoint_with_one_changed_bit_is_refused_and_one_of_before_is_read(tmp_path: Path) -> None:
    plan, file = make_plan([make_spec()]), tmp_path / "trainer.pt"
    state = {"w": torch.arange(1000.0)}
    write_checkpoint(file, Checkpoint(state, state, {"w": state}, None, Position(), plan.options))
    whole = file.read_bytes()
    assert torch.equal(read_checkpoint(file, plan.options).network["w"], state["w"])
    for place in (0, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(CacheError, match=r"trainer\.pt cannot be read"):
            read_checkpoint(file, plan.options)
    file.write_bytes(whole[whole.index(b"PK") :])  # without a digest
    assert torch.equal(read_checkpoint(file, plan.options).network["w"], state["w"])


@pytest.mark.parametrize("field", ["contract", "specs", "side_config", "options"])
@pytest.mark.parametrize("value", [None, "x", 5, {"x": 1}])
def test_a_plan_that_is_damaged_is_refused_with_file_and_field(tmp_path: Path, field: str, value: object) -> None:
    cache = ActivationCache(tmp_path / "cache.sqlite")
    make_plan([make_spec()]).store(cache)
    values = json.loads(str(cache.meta("plan")))
    cache.set_meta("plan", json.dumps({**values, field: value}))
    with pytest.raises(CacheError, match=rf"cache\.sqlite: {field} of the run's plan is damaged"):
        TrainingPlan.of(cache)


@pytest.mark.parametrize(
    "key", ["backbones", "last-round", "secure-sums-groups", "noised-totals", "untrained", "rows-deleted"]
)
@pytest.mark.parametrize("text", ["", "{", "[1]", '{"x": 1', '"x"', "None"])
def test_what_a_cache_notes_beside_its_samples_is_refused_by_name_where_it_is_damaged(
    tmp_path: Path, key: str, text: str
) -> None:
    cache = ActivationCache(tmp_path / "cache.sqlite")
    readers: dict[str, Callable[[ActivationCache], Any]] = {
        "backbones": known_backbones,
        "last-round": last_round,
        "secure-sums-groups": groups_held,
        "noised-totals": num_noised_totals,
        "untrained": lambda cache: cache.num_untrained,
        "rows-deleted": lambda cache: cache.num_deleted,
    }
    assert not readers[key](cache)
    cache.set_meta(key, text)
    with pytest.raises(CacheError, match=rf"cache\.sqlite: its '{key}' is damaged"):
        readers[key](cache)


def test_a_row_that_was_changed_on_disk_is_not_trained_on(tmp_path: Path) -> None:
    spec = make_spec()
    cache = fill(tmp_path / "cache.sqlite", make_samples(20, spec), spec)
    with contextlib.closing(sqlite3.connect(cache.file)) as db, db:
        db.execute("UPDATE samples SET target = CAST(zeroblob(LENGTH(target)) AS BLOB) WHERE id = 7")
    with pytest.raises(CacheError, match=r"row 7 does not hold the bytes that were committed"):
        train(cache, make_plan([spec]))
