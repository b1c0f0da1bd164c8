"""A sample's target as bytes, and the bounds that follow from the declared objective."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mobillm_flower.core.targets import base_prediction
from mobillm_flower.errors import PacketRejected
from mobillm_flower.wire.target_bytes import TargetBatch, check_targets, decode_targets, encode_targets, target_size
from tests.support.packets import make_contract, make_spec, random_targets, with_target
from tests.support.present import present

CLASSES = make_contract()
NUMBERS = make_contract(label_range=(1.0, 5.0))
DIFFERENCE = make_spec()
LABEL = make_spec(objective="label")
LABEL_AND_BASE = make_spec(objective="label", send_base=True)


@pytest.mark.parametrize(
    ("spec", "contract", "size"),
    [
        (DIFFERENCE, CLASSES, 6),
        (LABEL, CLASSES, 2),
        (LABEL_AND_BASE, CLASSES, 8),
        (DIFFERENCE, NUMBERS, 4),
        (LABEL, NUMBERS, 4),
        (LABEL_AND_BASE, NUMBERS, 8),
    ],
)
def test_sizes_and_round_trip(spec: Any, contract: Any, size: int) -> None:
    labels, base = random_targets(50, contract)
    blobs = encode_targets(labels, base, spec, contract)
    assert target_size(spec, contract) == size
    assert {len(blob) for blob in blobs} == {size}
    decoded = decode_targets(blobs, spec, contract)
    assert check_targets(decoded, contract) == ""
    tolerance = 0 if contract.is_regression else 2**-11
    if spec.objective == "difference":
        assert decoded.labels is None
        assert decoded.base is None
        expected = labels[:, None] - base if contract.is_regression else torch.eye(3)[labels] - base
        assert (present(decoded.differences) - expected).abs().max() <= tolerance
        return
    assert decoded.differences is None
    assert torch.equal(present(decoded.labels), labels[:, None] if contract.is_regression else labels)
    if spec.send_base:
        assert (present(decoded.base) - base).abs().max() <= tolerance
    else:
        assert decoded.base is None


def test_layout_is_little_endian() -> None:
    base = torch.tensor([[0.5, 0.25, 0.25]])
    assert encode_targets(torch.tensor([1]), base, LABEL_AND_BASE, CLASSES) == [bytes.fromhex("0100" + "003800340034")]
    assert encode_targets(torch.tensor([1]), base, DIFFERENCE, CLASSES) == [bytes.fromhex("00b8003a00b4")]
    assert encode_targets(torch.tensor([2.5]), torch.tensor([[1.0]]), DIFFERENCE, NUMBERS) == [
        bytes.fromhex("0000c03f")
    ]


def test_many_classes_survive_half_precision() -> None:
    contract = make_contract(labels=tuple(str(i) for i in range(1000)))
    labels, base = random_targets(20, contract)
    for spec in (DIFFERENCE, LABEL_AND_BASE):
        decoded = decode_targets(encode_targets(labels, base, spec, contract), spec, contract)
        assert check_targets(decoded, contract) == ""
    constant = torch.full((20, 1000), 1 / 1000)
    decoded = decode_targets(encode_targets(labels, constant, DIFFERENCE, contract), DIFFERENCE, contract)
    assert check_targets(decoded, contract) == ""
    assert torch.equal(present(decoded.differences).argmax(1), labels)


def differences(*rows: list[float]) -> TargetBatch:
    return TargetBatch(torch.tensor(rows), None, None)


@pytest.mark.parametrize(
    "row",
    [
        [1.0, -1.0, 0.0],  # the base model was certain of another class
        [0.0, 0.0, 0.0],  # certain, and right
        [-0.25, 0.5, -0.25],
        [-1 / 3, 2 / 3, -1 / 3],
    ],
)
def test_possible_differences(row: list[float]) -> None:
    assert check_targets(differences(row), CLASSES) == ""


@pytest.mark.parametrize(
    "row",
    [
        [0.5, 0.5, -1.0],  # two labels
        [0.5, -0.25, 0.0],  # does not sum to 0
        [-0.5, -0.5, 0.0],
        [1.5, -1.0, -0.5],  # more than a whole label
        [0.5, -0.25, -0.26],
        [float("nan"), 0.0, 0.0],
        [float("inf"), -float("inf"), 0.0],
    ],
)
def test_impossible_differences(row: list[float]) -> None:
    good = [-0.25, 0.5, -0.25]
    wrong = check_targets(differences(good, row), CLASSES)
    assert wrong in ("a difference is not onehot(y) − p_b for any distribution p_b", "a difference is not finite")


def test_labels_and_base_of_a_classification() -> None:
    good, base = torch.tensor([0, 2]), torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    assert check_targets(TargetBatch(None, good, None), CLASSES) == ""
    assert check_targets(TargetBatch(None, good, base), CLASSES) == ""
    assert check_targets(TargetBatch(None, good + 1, base), CLASSES) == "a label is not below 3"
    for row in ([0.6, 0.6, 0.0], [1.2, -0.2, 0.0], [0.0, 0.0, 0.0], [-0.01, 0.51, 0.5]):
        bad = TargetBatch(None, good, torch.tensor([row, row]))
        assert check_targets(bad, CLASSES) == "a base prediction is not a distribution"
    assert check_targets(TargetBatch(None, good, base * float("nan")), CLASSES) == "a base is not finite"


def test_where_a_backbone_predicts_nothing_no_sample_says_that_it_does() -> None:
    labels, third = torch.tensor([0, 2]), torch.full((2, 3), 1 / 3)
    other = torch.tensor([[1 / 3, 1 / 3, 1 / 3], [0.4, 0.3, 0.3]])
    for spec in (DIFFERENCE, LABEL_AND_BASE):
        sent, lie = (
            decode_targets(encode_targets(labels, base, spec, CLASSES), spec, CLASSES) for base in (third, other)
        )
        assert check_targets(sent, CLASSES, constant=True) == ""
        assert check_targets(lie, CLASSES) == ""
        assert check_targets(lie, CLASSES, constant=True).startswith("p_b is not 1/3")
    turned = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0))).Q
    honest = TargetBatch((torch.eye(3)[labels] - third) @ turned, None, None)
    assert check_targets(honest, CLASSES, mixed=True, constant=True) == ""
    longer = TargetBatch(torch.tensor([[1.0, -1.0, 0.0]]) @ turned, None, None)
    assert check_targets(longer, CLASSES, mixed=True) == ""
    assert check_targets(longer, CLASSES, mixed=True, constant=True) == "a rotated difference is longer than 0.816"


def test_bounds_of_a_regression() -> None:
    """Labels lie in the range; a difference is at most the reach, from the constant base prediction 0 too."""
    assert check_targets(TargetBatch(None, torch.tensor([[1.0], [5.0]]), None), NUMBERS) == ""
    for value in (0.99, 5.01):
        assert check_targets(TargetBatch(None, torch.tensor([[value]]), None), NUMBERS) == "a label is outside 1 to 5"
    assert check_targets(differences([5.0], [-5.0], [0.0]), NUMBERS) == ""
    for value in (5.01, -5.01):
        wrong = check_targets(differences([value]), NUMBERS)
        assert wrong == "a difference is beyond ±5, the reach of label range 1 to 5"
    assert check_targets(differences([float("nan")]), NUMBERS) == "a difference is not finite"
    assert check_targets(TargetBatch(None, torch.tensor([[float("inf")]]), None), NUMBERS) == "a label is not finite"


@pytest.mark.parametrize("label_range", [(0.0, 0.1), (-0.3, 0.7), (10.0, 20.0), (-7.0, -3.0), (-1.0, 1.0)])
def test_both_ends_of_a_range_are_inside(label_range: tuple[float, float]) -> None:
    contract = make_contract(label_range=label_range)
    labels = torch.tensor(label_range)
    for base in (torch.zeros(2, 1), labels.flip(0)[:, None]):
        for spec in (DIFFERENCE, LABEL, LABEL_AND_BASE):
            decoded = decode_targets(encode_targets(labels, base, spec, contract), spec, contract)
            assert check_targets(decoded, contract) == ""


def test_a_head_that_overshoots_the_range_is_no_offence() -> None:
    """A trained regression head is not bounded; what an honest device makes of it must pass the server's check."""
    labels, logits = torch.tensor([1.0, 5.0]), torch.tensor([[6.3], [-0.4]])
    base = base_prediction(logits, 2, 1, label_range=NUMBERS.label_range)
    assert base.tolist() == [[5.0], [1.0]]
    for spec in (DIFFERENCE, LABEL_AND_BASE):
        decoded = decode_targets(encode_targets(labels, base, spec, NUMBERS), spec, NUMBERS)
        assert check_targets(decoded, NUMBERS) == ""


def test_bounds_are_enforced_on_a_window() -> None:
    target = np.array([9.0], "<f4").tobytes()
    with pytest.raises(PacketRejected, match="targets: a difference is beyond ±5"):
        with_target(target, spec=DIFFERENCE, contract=NUMBERS).open()
    with pytest.raises(PacketRejected, match="targets: a label is outside 1 to 5"):
        with_target(target, spec=LABEL, contract=NUMBERS).open()
    honest = np.array([4.0], "<f4").tobytes()
    assert with_target(honest, spec=LABEL, contract=NUMBERS).open().samples[0].target == honest
