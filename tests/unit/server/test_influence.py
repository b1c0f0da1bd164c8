"""What one device can change: who contradicts the others is left out, whoever else it is, and however many it sends."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from mobillm_flower.privacy.ledger import Release
from mobillm_flower.server.cache import ActivationCache
from mobillm_flower.wire.target_bytes import decode_targets, encode_targets
from tests.support.caches import CLASSES, CONTRACT, make_plan, make_samples, make_spec, scores

SPEC = make_spec()
OF_EACH, DEVICES = 60, 8


def lying(samples: list[Release], *, times: int = 1, at_bound: bool = False) -> list[Release]:
    """Shift each label by one, and send it so many times under new releases; at its bound Δy is twice as long."""
    made = []
    for sample in samples:
        differences = decode_targets([sample.target], SPEC, CONTRACT).differences
        assert differences is not None
        labels, base = (differences.argmax(1) + 1) % CLASSES, differences * 0 + 1 / CLASSES
        if at_bound:
            base = torch.eye(CLASSES)[differences.argmax(1)]
        (target,) = encode_targets(labels, base, SPEC, CONTRACT)
        for number in range(times):
            release = bytes([number]) + sample.release[1:]
            made.append(dataclasses.replace(sample, target=target, release=release))
    return made


def used(folder: Path, of_devices: list[list[Release]], *, judge: bool = True, key: str = "") -> list[int]:
    """Return how many samples of each device are trained on."""
    cache = ActivationCache(folder / "cache.sqlite")
    for number, samples in enumerate(of_devices):
        cache.add(f"{number:032x}", samples, backbone=SPEC.backbone, round_=1)
    plan = make_plan([SPEC])
    plan = dataclasses.replace(plan, options=dataclasses.replace(plan.options, judge_devices=judge, validation_key=key))
    rows = plan.trainer(cache, scores=scores, memory_bytes=1 << 24).heard(cache.rows())
    by_number = np.bincount(rows.column("device"), minlength=len(of_devices))
    names = rows.names("device")
    cache.close()
    return [int(by_number[names.index(f"{number:032x}")]) for number in range(len(of_devices))]


def honest(count: int = DEVICES, *, of_each: int = OF_EACH) -> list[list[Release]]:
    return [make_samples(of_each, SPEC, seed=number) for number in range(count)]


@pytest.mark.parametrize("times", [1, 20])
@pytest.mark.parametrize("liars", [1, 2])
@pytest.mark.parametrize("key", ["", "ab" * 32])
@pytest.mark.parametrize("at_bound", [False, True])
def test_who_contradicts_the_others_is_left_out_however_much_it_sends(
    tmp_path: Path, times: int, liars: int, key: str, at_bound: bool
) -> None:
    devices = honest()
    for number in range(liars):
        devices[number] = lying(devices[number], times=times, at_bound=at_bound)
    expected = [0] * liars + [OF_EACH] * (DEVICES - liars)
    assert used(tmp_path, devices, key=key) == expected


def test_where_nobody_lies_all_rows_are_used_also_of_a_device_that_has_many(tmp_path: Path) -> None:
    devices = [*honest(), make_samples(6 * OF_EACH, SPEC, seed=77)]
    assert used(tmp_path, devices) == [OF_EACH] * DEVICES + [6 * OF_EACH]


def test_skewed_labels_are_no_lie(tmp_path: Path) -> None:
    """Each device has samples of one class alone."""
    pool = make_samples(40 * DEVICES, SPEC, seed=3)
    differences = decode_targets([sample.target for sample in pool], SPEC, CONTRACT).differences
    assert differences is not None
    of_class = [
        [s for s, k in zip(pool, differences.argmax(1).tolist(), strict=True) if k == c] for c in range(CLASSES)
    ]
    devices = [samples[part::2] for samples in of_class for part in (0, 1)]
    assert used(tmp_path, devices) == [len(samples) for samples in devices]


def test_what_is_doubted_counts_as_three_times_the_median(tmp_path: Path) -> None:
    """A device that says the same label of all its samples, whatever they are."""
    many = make_samples(10 * OF_EACH, SPEC, seed=50)
    one_target = [dataclasses.replace(sample, target=many[0].target) for sample in many]
    assert used(tmp_path, [*honest(), one_target]) == [OF_EACH] * DEVICES + [3 * OF_EACH]


def test_where_the_others_predict_nothing_a_device_of_many_samples_is_used(tmp_path: Path) -> None:
    """Labels at random: of nobody it is known whether they are right."""
    devices = [*honest(), make_samples(10 * OF_EACH, SPEC, seed=77)]
    targets = [sample.target for samples in devices for sample in samples]
    np.random.default_rng(0).shuffle(targets)
    of_all = iter(targets)
    devices = [[dataclasses.replace(sample, target=next(of_all)) for sample in samples] for samples in devices]
    assert used(tmp_path, devices) == [OF_EACH] * DEVICES + [10 * OF_EACH]


@pytest.mark.parametrize("devices", [1, 4])
def test_few_devices_are_not_judged(tmp_path: Path, devices: int) -> None:
    fleet = honest(devices)
    fleet[0] = lying(fleet[0], times=10)
    assert used(tmp_path, fleet) == [len(samples) for samples in fleet]


def test_where_half_lies_nobody_is_called_a_liar(tmp_path: Path) -> None:
    fleet = honest()
    fleet[: DEVICES // 2] = [lying(samples) for samples in fleet[: DEVICES // 2]]
    assert used(tmp_path, fleet) == [OF_EACH] * DEVICES


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    fleet = honest()
    fleet[0] = lying(fleet[0])
    assert used(tmp_path, fleet, judge=False) == [OF_EACH] * DEVICES
