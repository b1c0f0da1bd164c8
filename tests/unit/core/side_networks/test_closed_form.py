"""The closed form learns what can be read from vectors, and depends on the samples and the seed alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mobillm_flower.core.codecs import CODECS
from mobillm_flower.core.side_networks import (
    ActivationBatch,
    AlignmentSpec,
    ClosedFormSideNetwork,
    LabelledBatch,
    SideNetworkConfig,
    state_for,
)
from mobillm_flower.errors import MismatchError

TYPE, OTHER, WIDTH, BLOCKS, CLASSES = "a" * 64, "b" * 64, 8, 2, 3


def network(
    random_features: int = 64,
    *,
    input_norm: bool = True,
    types: dict[str, AlignmentSpec] | None = None,
    vector_scale: bool = False,
    outputs: int = CLASSES,
) -> ClosedFormSideNetwork:
    config = SideNetworkConfig(
        name="closed-form",
        types=types or {TYPE: AlignmentSpec(WIDTH, 1)},
        num_blocks=BLOCKS,
        width=WIDTH,
        bottleneck=4,
        num_outputs=outputs,
        input_norm=input_norm,
        random_features=random_features,
        vector_scale=vector_scale,
    )
    made = config.build()
    assert isinstance(made, ClosedFormSideNetwork)
    return made


def draw(count: int, seed: int, *, width: int = WIDTH) -> tuple[Tensor, Tensor]:
    """Rows [N, M, d] whose class is read from one direction, and from the sign of a product where that is small."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, BLOCKS, width, generator=generator)
    labels = torch.where(rows[:, 1, 0] > 0.7, 2, (rows[:, 0, 1] * rows[:, 0, 2] > 0).long())
    return rows, labels


def parts(
    rows: Tensor, labels: Tensor, *, size: int, name: str = TYPE, calibrate: bool = False, classes: int = CLASSES
) -> Iterator[LabelledBatch]:
    base = torch.full((len(rows), classes), 1 / classes)
    targets = functional.one_hot(labels, classes) - base
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        batch = ActivationBatch(name, rows[part])
        yield LabelledBatch(batch, labels[part], targets=targets[part], base=base[part], calibrate=calibrate)


def of_head(made: ClosedFormSideNetwork, name: str) -> Tensor:
    value: Tensor = made.state_dict()[f"heads.{TYPE}.{name}"]
    return value


def accuracy(made: ClosedFormSideNetwork, rows: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((made([ActivationBatch(TYPE, rows)]).argmax(1) == labels).float().mean())


def test_random_features_learn_what_no_linear_readout_can() -> None:
    train, test = draw(1500, 1), draw(1000, 2)
    scores = {}
    for count in (0, 1024):
        made = network(count)
        made.fit(parts(*train, size=100))
        scores[count] = accuracy(made, *test)
    assert scores[1024] > scores[0] + 0.1


@pytest.mark.parametrize("place", [0, 2500])
@pytest.mark.parametrize("times", [1e2, 1e5])
def test_a_sample_of_any_length_counts_as_one(place: int, times: float) -> None:
    """Before the centre is known and after; its label is true."""
    (rows, labels), test = draw(3000, 1), draw(1000, 2)
    honest = network(256, input_norm=False, vector_scale=True)
    honest.fit(parts(rows, labels, size=100))
    one = network(256, input_norm=False, vector_scale=True)
    one.fit(parts(torch.where(torch.arange(3000)[:, None, None] == place, times * rows, rows), labels, size=100))
    assert accuracy(honest, *test) > 0.75
    assert abs(accuracy(one, *test) - accuracy(honest, *test)) < 0.02


def test_an_untrained_one_leaves_the_base_model_as_it_is() -> None:
    made = network()
    assert made.fit([]) == []
    assert made([ActivationBatch(TYPE, draw(5, 0)[0])]).abs().max() == 0


@pytest.mark.parametrize("count", [30, 500])
def test_what_it_says_of_left_out_samples_is_near_what_it_does_on_new_ones(count: int) -> None:
    made = network()
    (fitted,) = made.fit(parts(*draw(count, 1), size=50))
    assert fitted.labels is not None
    left_out = float((fitted.scores.argmax(1) == fitted.labels).float().mean())
    assert left_out == pytest.approx(accuracy(made, *draw(2000, 2)), abs=3 / count**0.5 * 0.5)


def test_scores_that_are_added_to_log_probabilities_are_calibrated_on_left_out_samples() -> None:
    made = network()
    made.fit(parts(*draw(400, 1), size=100, calibrate=True))
    rows, labels = draw(2000, 2)
    with torch.no_grad():
        side = made([ActivationBatch(TYPE, rows)])
    losses = [float(functional.cross_entropy(factor * side, labels)) for factor in (0.7, 1.0, 1.4)]
    assert losses[1] == min(losses)


def test_it_does_not_depend_on_what_the_codec_does_to_values_that_hardly_vary() -> None:
    """A value that varies less than the codec's levels lie apart is one level in training, and another one after it."""
    rows, labels = draw(400, 1, width=64)
    rows[:, :, 5] = 0.03 + 0.001 * rows[:, :, 5]
    rows[:, :, 6] = 8.0
    codec = CODECS["nf4"]
    coded = codec.decode([codec.encode(row.flatten()) for row in rows], [rows[0].numel()] * len(rows)).reshape(
        rows.shape
    )
    made = network(0, types={TYPE: AlignmentSpec(64, 1)})
    made.fit(parts(coded, labels, size=100))
    assert accuracy(made, rows, labels) == pytest.approx(accuracy(made, coded, labels), abs=0.05)


def test_how_long_a_vector_is_tells_the_class_where_vectors_are_scaled_by_a_constant() -> None:
    """Of two alike texts the difference is short: a layer norm hides it, and so does a larger vector beside it."""
    rows, labels = draw(1000, 1)
    rows[:, 0] = 1000 * rows[:, 0] + 50
    lengths = 1e-3 * (1 + labels)
    rows[:, 1] = lengths[:, None] * (functional.normalize(rows[:, 1], dim=1) + 3)
    found = {}
    for scaled in (False, True):
        made = network(0, input_norm=not scaled, vector_scale=scaled)
        made.fit(parts(rows[:500], labels[:500], size=100))
        found[scaled] = accuracy(made, rows[500:], labels[500:])
    assert found[True] > 0.9
    assert found[False] < 0.7
    again = network(0, input_norm=False, vector_scale=True)
    again.load_state_dict(made.state_dict())
    assert accuracy(again, rows, labels) == accuracy(made, rows, labels)


def test_a_vector_that_is_always_the_same_is_of_no_use_and_no_harm() -> None:
    rows, labels = draw(400, 1)
    rows[:, 0] = 5.0
    made = network(0, input_norm=False, vector_scale=True)
    made.fit(parts(rows, labels, size=100))
    assert torch.isfinite(made([ActivationBatch(TYPE, rows)])).all()


def test_pivot_all_reads_the_mean_of_the_tokens() -> None:
    rows, _ = draw(6, 1)
    made = network(input_norm=False)
    made.fit(parts(*draw(50, 2), size=50))
    lengths = torch.tensor([1, 3, 2])
    with torch.no_grad():
        several = made([ActivationBatch(TYPE, rows, lengths)])
        means = torch.stack([part.mean(0) for part in rows.split(lengths.tolist())])
        torch.testing.assert_close(several, made([ActivationBatch(TYPE, means)]))


def test_each_type_has_its_own_head_and_a_download_carries_only_that() -> None:
    made = network(types={TYPE: AlignmentSpec(WIDTH, 1), OTHER: AlignmentSpec(4, 1)})
    rows, labels = draw(40, 1)
    fitted = made.fit([*parts(rows, labels, size=40), *parts(rows[:, :, :4], labels, size=40, name=OTHER)])
    assert [part.backbone for part in fitted] == [TYPE, OTHER]
    assert {name.split(".")[1] for name in state_for(made.state_dict(), OTHER)} == {OTHER}
    with pytest.raises(MismatchError, match=r"backbone c+ has no head"):
        made([ActivationBatch("c" * 64, rows)])
    with pytest.raises(MismatchError, match=r"shape \(2, 4\) a row, the side network takes \(2, 8\)"):
        made([ActivationBatch(TYPE, rows[:, :, :4])])


def test_three_classes_are_told_apart_by_a_linear_discriminant_of_all_columns() -> None:
    rows, labels = draw(900, 1)
    rows[labels == 2] *= 0.8
    made = network(0, input_norm=False)
    (fitted,) = made.fit(parts(rows, labels, size=100))
    z = rows.flatten(1).double() - rows.flatten(1).double().mean(0)
    counts = torch.bincount(labels).double()
    means = torch.stack([z[labels == k].mean(0) for k in range(CLASSES)])
    apart = z - means[labels]
    scatter = apart.T @ apart
    inverse = torch.linalg.inv(scatter + fitted.penalty * torch.eye(z.shape[1]).double())
    chance = (inverse @ scatter).trace() / counts
    weight = 900 * means @ inverse
    scores = z @ weight.T - 0.5 * ((weight * means).sum(1) - chance) + (counts / 900).log()
    with torch.no_grad():
        side = made([ActivationBatch(TYPE, rows)]).double()
    # up to a factor, and to a constant for each class from left-out samples
    expected, found = scores - scores.mean(1, keepdim=True), side - side.mean(1, keepdim=True)
    expected, found = expected - expected.mean(0), found - found.mean(0)
    factor = float((expected * found).sum() / expected.square().sum())
    assert factor > 0
    torch.testing.assert_close(found, factor * expected, rtol=1e-3, atol=1e-4)


def many_classes(each: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows of twenty classes, so many of each, whose means are hardly apart."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(20).repeat(each)
    means = 0.7 * torch.randn(20, BLOCKS, WIDTH, generator=torch.Generator().manual_seed(99))
    return means[labels] + torch.randn(len(labels), BLOCKS, WIDTH, generator=generator), labels


@pytest.mark.parametrize("each", [1, 2, 3])
def test_a_few_samples_of_each_class_are_better_than_chance(each: int) -> None:
    """Left-out scores of so few are on the wrong side of the mean: they must not turn the others round."""
    hits = []
    for seed in range(5):
        rows, labels = many_classes(each, seed)
        made = network(0, input_norm=False, outputs=20)
        made.fit(parts(rows, labels, size=100, classes=20))
        hits.append(accuracy(made, *many_classes(20, 100 + seed)))
    assert sum(hits) / len(hits) > 2 / 20


def test_predictions_do_not_depend_on_what_all_samples_weigh_together() -> None:
    rows, labels = draw(300, 1)
    labels[labels == 1] = 0  # classes of unequal size
    labels[:20] = 1
    sides = []
    for weight in (1.0, 0.01):
        made = network(0)
        made.fit(
            replace(part, weights=torch.full((len(part.targets),), weight))
            for part in parts(rows, labels, size=100)
            if part.targets is not None
        )
        with torch.no_grad():
            sides.append(made([ActivationBatch(TYPE, draw(500, 2)[0])]).argmax(1))
    assert float((sides[0] == sides[1]).double().mean()) > 0.98


def _varied(part: LabelledBatch) -> LabelledBatch:
    assert part.base is not None
    guessed = functional.one_hot(torch.arange(len(part.base)) % CLASSES, CLASSES)
    return replace(part, base=part.base.lerp(guessed.float(), 0.2))


@pytest.mark.parametrize(
    "changed",
    [lambda part: replace(part, protected=True), lambda part: replace(part, variance=0.1), _varied],
    ids=["labels are protected", "vectors have noise", "the backbone predicts"],
)
def test_columns_stay_the_ridge_regression_s_where_sums_of_classes_are_not_known(
    changed: Callable[[LabelledBatch], LabelledBatch],
) -> None:
    rows, labels = draw(600, 1)
    made, plain = network(), network()
    made.fit(changed(part) for part in parts(rows, labels, size=100))
    plain.fit(replace(changed(part), labels=None) for part in parts(rows, labels, size=100))
    assert torch.equal(of_head(made, "weight"), of_head(plain, "weight"))


@pytest.mark.parametrize("protected", [False, True])
def test_a_constant_for_each_class_is_fitted_only_to_labels_that_are_the_samples_own(protected: bool) -> None:
    rows, labels = draw(600, 1)
    made, plain = network(), network()
    made.fit(replace(_varied(part), protected=protected) for part in parts(rows, labels, size=100))
    plain.fit(replace(part, labels=None, base=None) for part in parts(rows, labels, size=100))
    assert torch.equal(of_head(made, "bias"), of_head(plain, "bias")) == protected
