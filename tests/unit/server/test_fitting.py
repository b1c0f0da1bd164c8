"""A fit in closed form depends on the samples alone, not on order, partition, or what was fitted before."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mobillm_flower.core.codecs import CODECS
from mobillm_flower.core.side_networks import ClosedFormSideNetwork, FittedPart, LabelledBatch
from mobillm_flower.core.sparse import decode_samples
from mobillm_flower.privacy.ledger import Release
from mobillm_flower.runs.events import Epoch
from mobillm_flower.server.cache import ActivationCache
from mobillm_flower.server.plan import TrainingPlan
from mobillm_flower.server.trainer import Trainer
from tests.support.caches import fill, make_plan, make_samples, make_spec, scores


def closed_form(plan: TrainingPlan, **changes: Any) -> TrainingPlan:
    side = dataclasses.replace(plan.side_config, name="closed-form", random_features=32)
    return dataclasses.replace(plan, side_config=side, **changes)


def trainer(cache: ActivationCache, plan: TrainingPlan, **others: Any) -> Trainer:
    return plan.trainer(cache, scores=scores, memory_bytes=1 << 20, **others)


SPEC = make_spec()
SAMPLES = make_samples(60, SPEC)


@pytest.mark.parametrize("loss", ["square", "logit"])
def test_arrival_and_partition_do_not_matter(tmp_path: Path, loss: str) -> None:
    plan = closed_form(make_plan([SPEC]), loss=loss)
    states = []
    for number, (devices, shuffle) in enumerate([(1, 0), (5, 7), (60, 3)]):
        cache = fill(tmp_path / f"{number}.sqlite", SAMPLES, SPEC, num_devices=devices, shuffle_seed=shuffle)
        made = trainer(cache, plan)
        assert made.run_epochs()
        states.append(made.state)
    assert any(tensor.abs().max() > 0 for tensor in states[0].values())
    for state in states[1:]:
        assert all(torch.equal(tensor, states[0][name]) for name, tensor in state.items())


def test_no_device_chooses_which_samples_come_first(tmp_path: Path) -> None:
    """The order is neither that of digests nor one that stays when another device's sample is added."""
    plan = closed_form(make_plan([SPEC]))

    def places(samples: list[Release], name: str) -> list[int]:
        """The order in which a fit reads the first 59 samples."""
        made, read = trainer(fill(tmp_path / name, samples, SPEC), plan), list[bytes]()

        def record(samples: Iterable[LabelledBatch]) -> list[FittedPart]:
            read.extend(row.numpy().tobytes() for part in samples for row in part.batch.rows)
            return []

        assert isinstance(made.network, ClosedFormSideNetwork)
        made.network.fit = record  # type: ignore[method-assign]
        assert made.run_epochs()
        known = [decode(sample).tobytes() for sample in SAMPLES[:59]]
        return [known.index(one) for one in read if one in known]

    def decode(sample: Release) -> np.ndarray:
        (blocks, vectors, width) = SPEC.row_shape
        values = decode_samples([sample.activations], [blocks * vectors], width, CODECS[SPEC.codec], SPEC.keep)
        return values.reshape(blocks, vectors * width).numpy()

    few, more = places(SAMPLES[:59], "few.sqlite"), places(SAMPLES, "more.sqlite")
    assert sorted(few) == sorted(more) == list(range(59))
    assert few != more


def test_what_is_there_is_fitted_while_data_arrives_and_the_end_is_the_same(tmp_path: Path) -> None:
    cache = fill(tmp_path / "c.sqlite", SAMPLES, SPEC, num_rounds=4)
    plan, epochs = closed_form(make_plan([SPEC])), list[Epoch]()
    arriving, at_once = trainer(cache, plan, on_epoch=epochs.append), trainer(cache, plan)
    for round_ in range(1, 5):
        assert not arriving.overlap_step(round_)
        assert not arriving.overlap_step(round_)
    # nothing is held before round 1; 15, 30 and 45 samples before the others
    assert [epoch.epoch for epoch in epochs] == [1, 2, 3]
    assert not torch.equal(
        arriving.state[f"heads.{SPEC.backbone}.weight"], at_once.state[f"heads.{SPEC.backbone}.weight"]
    )
    assert arriving.run_epochs()
    assert at_once.run_epochs()
    assert all(torch.equal(tensor, at_once.state[name]) for name, tensor in arriving.state.items())


def test_a_fit_that_is_stopped_changes_nothing_and_is_made_when_the_run_goes_on(tmp_path: Path) -> None:
    cache = fill(tmp_path / "c.sqlite", SAMPLES, SPEC)
    plan = closed_form(make_plan([SPEC]))
    stopped = trainer(cache, plan, checkpoint=tmp_path / "checkpoint.pt")
    before = stopped.state
    assert not stopped.run_epochs(stop=lambda: True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in stopped.state.items())
    assert stopped.run_epochs()
    again = trainer(cache, plan, checkpoint=tmp_path / "checkpoint.pt")
    assert again.position.finished
    assert all(torch.equal(tensor, stopped.state[name]) for name, tensor in again.state.items())


def test_samples_of_a_device_above_the_cap_weigh_as_much_as_so_many(tmp_path: Path) -> None:
    """One device sends a sample ten times as ten releases; capped at one it counts once, as if it had sent one."""
    plan = make_plan([SPEC])
    capped = closed_form(plan, options=dataclasses.replace(plan.options, device_cap=1))
    few = fill(tmp_path / "few.sqlite", SAMPLES[:30], SPEC, num_devices=30)
    many = fill(tmp_path / "many.sqlite", SAMPLES[:30], SPEC, num_devices=30)
    release = [dataclasses.replace(SAMPLES[0], release=bytes([number]) * 16) for number in range(9)]
    owner = next(device for device in many.devices() if SAMPLES[0].release in many.held(device))
    many.add(owner, release, backbone=SPEC.backbone, round_=1)
    solved = {}
    for name, cache, of in (("few", few, capped), ("many", many, capped), ("uncapped", many, closed_form(plan))):
        made = trainer(cache, of)
        made.run_epochs()
        solved[name] = made.state[f"heads.{SPEC.backbone}.weight"]
    torch.testing.assert_close(solved["many"], solved["few"])
    assert not torch.allclose(solved["uncapped"], solved["few"], rtol=0.1)
