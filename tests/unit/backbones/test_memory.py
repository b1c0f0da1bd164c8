from __future__ import annotations

import os

import pytest

from mobillm_flower.backbones.memory import keep_few_kernels
from mobillm_flower.evaluation.fresh_process import run_fresh

CAPACITY = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"


@pytest.fixture(autouse=True)
def same_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CAPACITY, "")
    monkeypatch.delenv(CAPACITY)


def test_a_users_number_of_kernels_stays() -> None:
    os.environ[CAPACITY] = "3"
    keep_few_kernels()
    assert os.environ[CAPACITY] == "3"


def test_products_of_many_shapes_leave_less_behind() -> None:
    """What oneDNN keeps of 60 shapes in bf16, beside the same with its own 1,024."""
    fresh = "tests.support.many_shapes"
    many = min(run_fresh(fresh, environment={CAPACITY: "1024"})["grown_bytes"] for _ in range(3))
    few = min(run_fresh(fresh)["grown_bytes"] for _ in range(3))  # what is freed is not always given back
    if many < 4_000_000:
        pytest.skip("torch does not compute bf16 with oneDNN's kernels on this processor")
    assert few < 0.97 * many  # 0.72 to 0.86 on the processors that were tried, 0.92 beside much other work
