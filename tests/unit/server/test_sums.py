"""Sums on the server: what no samples can have is refused by name, and what they have is solved exactly."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from mobillm_flower.clients.summing import sample_statistic, shortened
from mobillm_flower.core.sums import wrap
from mobillm_flower.core.targets import base_prediction, difference
from mobillm_flower.errors import PacketRejected
from mobillm_flower.privacy.accounting import sums_sigma
from mobillm_flower.privacy.discrete_gaussian import discrete_gaussian
from mobillm_flower.server.sums import check_sums, class_sums, noise_variances, solve_exact, solve_noised
from mobillm_flower.tasks.sums import INTERCEPT, room_for
from mobillm_flower.wire.sums import SumsSpec

WIDTH, OUTPUTS, COUNT = 10, 3, 60


def spec_of(**changes: object) -> SumsSpec:
    values: dict[str, object] = {"width": WIDTH, "num_outputs": OUTPUTS, "capacity": room_for(COUNT)}
    values |= {"min_samples": 5, "held_out": 0.0, "target_bound": 1.0}
    return SumsSpec(**{**values, **changes})  # type: ignore[arg-type]


def private(unit: str = "sample", rows: int = 0) -> SumsSpec:
    sigma = sums_sigma(4.0, 1e-5, device_rows=rows)
    own = {"intercept": INTERCEPT, "epsilon": 4.0, "delta": 1e-5, "sigma": sigma, "unit": unit, "device_rows": rows}
    return spec_of(width=WIDTH + 1, **own)


def samples(count: int = COUNT, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    rows = random.normal(size=(count, WIDTH))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    targets = np.eye(OUTPUTS)[random.integers(0, OUTPUTS, count)] - 1 / OUTPUTS
    return rows, targets


@pytest.mark.parametrize("spec", [spec_of(), private(), private("device", 5)])
def test_what_samples_give_is_taken(spec: SumsSpec) -> None:
    words = wrap(shortened(sample_statistic(*samples(), spec), spec), spec.scale.bits)
    assert check_sums(words, spec, most=COUNT) == (0 if spec.unit == "device" else COUNT)


def too_many(values: np.ndarray, _spec: SumsSpec) -> None:
    values[0] += 1


def long_vectors(values: np.ndarray, spec: SumsSpec) -> None:
    spec.shape.split(values)[3][:] *= 4


def no_sum_of_squares(values: np.ndarray, spec: SumsSpec) -> None:
    spec.shape.split(values)[3][1] += int(COUNT * spec.scale.levels**2 * 0.9)


def far_moment(values: np.ndarray, spec: SumsSpec) -> None:
    spec.shape.split(values)[4][0] += int(COUNT * spec.scale.levels**2)


def far_targets(values: np.ndarray, spec: SumsSpec) -> None:
    spec.shape.split(values)[2][:] = COUNT * spec.scale.levels


def negative(values: np.ndarray, spec: SumsSpec) -> None:
    spec.shape.split(values)[3][0] = -1


@pytest.mark.parametrize(
    ("lie", "rule"),
    [
        (too_many, "counts"),
        (long_vectors, "trace"),
        (no_sum_of_squares, "gram"),
        (negative, "gram"),
        (far_moment, "moment"),
        (far_targets, "targets"),
    ],
)
def test_what_no_samples_have_is_refused_by_name(lie: Callable[[np.ndarray, SumsSpec], None], rule: str) -> None:
    spec = spec_of()
    values = sample_statistic(*samples(), spec)
    lie(values, spec)
    with pytest.raises(PacketRejected, match=rule):
        check_sums(wrap(values, spec.scale.bits), spec, most=COUNT)


def test_sums_of_too_few_samples_are_refused() -> None:
    spec = spec_of()
    with pytest.raises(PacketRejected, match="from 5 to 60"):
        check_sums(wrap(sample_statistic(*samples(4), spec), spec.scale.bits), spec, most=COUNT)


def test_sums_of_vectors_beside_noise_are_refused() -> None:
    spec = private()
    values = sample_statistic(*samples(), spec)
    spec.shape.split(values)[1][0] = 1
    with pytest.raises(PacketRejected, match="beside noise"):
        check_sums(wrap(values, spec.scale.bits), spec, most=COUNT)


def test_the_solution_of_sums_is_ridge_regression_of_the_samples() -> None:
    spec = spec_of()
    rows, targets = samples(400)
    values = sample_statistic(rows, targets, spec_of(capacity=1 << 10))
    weight, bias, loss, count = solve_exact(wrap(values, 32), spec_of(capacity=1 << 10))
    centred, wanted = rows - rows.mean(0), targets - targets.mean(0)
    best = min(
        (
            np.linalg.solve(centred.T @ centred + penalty * np.eye(WIDTH), centred.T @ wanted)
            for penalty in 10.0 ** np.arange(-4, 4, 0.25)
        ),
        key=lambda one: float(np.abs(one - weight.numpy()).max()),
    )
    assert np.abs(best - weight.numpy()).max() < 0.1 * max(np.abs(best).max(), 1e-3)
    assert count == 400
    assert loss == pytest.approx(float(np.square(wanted).sum() / 400), rel=0.2)
    assert bias.numpy() == pytest.approx(targets.mean(0) - rows.mean(0) @ weight.numpy(), abs=1e-3)
    assert spec.shape.num_words == len(values)


def labelled(classes: int, count: int = 200) -> tuple[SumsSpec, np.ndarray, np.ndarray, np.ndarray]:
    """Return how sums of labels are made where p_b is constant, vectors, labels and targets."""
    spec = spec_of(num_outputs=classes, target_bound=round(math.sqrt(1 - 1 / classes), 9))
    random = np.random.default_rng(classes)
    rows = random.normal(size=(count, WIDTH))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    labels = random.integers(0, classes - 1, count)  # the last class has none
    base = base_prediction(None, count, classes)
    return spec, rows, labels, difference(torch.from_numpy(labels), base).double().numpy()


@pytest.mark.parametrize("classes", [2, 3, 7, 151])
def test_rounded_sums_still_hold_the_sums_of_each_class(classes: int) -> None:
    spec, rows, labels, targets = labelled(classes)
    words = wrap(sample_statistic(rows, targets, spec), spec.scale.bits)
    held = class_sums(words, spec)
    assert held is not None
    counts, of_classes = held
    whole, _ = spec.scale.rows(rows)
    assert counts.tolist() == np.bincount(labels, minlength=classes).tolist()
    for number in range(classes):
        assert of_classes[:, number].tolist() == whole[labels == number].sum(0).tolist()
    assert check_sums(words, spec, most=200) == 200


def half_a_label(values: np.ndarray, spec: SumsSpec) -> None:
    spec.shape.split(values)[2][:2] += np.array([1, -1])


def vectors_of_no_class(values: np.ndarray, spec: SumsSpec) -> None:
    spec.shape.split(values)[4][:, 0] += 1


def a_class_far_from_its_vectors(values: np.ndarray, spec: SumsSpec) -> None:
    _, _, _, _, moment = spec.shape.split(values)
    own_less_other = round(spec.scale.target_unit(spec.num_outputs) / spec.target_bound)
    step = own_less_other * int(40 * spec.scale.row_unit(WIDTH))
    moment[0, 0] += step
    moment[0, 1] -= step


def shorter_targets(values: np.ndarray, _spec: SumsSpec) -> None:
    values[2] -= 1


def longer_targets(values: np.ndarray, _spec: SumsSpec) -> None:
    values[2] += 1


@pytest.mark.parametrize(
    ("lie", "rule"),
    [
        (shorter_targets, "squares"),
        (longer_targets, "squares"),
        (half_a_label, "targets"),
        (vectors_of_no_class, "targets"),
        (a_class_far_from_its_vectors, "gram"),
    ],
)
def test_sums_that_no_labels_have_are_refused(lie: Callable[[np.ndarray, SumsSpec], None], rule: str) -> None:
    spec, rows, _, targets = labelled(3)
    values = sample_statistic(rows, targets, spec)
    lie(values, spec)
    with pytest.raises(PacketRejected, match=rule):
        check_sums(wrap(values, spec.scale.bits), spec, most=200)


def test_classes_are_told_apart_by_the_discriminant_unless_targets_are_no_plain_labels() -> None:
    spec, rows, labels, _ = labelled(4)  # three have samples
    rows[:, 0] += labels  # classes on a line
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    base = base_prediction(None, len(rows), 4)
    targets = difference(torch.from_numpy(labels), base).double().numpy()

    def solved(how: SumsSpec, *, discriminant: bool) -> torch.Tensor:
        return solve_exact(wrap(sample_statistic(rows, targets, how), 32), how, discriminant=discriminant)[0]

    one, other = (solved(spec, discriminant=chosen) for chosen in (True, False))
    assert not torch.allclose(one, other)
    unknown_base = spec_of(num_outputs=4, target_bound=round(2**0.5, 9))
    assert torch.equal(*(solved(unknown_base, discriminant=chosen) for chosen in (True, False)))


def weighted(values: np.ndarray, spec: SumsSpec) -> np.ndarray:
    """What the noise's σ is a multiple of: each word over its own noise's deviation, at σ = 1."""
    deviations = np.sqrt(noise_variances(spec)) / spec.sigma
    return np.asarray(np.divide(values, deviations, out=np.zeros(len(values)), where=deviations > 0))


def test_replacing_a_sample_moves_the_sums_by_at_most_the_sensitivity() -> None:
    spec, worst = private(), 0.0
    random = np.random.default_rng(0)
    for _ in range(400):
        rows = random.normal(size=(2, WIDTH)) * random.choice([0.1, 1.0, 10.0])
        targets = random.normal(size=(2, OUTPUTS)) * random.choice([0.1, 10.0])
        one, other = (sample_statistic(rows[[i]], targets[[i]], spec) for i in range(2))
        worst = max(worst, float(np.linalg.norm(weighted(one - other, spec))))
    assert worst <= math.sqrt(4.5)


def test_the_sensitivity_is_reached_by_some_pair() -> None:
    worst = 0.0
    for cosine in np.linspace(-1, 1, 201):
        for of_targets in (-1.0, 1.0):
            worst = max(worst, 2 - 2 * cosine**2 + 2 - 2 * cosine * of_targets)
    assert worst == pytest.approx(4.5, abs=1e-3)


def test_a_device_counts_for_no_more_than_its_rows() -> None:
    spec = private("device", 5)
    values = shortened(sample_statistic(*samples(), spec), spec)
    assert float(np.linalg.norm(weighted(values, spec))) <= math.sqrt(2) * 5
    assert values.any()


@pytest.mark.parametrize("devices", [1, 3])
def test_who_does_not_shorten_its_sums_is_refused(devices: int) -> None:
    spec = private("device", 5)
    own = shortened(sample_statistic(*samples(), spec), spec)
    check_sums(wrap(devices * own, spec.scale.bits), spec, most=300, devices=devices)
    lie = sample_statistic(*samples(40 * COUNT), spec)
    with pytest.raises(PacketRejected, match=r"norm: .* privacy.device-rows=5 at most"):
        check_sums(wrap(lie, spec.scale.bits), spec, most=40 * COUNT, devices=devices)


def test_no_word_overflows_under_noise() -> None:
    spec = private()
    deviations = np.sqrt(noise_variances(spec)).max()
    assert spec.capacity * spec.scale.levels**2 + 12 * deviations < 2 ** (spec.scale.bits - 1)


def test_a_strong_signal_survives_the_noise() -> None:
    spec = private()
    rows, _ = samples(COUNT)
    direction = np.eye(OUTPUTS)[(rows[:, 0] > 0).astype(int)] - 1 / OUTPUTS
    values = sample_statistic(np.repeat(rows, 500, 0), np.repeat(direction, 500, 0), spec)
    noised = values + discrete_gaussian(noise_variances(spec), key=bytes(32))
    weight, _ = solve_noised(noised, spec)
    scores = torch.from_numpy(rows) @ weight
    assert float((scores.argmax(1).numpy() == direction.argmax(1)).mean()) > 0.8
