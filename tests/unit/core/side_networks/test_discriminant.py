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
