"""What a fleet takes from what its devices say of themselves."""

from __future__ import annotations

import dataclasses
import random
import statistics
from typing import Any

import pytest

from mobillm_flower import load_settings
from mobillm_flower.core.backbone_info import BackboneInfo
from mobillm_flower.strategies.agreement import MAX_TYPES, Agreement
from mobillm_flower.strategies.device_state import DeviceState
from mobillm_flower.strategies.fleet import Fleet, _medians_of_others
from mobillm_flower.wire.contract import TaskContract
from mobillm_flower.wire.messages import DeviceDescription

CONTRACT = TaskContract("classification", ("a", "b"), "", (), 128, (), "accuracy")


def fleet_of(sizes: list[int], fingerprints: list[str] | None = None, settings: dict[str, Any] | None = None) -> Fleet:
    agreement = Agreement(load_settings(settings or {}), lambda _contract, _types: None)
    fleet = Fleet(agreement, max_strikes=3, max_failures=3, on_event=lambda _event: None)
    for node, size in enumerate(sizes):
        name = fingerprints[node] if fingerprints else "f" * 64
        info = BackboneInfo("m", "bert", False, 2, 8, "fp32", name, "constant")
        fleet.devices[node] = DeviceState(node, DeviceDescription(f"{node:032x}", info, CONTRACT, size, 0))
        fleet._nodes[f"{node:032x}"] = node
    return fleet


@pytest.mark.parametrize(
    ("said", "believed"),
    [
        ([20, 20, 20], [20, 20, 20]),
        ([10**8, 20, 20], [200, 20, 20]),
        ([10**8, 10**8, 20, 20, 20], [200, 200, 20, 20, 20]),  # two that lie together
        ([500, 20, 30, 90], [300, 20, 30, 90]),
        ([1000, 900, 20], [1000, 900, 20]),  # with so few, none is out of the ordinary
        ([7], [7]),
        ([7, 0, 0], [7, 0, 0]),  # nobody to compare it with
    ],
)
def test_a_size_counts_to_ten_times_the_median_of_the_others(said: list[int], believed: list[int]) -> None:
    assert fleet_of(said).sizes() == believed


def test_the_median_of_the_others_is_that_of_a_list_without_the_device() -> None:
    drawn = random.Random(0)
    sizes = [drawn.choice([0, 3, 8, 8, 21, 400]) for _ in range(40)]
    for some in (sizes[:2], sizes[:3], sizes[:9], sizes):
        for place, median in enumerate(_medians_of_others(some)):
            others = [size for size in some[:place] + some[place + 1 :] if size]
            assert not some[place] or median == int(statistics.median(others or [some[place]]))


def test_where_p_b_comes_from_is_what_most_devices_of_a_type_say_and_not_the_first() -> None:
    fleet = fleet_of([20] * 5)
    liar = fleet.devices[0].description
    lie = dataclasses.replace(liar.backbone, base_prediction="classifier")
    fleet.devices[0].description = dataclasses.replace(liar, backbone=lie)
    fleet.settle()
    assert len(fleet) == 5  # devices of a type may differ in it
    assert [info.base_prediction for info in fleet.backbones.values()] == ["constant"]


@pytest.mark.parametrize(
    ("counts", "backbone", "taken"),
    [
        ((9, 1), "minilm", 1),
        ((5, 1), "minilm", 1),
        ((4, 1), "minilm", 2),
        ((8, 2, 1), "minilm", 2),
        ((1, 1), "minilm", 2),
        ((9, 1), "by-partition", 2),
    ],
)
def test_where_one_model_is_named_a_type_of_few_devices_is_refused(
    counts: tuple[int, ...], backbone: str, taken: int
) -> None:
    """A type shapes the layers that all are asked for, and which side network there is."""
    names = [f"{number:064x}" for number, count in enumerate(counts) for _ in range(count)]
    fleet = fleet_of([20] * len(names), names, {"backbone.name": backbone, "backbone.choices": "a@1,b@2"})
    fleet.settle()
    assert len(fleet.backbones) == taken
    assert len(fleet) == sum(counts[:taken])
    assert all("names one model for all" in reason for reason in fleet.reasons)


def test_a_run_takes_the_types_of_most_devices_up_to_a_bound() -> None:
    names = [f"{i:064x}" for i in range(MAX_TYPES + 3)]
    fleet = fleet_of([1] * (2 * len(names) - 1), [*names, *names[1:]])
    fleet.settle()
    kept = {device.description.backbone.fingerprint for device in fleet}
    assert len(kept) == MAX_TYPES
    assert names[0] not in kept  # the only one that a single device has
