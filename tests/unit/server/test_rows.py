from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobillm_flower.server.rows import RowRef, Rows
from tests.support.caches import fill, make_samples, make_spec

VALUES = [(bytes([i]) * 30 + b"\0\0", 10 + i, "ab"[i % 2] * 64, 1 + i, i // 3, "xyz"[i % 3], i % 2) for i in range(9)]


@pytest.fixture
def rows() -> Any:
    return Rows(iter(VALUES), len(VALUES))


def test_references_come_back_as_they_went_in(rows: Any) -> None:
    assert list(rows) == [RowRef(*value) for value in VALUES]
    assert rows[3] == RowRef(*VALUES[3])
    assert rows[-1] == RowRef(*VALUES[-1])
    assert all(
        type(part) is type(given)
        for row, value in zip(rows, VALUES, strict=True)
        for part, given in zip(row, value, strict=True)
    )


def test_a_place_beyond_the_end_is_an_error(rows: Any) -> None:
    with pytest.raises(IndexError, match="out of bounds"):
        rows[len(VALUES)]


def test_parts_are_those_of_a_list(rows: Any) -> None:
    as_list = list(rows)
    assert list(rows[2:7:2]) == as_list[2:7:2]
    assert list(rows.take([5, 0, 5])) == [as_list[5], as_list[0], as_list[5]]
    assert list(rows.take(np.array([8, 1])).take([1])) == [as_list[1]]
    assert list(rows[3:].take(np.arange(6) % 2 == 0)) == as_list[3::2]
    assert list(rows.before(2)) == [row for row in as_list if row.round < 2]
    assert list(rows[4:].before(2)) == [row for row in as_list[4:] if row.round < 2]
    assert not rows.before(0)


def test_more_rows_than_one_chunk() -> None:
    many = Rows(((number.to_bytes(32, "big"), number, "a" * 64, 1, 1, "x", 0) for number in range(10_000)), 10_000)
    assert [row.id for row in many] == list(range(10_000))


def test_a_row_takes_60_bytes_and_a_part_only_places(rows: Any) -> None:
    assert sum(column.itemsize for column in rows._table.columns.values()) == 60
    assert rows[1:]._table is rows._table


def test_a_cache_reads_rows_in_the_order_asked_even_twice(tmp_path: Path) -> None:
    samples = make_samples(12, make_spec())
    cache = fill(tmp_path / "cache.sqlite", samples, make_spec(), shuffle_seed=2)
    rows = cache.rows()
    asked = [rows[i].id for i in (7, 2, 7, 11, 0)]
    one_by_one = [cache.read([number])[0] for number in asked]
    assert cache.read(asked) == one_by_one
    assert len(set(one_by_one)) == 4
    assert cache.read([]) == []


def ordered(values: Any) -> Any:
    return sorted(values, key=lambda value: value[:2])


@pytest.mark.parametrize("sizes", [(9,), (0, 9), (1, 3, 5), (4, 0, 1, 1, 3)])
def test_rows_that_come_bit_by_bit_are_in_the_order_of_all(sizes: Any) -> None:
    # digests that differ in their last byte alone, and equal ones, whose order is that of their ids
    digests = [bytes(31) + bytes([last]) for last in (7, 0, 7, 3, 255, 3, 1, 7, 0)]
    values = [(digest, i + 1, "ab"[i % 2] * 64, 1, i, "xyz"[i % 3], 0) for i, digest in enumerate(digests)]
    first, *others = sizes
    rows, done = Rows(ordered(values[:first]), first), first
    for size in others:
        before, was = rows, list(rows)
        rows = rows.with_new(values[done : done + size][::-1])
        done += size
        assert list(rows) == [RowRef(*value) for value in ordered(values[:done])]
        assert list(before) == was  # what was handed out stays valid
    assert list(rows) == [RowRef(*value) for value in ordered(values)]
    assert set(rows.names("device")) == set("xyz")


def test_many_small_additions_outgrow_the_table_and_keep_old_parts_valid() -> None:
    generator = np.random.default_rng(0)
    values = [(generator.bytes(32), i + 1, "a" * 64, 1, i // 7, f"device {i // 7}", 0) for i in range(700)]
    rows = Rows(ordered(values[:70]), 70)
    early, part = rows, rows[10:20]
    was = (list(early), list(part))
    for start in range(70, 700, 7):
        rows = rows.with_new(values[start : start + 7])
    assert list(rows) == [RowRef(*value) for value in ordered(values)]
    assert (list(early), list(part)) == was
    assert len(rows._table.columns["id"]) < 1.2 * 700


def test_a_truth_of_a_digest_is_asked_once_a_row() -> None:
    asked = []

    def odd(digest: Any) -> Any:
        asked.append(digest)
        return digest[0] % 2 == 1

    rows = Rows(VALUES[:4], 4)
    assert rows.by_digest("odd", odd).tolist() == [False, True, False, True]
    grown = rows.with_new(VALUES[4:])
    assert grown[::2].by_digest("odd", odd).tolist() == [False] * 5
    assert grown.by_digest("odd", odd).tolist() == [i % 2 == 1 for i in range(9)]
    assert sorted(asked) == [value[0] for value in VALUES]
