"""The trainer goes on from task to task: what is kept, what is frozen, what is added to the loss."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mobillm_flower.core.codecs import CODECS
from mobillm_flower.core.side_networks import OrthogonalSideNetwork
from mobillm_flower.core.sparse import encode_sample
from mobillm_flower.privacy.ledger import Release
from mobillm_flower.server.cache import ActivationCache
from mobillm_flower.server.plan import TrainingPlan
from mobillm_flower.server.trainer import Trainer
from mobillm_flower.wire.target_bytes import encode_targets
from tests.support.caches import BLOCKS, CONTRACT, WIDTH, fill, make_plan, make_spec, scores

SPEC = make_spec()
SIZES = (2, 2)
RULE = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(99))


def contract(num_tasks: int) -> Any:
    return dataclasses.replace(CONTRACT, labels=CONTRACT.labels[: sum(SIZES[:num_tasks])])


def samples(task: int, num_tasks: int, count: int = 240) -> list[Release]:
    """Samples of a task whose columns are among those of so many tasks."""
    rows = torch.randn(count, 1, BLOCKS, 1, WIDTH, generator=torch.Generator().manual_seed(task))
    labels = 2 * task + (rows[:, 0, -1, 0] @ RULE[2 * task : 2 * task + 2].T).argmax(1)
    outputs = sum(SIZES[:num_tasks])
    targets = encode_targets(labels, torch.full((count, outputs), 1 / outputs), SPEC, contract(num_tasks))
    return [
        Release(bytes([task, i] * 8), 1, encode_sample(row, CODECS[SPEC.codec], 1.0), target)
        for i, (row, target) in enumerate(zip(rows, targets, strict=True))
    ]


def plan(name: str, num_tasks: int, **changes: Any) -> TrainingPlan:
    made = make_plan([SPEC], epochs=12)
    sizes = SIZES[:num_tasks]
    extra: dict[str, Any] = {"threshold": 0.3} if name == "oa-adapter" else {}
    side = dataclasses.replace(made.side_config, name=name, num_outputs=sum(sizes), tasks=sizes, **extra, **changes)
    return dataclasses.replace(made, side_config=side, contract=contract(num_tasks))


def trainer(folder: Path, name: str, task: int, num_tasks: int, **changes: Any) -> Trainer:
    file = folder / f"{name}-{task}-{num_tasks}.sqlite"
    cache = ActivationCache(file) if file.exists() else fill(file, samples(task, num_tasks), SPEC)
    checkpoint = changes.pop("checkpoint", None)
    made = plan(name, num_tasks, **changes)
    return made.trainer(cache, scores=scores, memory_bytes=1 << 20, checkpoint=checkpoint)


def accuracy(made: Trainer, task: int) -> float:
    rows = torch.randn(200, BLOCKS, WIDTH, generator=torch.Generator().manual_seed(77))
    truth = (rows[:, -1] @ RULE[2 * task : 2 * task + 2].T).argmax(1)
    with torch.no_grad():
        side = made.network([dataclasses.replace(made.loader.load(made.loader.cache.rows())[0][0], rows=rows)])
    return float((side[:, 2 * task : 2 * task + 2].argmax(1) == truth).float().mean())


@pytest.mark.parametrize("name", ["o-lora", "oa-adapter"])
def test_a_second_task_is_learned_and_what_is_frozen_stays_bit_by_bit(tmp_path: Path, name: str) -> None:
    first = trainer(tmp_path, name, 0, 1)
    first.run_epochs()
    second = trainer(tmp_path, name, 1, 2, orthogonality=0.1)
    second.begin_task(first.state, first.end_task())
    second.run_epochs()
    assert accuracy(second, 1) > 0.7
    state = second.state
    for parameter, value in first.state.items():  # under weight decay, averaging and restoring of the best epoch
        assert torch.equal(state[parameter][: len(value)] if value.ndim else state[parameter], value), parameter


def test_the_penalty_is_part_of_each_step(tmp_path: Path) -> None:
    first = trainer(tmp_path, "oa-adapter", 0, 1)
    first.run_epochs()
    overlaps = []
    for weight in (0.0, 5.0):
        second = trainer(tmp_path, "oa-adapter", 1, 2, orthogonality=weight)
        second.begin_task(first.state, {})
        second.run_epochs()
        network = second.network
        assert isinstance(network, OrthogonalSideNetwork)
        with torch.no_grad():
            pairs = [network.of_block(i) for i in range(BLOCKS)]
            overlaps.append(sum(float(current.overlap(earlier)) for earlier, current in pairs))
    assert overlaps[1] < 0.5 * overlaps[0]


def test_one_network_for_all_tasks_forgets_and_its_old_outputs_begin_where_they_were(tmp_path: Path) -> None:
    first = trainer(tmp_path, "additive", 0, 1)
    first.run_epochs()
    second = trainer(tmp_path, "additive", 1, 2)
    second.begin_task(first.state, first.end_task())
    assert accuracy(second, 0) == accuracy(first, 0)
    second.run_epochs()
    assert not torch.equal(second.state["gates"], first.state["gates"])


def test_two_tasks_are_solved_from_sums_after_an_interruption_too_and_from_samples(tmp_path: Path) -> None:
    first = trainer(tmp_path, "closed-form", 0, 1)
    first.run_epochs()
    kept = first.end_task()
    states: list[dict[str, Tensor]] = []
    for _ in range(2):
        second = trainer(tmp_path, "closed-form", 1, 2, checkpoint=tmp_path / "checkpoint")
        second.begin_task(first.state, kept)
        second.run_epochs()
        states.append(second.state)
    assert second.position.finished
    assert all(torch.equal(states[1][name], value) for name, value in states[0].items())
    assert min(accuracy(second, 0), accuracy(second, 1)) > 0.75
    cache = fill(tmp_path / "all.sqlite", samples(0, 2) + samples(1, 2), SPEC)
    together = plan("closed-form", 2).trainer(cache, scores=scores, memory_bytes=1 << 20)
    together.begin_task(first.state, {})  # the samples of both are there
    together.run_epochs()
    assert torch.allclose(together.state[weights(together)], second.state[weights(together)], atol=1e-4)


def weights(made: Trainer) -> str:
    """Name of what tells tasks apart."""
    (name,) = (name for name in made.state if name.endswith(".of_tasks"))
    return name


@pytest.mark.parametrize("name", ["o-lora", "oa-adapter"])
def test_what_tells_tasks_apart_is_remembered_of_each_and_stays(tmp_path: Path, name: str) -> None:
    first = trainer(tmp_path, name, 0, 1)
    first.run_epochs()
    second = trainer(tmp_path, name, 1, 2)
    second.begin_task(first.state, {})
    assert second.state["variances"][1] == 0
    second.run_epochs()
    assert torch.equal(second.state["means"][0], first.state["means"][0])
    assert second.state["variances"].min() > 0
