"""Federated training is centralized training: bit for bit, whatever the order, the partition, the interruptions."""

import dataclasses
import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from mobillm_flower.errors import CacheError
from mobillm_flower.server import ActivationCache, BatchLoader
from mobillm_flower.server.plan import TrainingPlan, plan_what_is_held, replay, train_again
from mobillm_flower.server.rows import Rows
from mobillm_flower.server.sampler import draw_order, split_validation
from tests.support.caches import (
    BACKBONE,
    CONTRACT,
    fill,
    make_plan,
    make_samples,
    make_spec,
    scores,
    state_bytes,
    train,
)
from tests.support.present import present


@pytest.fixture(scope="module")
def spec() -> Any:
    return make_spec()


@pytest.fixture(scope="module")
def samples(spec: Any) -> Any:
    return make_samples(150, spec)


@pytest.mark.parametrize("pivot", ["mean", "first+mean", "all"])
def test_arrival_order_and_partition_do_not_change_a_bit(tmp_path: Path, pivot: str) -> None:
    spec = make_spec(pivot=pivot)
    samples, plan = make_samples(80, spec), make_plan([spec], overlap_steps=3)
    states = {
        state_bytes(
            train(
                fill(tmp_path / f"{i}.sqlite", samples, spec, num_devices=n, shuffle_seed=i, num_rounds=3),
                plan,
                num_rounds=3,
            ).network
        )
        for i, n in enumerate([1, 1, 10, 37])
    }
    assert len(states) == 1
    assert states != {state_bytes(plan.side_config.build())}


def test_another_seed_or_another_sample_gives_other_weights(tmp_path: Path, spec: Any, samples: Any) -> None:
    base = state_bytes(train(fill(tmp_path / "a.sqlite", samples, spec), make_plan([spec])).network)
    reseeded = train(fill(tmp_path / "b.sqlite", samples, spec), make_plan([spec], seed=6))
    fewer = train(fill(tmp_path / "c.sqlite", samples[1:], spec), make_plan([spec]))
    assert base != state_bytes(reseeded.network)
    assert base != state_bytes(fewer.network)


def test_the_budget_of_the_decoded_tier_does_not_change_a_bit(tmp_path: Path, spec: Any, samples: Any) -> None:
    plan = make_plan([spec])
    cache = fill(tmp_path / "cache.sqlite", samples, spec)
    states = set()
    for memory in (0, 10_000, 1 << 24):
        trainer = plan.trainer(cache, scores=scores, memory_bytes=memory)
        trainer.run_epochs()
        assert trainer.loader.used_bytes <= memory
        states.add(state_bytes(trainer.network))
    assert len(states) == 1


@pytest.mark.parametrize("stop_after", [1, 7, 13, 20])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, spec: Any, samples: Any, stop_after: int) -> None:
    plan = make_plan([spec], overlap_steps=5)
    cache = fill(tmp_path / "cache.sqlite", samples, spec, num_rounds=2)
    whole = train(cache, plan, num_rounds=2)

    class Killed(Exception):  # noqa: N818
        pass

    def until_killed(trainer: Any) -> None:
        count = 0
        for round_ in (1, 2):
            while trainer.overlap_step(round_):
                count += 1
                if count == stop_after:
                    raise Killed

        def stop() -> Any:
            nonlocal count
            count += 1
            if count > stop_after:
                raise Killed  # as a kill: nothing is saved but what was checkpointed before
            return False

        plan_what_is_held(trainer)
        trainer.run_epochs(stop=stop)

    checkpoint = tmp_path / "checkpoint" / "trainer.pt"
    with pytest.raises(Killed):
        until_killed(plan.trainer(cache, scores=scores, memory_bytes=0, checkpoint=checkpoint))
    resumed = plan.trainer(cache, scores=scores, memory_bytes=0, checkpoint=checkpoint)
    if stop_after >= plan.options.checkpoint_every:
        assert resumed.position.steps > 0
    for round_ in (1, 2):
        while resumed.overlap_step(round_):
            pass
    plan_what_is_held(resumed)
    resumed.run_epochs()
    assert state_bytes(resumed.network) == state_bytes(whole.network)
    assert resumed.position == whole.position


def test_a_finished_run_is_not_trained_again(tmp_path: Path, spec: Any, samples: Any) -> None:
    plan = make_plan([spec])
    cache = fill(tmp_path / "cache.sqlite", samples, spec)
    file = tmp_path / "trainer.pt"
    first = train(cache, plan, checkpoint=file)
    again = plan.trainer(cache, scores=scores, memory_bytes=0, checkpoint=file)
    again.run_epochs()
    assert again.position.steps == first.position.steps
    assert state_bytes(again.network) == state_bytes(first.network)


def test_replay_trains_the_same_network_from_the_cache_alone(tmp_path: Path, spec: Any, samples: Any) -> None:
    cache = fill(tmp_path / "cache.sqlite", samples, spec, num_rounds=3)
    trained = train(cache, make_plan([spec], overlap_steps=4), num_rounds=3)
    assert state_bytes(replay(cache, scores=scores)) == state_bytes(trained.network)
    assert TrainingPlan.of(cache) == make_plan([spec], overlap_steps=4)


def test_it_learns(tmp_path: Path, spec: Any) -> None:
    train_cache = fill(tmp_path / "cache.sqlite", make_samples(600, spec), spec)
    trainer = train(train_cache, make_plan([spec], epochs=12))
    unseen = fill(tmp_path / "unseen.sqlite", make_samples(200, spec, seed=1), spec)
    loader = BatchLoader(unseen, {BACKBONE: spec}, CONTRACT, memory_bytes=0)
    batches, targets = loader.load(unseen.rows())
    with torch.inference_mode():
        predicted = trainer.network(batches).argmax(1)
    assert (predicted == present(targets.differences).argmax(1)).float().mean() > 0.5  # a quarter by chance


def test_types_of_different_width_share_the_adapters(tmp_path: Path) -> None:
    wide, narrow = make_spec(), make_spec(backbone="b" * 64, width=16)
    cache = fill(tmp_path / "cache.sqlite", make_samples(60, wide), wide)
    for sample in make_samples(60, narrow, seed=4):
        cache.add("c" * 32, [sample], backbone=narrow.backbone, round_=1)
    plan = make_plan([wide, narrow])
    fresh = plan.side_config.build().state_dict()
    trained = train(cache, plan).network.state_dict()
    changed = {name for name in fresh if not torch.equal(fresh[name], trained[name])}
    assert {f"alignment.{BACKBONE}.weight", f"alignment.{'b' * 64}.weight"} <= changed
    assert any(name.startswith("adapters.") for name in changed)


def test_a_type_may_join_when_epochs_have_begun(tmp_path: Path) -> None:
    first, late = make_spec(), make_spec(backbone="b" * 64, width=16)
    cache = fill(tmp_path / "cache.sqlite", make_samples(60, first), first)
    plan = make_plan([first], epochs=6)
    plan.store(cache)
    trainer = plan.trainer(cache, scores=scores, memory_bytes=1 << 24, checkpoint=tmp_path / "checkpoint")
    trainer.run_epochs(stop=lambda: trainer.position.epoch >= 2)
    cache.add("c" * 32, make_samples(60, late, seed=4), backbone=late.backbone, round_=1)
    plan = plan.joined_by(late)
    fresh = plan.side_config.build()
    start = fresh.state_dict()[f"alignment.{late.backbone}.weight"].clone()
    trainer.add_type(late, fresh)
    assert trainer.run_epochs()
    assert trainer.position.epoch == 6
    assert not torch.equal(trainer.network.state_dict()[f"alignment.{late.backbone}.weight"], start)


def test_early_stopping_restores_the_best_epoch(tmp_path: Path, spec: Any, samples: Any) -> None:
    epochs: list[Any] = []
    plan = make_plan([spec], epochs=30)
    plan = dataclasses.replace(plan, options=dataclasses.replace(plan.options, patience=2, learning_rate=3e-2))
    cache = fill(tmp_path / "cache.sqlite", samples, spec)
    trainer = train(cache, plan, on_epoch=epochs.append)
    losses = [epoch.validation_loss for epoch in epochs]
    assert len(losses) < 30
    assert losses[-1] > min(losses)
    assert losses[-2] > min(losses)
    _, validation = split_validation(cache.rows(), 0.2, plan.options.seed)
    assert trainer.validation(validation)["loss"] == pytest.approx(min(losses))


def test_overlapping_steps_use_only_what_was_committed_before_the_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: Any, samples: Any
) -> None:
    cache = fill(tmp_path / "cache.sqlite", samples, spec, num_rounds=4)
    plan = make_plan([spec], overlap_steps=2)
    trainer = plan.trainer(cache, scores=scores, memory_bytes=0)
    assert trainer.overlap_step(1) is False  # nothing is held before the first round
    used: list[Any] = []
    load = trainer.loader.load

    def loading(rows: Any) -> Any:
        used.extend(rows)
        return load(rows)

    monkeypatch.setattr(trainer.loader, "load", loading)
    while trainer.overlap_step(3):
        pass
    assert {row.round for row in used} <= {1, 2}
    assert trainer.position.steps == 2


def test_a_checkpoint_of_other_options_is_refused(tmp_path: Path, spec: Any, samples: Any) -> None:
    cache, file = fill(tmp_path / "cache.sqlite", samples, spec), tmp_path / "trainer.pt"
    train(cache, make_plan([spec]), checkpoint=file)
    with pytest.raises(CacheError, match="made with another epochs"):
        make_plan([spec], epochs=9).trainer(cache, scores=scores, memory_bytes=0, checkpoint=file)


def test_a_damaged_checkpoint_is_refused_and_kept(tmp_path: Path, spec: Any, samples: Any) -> None:
    cache, file = fill(tmp_path / "cache.sqlite", samples, spec), tmp_path / "trainer.pt"
    train(cache, make_plan([spec]), checkpoint=file)
    damaged = file.read_bytes()[:-200]
    file.write_bytes(damaged)
    with pytest.raises(CacheError, match="cannot be read"):
        make_plan([spec]).trainer(cache, scores=scores, memory_bytes=0, checkpoint=file)
    assert file.read_bytes() == damaged


def test_a_rows_side_of_the_validation_split_never_changes(tmp_path: Path, spec: Any, samples: Any) -> None:
    half = fill(tmp_path / "half.sqlite", samples[:75], spec)
    whole = fill(tmp_path / "whole.sqlite", samples, spec, num_devices=5, shuffle_seed=1)
    train_half, _ = split_validation(half.rows(), 0.3, seed=1)
    train_whole, validation = split_validation(whole.rows(), 0.3, seed=1)
    assert {row.digest for row in train_half} <= {row.digest for row in train_whole}
    assert 25 < len(validation) < 65


def test_the_validation_split_of_a_cache_that_grows_is_that_of_one_read_at_once(
    tmp_path: Path, spec: Any, samples: Any
) -> None:
    cache = ActivationCache(tmp_path / "cache.sqlite")
    for round_, start in enumerate(range(0, len(samples), 30), 1):
        cache.add(f"{round_:032x}", samples[start : start + 30], backbone=spec.backbone, round_=round_)
        fresh = Rows(iter(cache.rows()), len(cache))
        for share, seed in ((0.3, 1), (0.3, -1), (0.0, 1), (0.7, 1)):
            grown = [list(part) for part in split_validation(cache.rows(), share, seed)]
            assert grown == [list(part) for part in split_validation(fresh, share, seed)]
            key = seed.to_bytes(8, "big", signed=True)  # each row by itself, as it is defined
            hashes = [hashlib.blake2b(row.digest, digest_size=8, key=key).digest() for row in fresh]
            sides = [int.from_bytes(value, "big") < int(share * 2**64) for value in hashes]
            assert grown[1] == [row for row, side in zip(fresh, sides, strict=True) if side]
            earlier = split_validation(cache.rows(before_round=round_), share, seed)
            assert [row for part in earlier for row in part if row.round >= round_] == []


def test_the_order_of_an_epoch_depends_on_its_arguments_alone() -> None:
    first = draw_order(50, seed=-3, phase=0, number=2)
    torch.manual_seed(1)
    assert (first == draw_order(50, seed=-3, phase=0, number=2)).all()
    assert not (first == draw_order(50, seed=3, phase=0, number=2)).all()
    assert not (first == draw_order(50, seed=-3, phase=1, number=2)).all()
    assert sorted(first) == list(range(50))


def test_the_validation_share_is_keyed_by_a_secret_and_no_device_has_more_of_it_than_of_training(
    tmp_path: Path, spec: Any
) -> None:
    """Who knows the seed alone cannot foresee it; the cap on a device holds on both sides, in the same proportion."""
    samples = make_samples(400, spec)
    cache = ActivationCache(tmp_path / "cache.sqlite")
    cache.add("f" * 32, samples[:300], backbone=spec.backbone, round_=1)
    cache.add("e" * 32, samples[300:], backbone=spec.backbone, round_=1)
    rows = cache.rows()
    by_seed, by_secret, by_another = (
        {row.digest for row in split_validation(rows, 0.2, 1, secret=secret)[1]}
        for secret in ("", "ab" * 32, "cd" * 32)
    )
    expected = len(by_seed) * 0.2  # of independent shares
    assert len(by_seed & by_secret) < 3 * expected
    assert len(by_secret & by_another) < 3 * expected
    train, validation = split_validation(rows, 0.2, 1, secret="ab" * 32, device_cap=40)
    counts = Counter(row.device for row in validation)
    assert counts["f" * 32] == 10  # of 40 in training, as 0.2 to 0.8
    assert {row.digest for row in train}.isdisjoint(by_secret)


def test_a_schedule_is_laid_out_for_what_is_held_whatever_was_claimed(tmp_path: Path, spec: Any, samples: Any) -> None:
    trained = []
    for claimed in (60, 10**9):
        plan = make_plan([spec])
        plan = dataclasses.replace(plan, options=dataclasses.replace(plan.options, planned_steps=claimed))
        cache = fill(tmp_path / f"{claimed}.sqlite", samples, spec)
        plan.store(cache)
        trainer = plan.trainer(cache, scores=scores, memory_bytes=1 << 24)
        train_again(trainer)
        trained.append(state_bytes(trainer.network))
    assert trained[0] == trained[1]
