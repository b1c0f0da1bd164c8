"""The closed-form side network finds class means under every mechanism's noise."""

from typing import Any

import numpy as np
import pytest
import torch

from mobillm_flower.core.side_networks import (
    ActivationBatch,
    AlignmentSpec,
    LabelledBatch,
    SideNetworkConfig,
    state_for,
)
from mobillm_flower.core.side_networks.class_scores import discriminant_of_ridge
from mobillm_flower.core.side_networks.ridge import SolvedSums, Sums
from mobillm_flower.errors import ArgumentError
from mobillm_flower.privacy.protect import Protection

WIDTH, CLASSES, TYPE = 16, 3, "a" * 64
MECHANISMS = {
    "none": Protection(CLASSES),
    "joint": Protection(CLASSES, joint_epsilon=6.0),
    "labels": Protection(CLASSES, label_epsilon=1.5),
    "gaussian": Protection(CLASSES, clip_norm=1.0, sigma=0.8),
    "both": Protection(CLASSES, clip_norm=1.0, sigma=0.8, label_epsilon=2.0),
}


def network(classes: Any = CLASSES, **types: Any) -> Any:
    types = types or {TYPE: AlignmentSpec(WIDTH, 1)}
    return SideNetworkConfig(
        name="discriminant", types=types, num_blocks=1, width=WIDTH, bottleneck=4, num_outputs=classes
    ).build()


def draw(count: Any, seed: int) -> Any:
    """Unit vectors around a mean of each class; the classes are of unequal size."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(42))
    labels = torch.multinomial(torch.tensor([0.5, 0.3, 0.2]), count, replacement=True, generator=generator)
    vectors = 0.9 * centres[labels] + torch.randn(count, WIDTH, generator=generator)
    return torch.nn.functional.normalize(vectors.double(), dim=1), labels


def fitted(protection: Any, count: Any) -> Any:
    vectors, labels = draw(count, seed=1)
    keys = [number.to_bytes(32, "big") for number in range(count)]
    noisy, released = protection([v.reshape(1, 1, 1, -1) for v in vectors], labels, keys)
    head = network()
    batch = ActivationBatch(TYPE, torch.cat(noisy).flatten(2))
    head.fit([LabelledBatch(batch, released, protection.label_rates, protection.mixture, protection.variance)])
    return head, released, labels


@pytest.mark.parametrize("name", MECHANISMS)
def test_it_predicts_clean_samples_from_protected_ones(name: str) -> None:
    head, released, labels = fitted(MECHANISMS[name], 4000)
    vectors, tested = draw(2000, seed=2)
    scores = head([ActivationBatch(TYPE, vectors.float()[:, None, :])])
    accuracy = (scores.argmax(1) == tested).float().mean().item()
    assert accuracy > 0.75  # half of them are of the largest class
    kept, _ = MECHANISMS[name].label_rates
    assert (released == labels).float().mean().item() == pytest.approx(kept, abs=0.03)


def test_shares_are_corrected_for_randomized_labels() -> None:
    head, released, _ = fitted(MECHANISMS["labels"], 4000)
    clean, _, _ = fitted(MECHANISMS["none"], 4000)
    assert np.bincount(released.numpy())[0] / 4000 < 0.45
    biases = head.heads[TYPE].bias - clean.heads[TYPE].bias
    assert biases.abs().max() < 0.6


def test_without_samples_it_is_the_base_model() -> None:
    head = network()
    head.fit([])
    assert head([ActivationBatch(TYPE, torch.randn(5, 1, WIDTH))]).abs().max() == 0


def test_each_type_has_its_own_head_and_a_download_carries_only_that() -> None:
    other = "b" * 64
    both = network(**{TYPE: AlignmentSpec(WIDTH, 1), other: AlignmentSpec(8, 1)})
    assert set(state_for(both.state_dict(), other)) == {f"heads.{other}.weight", f"heads.{other}.bias"}
    config = SideNetworkConfig(
        name="discriminant",
        types={TYPE: AlignmentSpec(WIDTH, 1), other: AlignmentSpec(8, 1)},
        num_blocks=1,
        width=8,
        bottleneck=4,
        num_outputs=CLASSES,
    )
    config.only(other).build().load_state_dict(state_for(both.state_dict(), other))


def test_several_vectors_a_sample_or_numbers_are_refused() -> None:
    with pytest.raises(ArgumentError, match="num_vectors=2 must be 1"):
        network(**{TYPE: AlignmentSpec(WIDTH, 2)})
    with pytest.raises(ArgumentError, match="num_outputs=1 is too few: discriminant predicts classes"):
        network(classes=1)


def test_sums_do_not_depend_on_how_samples_are_grouped() -> None:
    vectors, labels = draw(200, seed=3)
    once, parts = network().empty_sums(TYPE), network().empty_sums(TYPE)
    once.add(labels, vectors)
    for start in range(0, 200, 37):
        parts.add(labels[start : start + 37], vectors[start : start + 37])
    assert torch.equal(once.counts, parts.counts)
    assert torch.allclose(once.sums, parts.sums)


def class_sums(rows: torch.Tensor, labels: torch.Tensor, classes: int) -> Sums:
    sums = Sums(rows.shape[1], classes, torch.device("cpu"))
    targets = torch.nn.functional.one_hot(labels, classes).double() - 1 / classes
    sums.add(rows, targets, torch.ones(len(rows)).double())
    return sums


def discriminant(sums: Sums, solved: SolvedSums, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    counts = torch.bincount(labels, minlength=len(solved.bias))
    scores = discriminant_of_ridge(
        solved.explained,
        solved.weight.T @ solved.weight,
        *2 * [counts],
        penalty=solved.penalty,
        freedom=solved.freedom(),
    )
    bias = (solved.bias - sums.targets / sums.weight) @ scores.turn + scores.bias
    return scores.factor * solved.weight @ scores.turn, scores.factor * bias


def unit_rows(*clusters: tuple[int, torch.Tensor, float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return vectors of norm 1 around a centre each, of so many samples and spread, and the cluster of each."""
    generator = torch.Generator().manual_seed(0)
    parts = [
        centre + spread * torch.randn(count, len(centre), generator=generator).double()
        for count, centre, spread in clusters
    ]
    labels = torch.cat([torch.full((count,), number) for number, (count, _, _) in enumerate(clusters)])
    return torch.nn.functional.normalize(torch.cat(parts)), labels


def test_of_two_classes_the_discriminant_weighs_as_the_ridge_regression_does() -> None:
    centres = torch.eye(6).double()
    rows, labels = unit_rows((40, centres[0], 0.4), (110, centres[1], 0.4))
    sums = class_sums(rows, labels, 2)
    solved = sums.choose()
    weight, bias = discriminant(sums, solved, labels)
    torch.testing.assert_close(weight, solved.weight)
    of_both = [(rows @ w + b).argmax(1) for w, b in ((weight, bias), (solved.weight, solved.bias))]
    assert float((of_both[0] == of_both[1]).double().mean()) > 0.97


def test_the_discriminant_of_a_ridge_regression_is_that_of_the_samples() -> None:
    centres = torch.eye(6).double()
    rows, labels = unit_rows((30, centres[0], 0.4), (50, centres[1], 0.4), (20, centres[2], 0.4))
    sums = class_sums(rows, labels, 3)
    solved = sums.choose()
    weight, bias = discriminant(sums, solved, labels)
    means = torch.stack([rows[labels == k].mean(0) for k in range(3)])
    apart = rows - means[labels]
    scatter = apart.T @ apart
    inverse = torch.linalg.inv(scatter + solved.penalty * torch.eye(6).double())
    expected = torch.stack(
        [
            100 * (z @ inverse @ mean - 0.5 * (mean @ inverse @ mean - (inverse @ scatter).trace() / count / 100))
            + torch.tensor(count / 100).log()
            for z in rows - rows.mean(0)
            for mean, count in zip(means - rows.mean(0), (30, 50, 20), strict=True)
        ]
    ).view(100, 3)
    expected -= expected.mean(1, keepdim=True)
    scores = rows @ weight + bias
    factor = float((scores * expected).sum() / expected.square().sum())
    assert factor > 0
    torch.testing.assert_close(scores, factor * expected, rtol=1e-4, atol=1e-5)


def test_a_class_between_the_others_is_found_which_least_squares_leaves_out() -> None:
    """Masking: the middle one of three classes on a line is never the largest of a linear regression of indicators."""
    labels = torch.arange(3).repeat_interleave(100)
    rows = 0.05 * torch.randn(300, 4, generator=torch.Generator().manual_seed(0)).double()
    rows[:, 0] += 0.5 * (labels - 1)
    sums = class_sums(rows, labels, 3)
    solved = sums.choose()
    weight, bias = discriminant(sums, solved, labels)
    middle = labels == 1
    assert float(((rows @ solved.weight + solved.bias).argmax(1) == 1)[middle].double().mean()) < 0.6
    assert float(((rows @ weight + bias).argmax(1) == labels).double().mean()) > 0.95


def test_of_equal_texts_the_most_frequent_class_is_predicted() -> None:
    rows, labels = torch.eye(4).double()[:1].repeat(30, 1), torch.tensor([0] * 8 + [1] * 16 + [2] * 6)
    sums = class_sums(rows, labels, 4)
    weight, bias = discriminant(sums, sums.choose(), labels)
    assert (rows @ weight + bias).argmax(1).unique().tolist() == [1]


def test_a_class_without_samples_is_never_predicted() -> None:
    centres = torch.eye(6).double()
    rows, labels = unit_rows((30, centres[0], 0.4), (50, centres[1], 0.4), (20, centres[3], 0.4))
    labels[labels == 2] = 3
    sums = class_sums(rows, labels, 5)
    weight, bias = discriminant(sums, sums.choose(), labels)
    anything = 10 * torch.randn(500, 6, generator=torch.Generator().manual_seed(0)).double()
    assert set((anything @ weight + bias).argmax(1).tolist()) == {0, 1, 3}
