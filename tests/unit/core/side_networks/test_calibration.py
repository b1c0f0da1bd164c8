"""Scores get the scale and the constants under which the labels of left-out samples are likeliest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mobillm_flower.core.side_networks.calibration import likeliest_scores

CLASSES = 4


def scores_of_a_class_told_badly(count: int) -> tuple[Tensor, Tensor]:
    """The scores of class 0 are a fifth of the others'."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    scores = functional.one_hot(labels, CLASSES).double() + 0.3 * torch.randn(
        count, CLASSES, dtype=torch.double, generator=generator
    )
    scores[:, 0] *= 0.2
    return scores, labels


@pytest.mark.parametrize("in_logits", [False, True])
def test_a_class_that_is_told_badly_is_predicted_as_often_as_it_occurs(in_logits: bool) -> None:
    scores, labels = scores_of_a_class_told_badly(4000)
    base = torch.full((len(scores), CLASSES), 1 / CLASSES)
    hits = {}
    for with_offsets in (False, True):
        factor, offsets = likeliest_scores(
            scores[:1000], labels[:1000], base[:1000], torch.ones(1000).double(), in_logits=in_logits,
            with_offsets=with_offsets,
        )  # fmt: skip
        predicted = (factor * scores + offsets).argmax(1)[1000:]
        hits[with_offsets] = float((predicted == labels[1000:]).double().mean())
        share = float((predicted == 0).double().mean() / (labels[1000:] == 0).double().mean())
        assert (share > 0.8) == with_offsets
    assert hits[True] > hits[False] + 0.1


def test_where_scores_are_added_to_probabilities_their_scale_stays() -> None:
    scores, labels = scores_of_a_class_told_badly(100)
    base = functional.normalize(scores.abs() + 0.1, p=1, dim=1)
    factor, _ = likeliest_scores(scores, labels, base, torch.ones(100).double(), in_logits=False, with_offsets=True)
    assert factor == 1


def test_samples_of_no_weight_say_nothing() -> None:
    scores, labels = scores_of_a_class_told_badly(200)
    base, weights = torch.full((200, CLASSES), 1 / CLASSES), torch.ones(200).double()
    weights[100:] = 0
    of_all = likeliest_scores(scores, labels.where(weights > 0, 3), base, weights, in_logits=True, with_offsets=True)
    of_some = likeliest_scores(scores[:100], labels[:100], base[:100], weights[:100], in_logits=True, with_offsets=True)
    torch.testing.assert_close(of_all[1], of_some[1])
    assert of_all[0] == pytest.approx(of_some[0])


def test_classes_that_are_told_equally_well_get_no_constant() -> None:
    scores, labels = scores_of_a_class_told_badly(100)
    scores, labels = (
        torch.cat([scores.roll(turn, 1) for turn in range(CLASSES)]),
        torch.cat([(labels + turn) % CLASSES for turn in range(CLASSES)]),
    )
    base, weights = torch.full((len(scores), CLASSES), 1 / CLASSES), torch.ones(len(scores)).double()
    _, offsets = likeliest_scores(scores, labels, base, weights, in_logits=False, with_offsets=True)
    assert offsets.abs().max() == 0


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_samples_whose_backbone_is_certain_of_another_class_do_not_make_constants_decide(share: float) -> None:
    scores, labels = scores_of_a_class_told_badly(600)
    scores[:, 0] *= 5
    base = torch.full((600, CLASSES), 1 / CLASSES)
    lying = int(share * 600)
    base[:lying] = functional.one_hot(labels[:lying], CLASSES).float()
    told = labels.clone()
    told[:lying] = torch.where(labels[:lying] == 0, 1, 2)
    _, fitted = likeliest_scores(scores, told, base, torch.ones(600).double(), in_logits=False, with_offsets=True)
    honest = slice(lying, None)
    hits = [
        float(((scores + offsets)[honest].argmax(1) == labels[honest]).double().mean())
        for offsets in (torch.zeros(CLASSES), fitted)
    ]
    assert hits[1] > hits[0] - 0.05


def test_a_constant_p_b_that_was_sent_in_half_precision_tells_nothing_of_the_label() -> None:
    scores, labels = scores_of_a_class_told_badly(600)
    hot = functional.one_hot(labels, CLASSES).float()
    base = torch.full((600, CLASSES), 0.3)
    read_back = hot - (hot - base).half().float()  # it differs in the column of the label
    assert not torch.equal(read_back, base)
    fitted, expected = (
        likeliest_scores(scores, labels, each, torch.ones(600).double(), in_logits=True, with_offsets=True)
        for each in (read_back, base)
    )
    assert fitted[0] == pytest.approx(expected[0])
    torch.testing.assert_close(fitted[1], expected[1])
