"""What a type's labels, lying otherwise than the fleet's, do to training, and the correction for it."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from mobillm_flower.core.side_networks import (
    ActivationBatch,
    AlignmentSpec,
    SideNetworkConfig,
)
from mobillm_flower.core.side_networks.additive import FLEET_ALIGNMENT_RATE
from mobillm_flower.core.targets import predict_logit
from mobillm_flower.server import ActivationCache, BatchLoader, make_loss
from mobillm_flower.server.label_shift import LabelShift
from mobillm_flower.server.objective import MAX_WEIGHT
from mobillm_flower.wire.target_bytes import TargetBatch, decode_targets
from tests.support.caches import CLASSES, CONTRACT, fill, make_plan, make_samples, make_spec, train
from tests.support.present import present

ONE, OTHER = make_spec(width=16), make_spec(backbone="b" * 64)


def labels_of(samples: Any, spec: Any) -> Any:
    return present(decode_targets([sample.target for sample in samples], spec, CONTRACT).differences).argmax(1)


def skewed(count: Any, spec: Any, seed: int, *, common: Any, rare: float = 0.1) -> Any:
    """Samples of which those outside the `common` classes are mostly left out."""
    samples = make_samples(count, spec, seed=seed)
    labels = labels_of(samples, spec).tolist()
    return [
        s for i, (s, label) in enumerate(zip(samples, labels, strict=True)) if label in common or i % 10 < 10 * rare
    ]


@pytest.fixture
def fleet(tmp_path: Path) -> Any:
    """A cache of two types that see the same world, but other labels of it."""
    ones, others = skewed(1000, ONE, 1, common=(0, 1)), skewed(1000, OTHER, 2, common=(2, 3))
    cache = ActivationCache(tmp_path / "cache.sqlite")
    for round_ in (1, 2, 3):
        cache.add("a" * 32, ones[round_ - 1 :: 3], backbone=ONE.backbone, round_=round_)
    cache.add("c" * 32, others, backbone=OTHER.backbone, round_=2)
    counts = {spec.backbone: torch.bincount(labels_of(part, spec), minlength=CLASSES) for spec, part in
              ((ONE, ones), (OTHER, others))}  # fmt: skip
    return cache, counts


def loader_of(cache: Any) -> Any:
    return BatchLoader(cache, {ONE.backbone: ONE, OTHER.backbone: OTHER}, CONTRACT, memory_bytes=1 << 24)


def batch(spec: Any, count: Any) -> Any:
    return ActivationBatch(spec.backbone, torch.zeros(count, 3, spec.width))


def test_the_shift_is_the_log_ratio_of_a_types_labels_to_the_fleets(fleet: Any) -> None:
    cache, counts = fleet
    shift = LabelShift(loader_of(cache))
    shift.recount(cache.rows())
    found = present(shift([batch(OTHER, 2), batch(ONE, 1)]))
    assert found.shape == (3, CLASSES)
    total = sum(counts.values()).tolist()
    for row, spec in ((0, OTHER), (1, OTHER), (2, ONE)):
        own = counts[spec.backbone].tolist()
        for label in range(CLASSES):
            fleet_share = (total[label] + 1) / (sum(total) + CLASSES)
            share = (own[label] + fleet_share) / (sum(own) + 1)
            assert found[row, label].item() == pytest.approx(math.log(share / fleet_share), abs=1e-5)


def test_counting_round_by_round_is_counting_all(fleet: Any) -> None:
    cache, _ = fleet
    by_round, at_once = LabelShift(loader_of(cache)), LabelShift(loader_of(cache))
    for round_ in (1, 2, 3, 4, 5):
        by_round.count(cache.rows(before_round=round_), before_round=round_)
    at_once.recount(cache.rows())
    batches = [batch(ONE, 1), batch(OTHER, 1)]
    assert torch.equal(present(by_round(batches)), present(at_once(batches)))
    at_once.recount(cache.rows())
    assert torch.equal(present(by_round(batches)), present(at_once(batches)))


def test_one_type_alone_has_no_shift(tmp_path: Path) -> None:
    cache = fill(tmp_path / "cache.sqlite", make_samples(20, ONE), ONE)
    shift = LabelShift(loader_of(cache))
    assert shift([batch(ONE, 4)]) is None
    shift.recount(cache.rows())
    assert shift([batch(ONE, 4)]) is None


def test_the_losses_take_the_shift() -> None:
    torch.manual_seed(0)
    side, labels = torch.randn(5, CLASSES), torch.tensor([0, 1, 2, 3, 3])
    differences = torch.nn.functional.one_hot(labels, CLASSES) - torch.full((5, CLASSES), 1 / CLASSES)
    targets = TargetBatch(differences, None, None)
    shift = torch.randn(5, CLASSES)
    shift[4] = -50.0
    logit = make_loss(CONTRACT, objective="difference", loss="logit", scale=1.0)
    expected = torch.nn.functional.cross_entropy(side + shift + math.log(1 / CLASSES), labels)
    assert logit(side, targets, shift).item() == pytest.approx(expected.item(), rel=1e-5)
    square = make_loss(CONTRACT, objective="difference", loss="square", scale=3.0)
    weights = (-shift[torch.arange(5), labels]).exp().clamp_max(MAX_WEIGHT)
    assert weights[4] == MAX_WEIGHT
    expected = (weights * (3 * differences - side).square().sum(1)).mean()
    assert square(side, targets, shift).item() == pytest.approx(expected.item(), rel=1e-5)
    assert square(side, targets).item() == square(side, targets, torch.zeros_like(shift)).item()


@pytest.mark.parametrize("loss", ["logit", "square"])
def test_adjusting_helps_a_type_with_labels_that_it_seldom_saw(fleet: Any, loss: str) -> None:
    cache, _ = fleet
    accuracies = {}
    for adjust in (False, True):
        plan = make_plan([ONE, OTHER], epochs=20)
        options = dataclasses.replace(plan.options, adjust_types=adjust, planned_steps=500, learning_rate=1e-2)
        trainer = train(cache, dataclasses.replace(plan, loss=loss, options=options))
        tested = make_samples(300, ONE, seed=7)
        rare = [s for s, label in zip(tested, labels_of(tested, ONE).tolist(), strict=True) if label > 1]
        accuracies[adjust] = _accuracy(trainer.network, rare, cache.file.with_name(f"tested-{adjust}.sqlite"))
    assert accuracies[True] > accuracies[False] + 0.1


def _accuracy(network: Any, samples: Any, file: Path) -> Any:
    cache = ActivationCache(file)
    cache.add("a" * 32, samples, backbone=ONE.backbone, round_=1)
    batches, targets = loader_of(cache).load(cache.rows())
    network.eval()
    with torch.inference_mode():
        scores = predict_logit(network(batches), torch.ones(len(samples), CLASSES))
    return (scores.argmax(1) == targets.differences.argmax(1)).float().mean().item()


def test_types_that_start_from_the_identity_stay_near_it_in_a_fleet() -> None:
    def rate(types: Any, width: Any, joined: Any = (), name: str = "a") -> Any:
        config = SideNetworkConfig.of(types, width=width, name="additive", num_blocks=2, bottleneck=4, num_outputs=3)
        network: Any = dataclasses.replace(config, joined=joined).build()
        return network.learning_rate_factor(f"alignment.{name}.weight")

    wide, narrow, two = AlignmentSpec(8, 1), AlignmentSpec(4, 1), AlignmentSpec(8, 2)
    assert rate({"a": wide, "b": two}, 8) == rate({"a": wide, "b": two}, 8, name="b") == FLEET_ALIGNMENT_RATE
    assert rate({"a": narrow, "b": wide}, 8) > FLEET_ALIGNMENT_RATE  # starts at random
    assert rate({"a": two}, 8) > FLEET_ALIGNMENT_RATE
    # who joined late changes nothing for who was there
    assert rate({"a": two, "b": wide}, 8, joined=("b",)) == rate({"a": two}, 8)
    assert rate({"a": two, "b": wide}, 8, joined=("b",), name="b") == FLEET_ALIGNMENT_RATE
