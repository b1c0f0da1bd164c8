"""The registry: what is added is found, and a wrong name says what there is."""

from typing import Any

import pytest

from mobillm_flower.core.codecs import CODECS
from mobillm_flower.core.pivots import PIVOTS
from mobillm_flower.core.registry import Registry
from mobillm_flower.core.side_networks import SIDE_NETWORKS
from mobillm_flower.errors import SettingsError


@pytest.fixture
def shapes() -> Any:
    registry: Registry[int] = Registry("shape")
    registry.add("triangle", 3)
    registry.add("square", 4)
    return registry


def test_what_is_added_is_found(shapes: Any) -> None:
    assert shapes["triangle"] == 3
    assert "square" in shapes
    assert "circle" not in shapes
    assert list(shapes) == ["square", "triangle"]


def test_the_decorator_returns_what_it_registers(shapes: Any) -> None:
    def circle() -> Any:
        return 0

    assert shapes.register("circle")(circle) is circle
    assert shapes["circle"] is circle


def test_the_same_entry_may_be_added_again() -> None:
    entry = object()
    registry: Registry[object] = Registry("thing")
    assert registry.add("one", entry) is entry
    assert registry.add("one", entry) is entry


def test_a_taken_name_is_refused_and_keeps_its_entry(shapes: Any) -> None:
    with pytest.raises(SettingsError, match="shape 'triangle' is registered already; choose another name"):
        shapes.add("triangle", 300)
    assert shapes["triangle"] == 3


def test_a_false_entry_holds_its_name_too() -> None:
    registry: Registry[int] = Registry("number")
    registry.add("none", 0)
    with pytest.raises(SettingsError, match="number 'none' is registered already"):
        registry.add("none", 1)


def test_a_misspelt_name_is_corrected(shapes: Any) -> None:
    with pytest.raises(SettingsError, match=r"unknown shape 'triangel'; did you mean 'triangle'\? Known: square, tri"):
        shapes["triangel"]


def test_a_far_off_name_lists_all(shapes: Any) -> None:
    with pytest.raises(SettingsError, match=r"unknown shape 'zzz'\. Known: square, triangle") as raised:
        shapes["zzz"]
    assert "did you mean" not in str(raised.value)


def test_registries_are_apart(shapes: Any) -> None:
    assert "triangle" not in Registry("shape")


@pytest.mark.parametrize(
    ("registry", "names"),
    [
        (CODECS, {"fp32", "fp16", "int8", "fp8", "nf4", "fp4"}),
        (PIVOTS, {"last", "first", "mean", "first+mean", "all"}),
        (SIDE_NETWORKS, {"additive"}),
    ],
)
def test_what_the_package_brings(registry: Any, names: Any) -> None:
    assert names <= set(registry)
