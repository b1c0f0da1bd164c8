"""Attacks on sums: they read few samples, and no more than the baseline of many."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from mobillm_flower import load_settings
from mobillm_flower.audit.attacks.sums import SumsAttack, check_sums_noise
from mobillm_flower.audit.draw import QUICK, load_devices
from mobillm_flower.audit.sums import audit_sums
from mobillm_flower.backbones import load_backbone
from mobillm_flower.clients.summing import sample_statistic
from mobillm_flower.privacy.accounting import sums_sigma
from mobillm_flower.reports.audit import audit_section
from mobillm_flower.tasks.sums import room_for
from mobillm_flower.wire.sums import SumsSpec
from tests.support.runs import tiny_config
from tests.support.tiny_models import save_tiny

WIDTH = 40


def attacked(count: int) -> tuple[SumsAttack, np.ndarray, np.ndarray]:
    random = np.random.default_rng(count)
    rows = random.normal(size=(count, WIDTH))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    labels = random.integers(0, 2, count)
    spec = SumsSpec(WIDTH, 2, room_for(count), 1, 0.0, 2**0.5)
    return SumsAttack(sample_statistic(rows, np.eye(2)[labels] - 0.5, spec), spec), rows, labels


@pytest.mark.parametrize("count", [2, 10, 20])
def test_labels_and_members_of_few_samples_are_read(count: int) -> None:
    attack, rows, labels = attacked(count)
    others = np.random.default_rng(1).normal(size=(50, WIDTH))
    others /= np.linalg.norm(others, axis=1, keepdims=True)
    assert attack.labels(rows, labels).value == 1.0
    assert attack.membership(rows, others).value > 0.99


def test_random_labels_of_many_samples_are_not_and_members_hardly() -> None:
    attack, rows, labels = attacked(4000)
    others = np.random.default_rng(1).normal(size=(4000, WIDTH))
    others /= np.linalg.norm(others, axis=1, keepdims=True)
    assert attack.labels(rows, labels).value < 0.6
    assert attack.membership(rows, others).value < 0.7  # a sample weighs 1 in 100 of each dimension


@pytest.mark.parametrize("unit", ["sample", "device"])
def test_draws_of_the_noise_leave_the_claim_standing_and_those_of_too_little_do_not(unit: str) -> None:
    rows = 10 if unit == "device" else 0
    sigma = sums_sigma(2.0, 1e-5, device_rows=rows)
    spec = SumsSpec(WIDTH, 2, room_for(100), 1, 0.0, 1.0, 0.2, 2.0, 1e-5, sigma, unit, rows)
    check = check_sums_noise(spec, draws=20_000)
    assert 0.3 < check.lower <= 2.0
    assert check.holds
    broken = check_sums_noise(dataclasses.replace(spec, sigma=sigma / 8), draws=20_000)
    assert not broken.holds


def test_an_audit_of_sums_reads_few_samples_says_what_is_refused_and_is_in_the_report(tmp_path: Path) -> None:
    backbone = save_tiny(tmp_path / "backbone", "bert")
    config = tiny_config(tmp_path / "run", backbone, activations__projection=24, data__max_samples=60)
    config = {key: value for key, value in config.items() if key != "side-network.bottleneck"}
    settings = load_settings({**config, "preset": "analytic", "privacy.central-epsilon": 4.0})
    devices = load_devices(settings)
    size = dataclasses.replace(QUICK, seeds=1, uploads=60, draws=5000)
    result = audit_sums(settings, devices, load_backbone(str(backbone), device="cpu"), size, run=False, say=print)
    few, _, ten, *_, noised = result["sums"]
    assert noised["noised"]
    assert noised["attacks"]["whether a text is in it"]["value"] < 0.8  # without noise all of them are found
    assert few["refused"]
    assert not ten["refused"]
    assert few["attacks"]["labels of known texts"]["value"] == 1.0
    assert few["attacks"]["which of 100 suspected texts is in it"]["value"] == 1.0
    assert all(check["holds"] for check in result["epsilon_checks"])
    section = str(audit_section(result))
    assert "The sum of one sample is the sample" in section
    assert "1, refused" in section
    assert ", noised" in section
    assert "With the noise, sums of" in section
