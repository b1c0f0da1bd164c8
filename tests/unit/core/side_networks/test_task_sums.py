"""Sums of tasks that came one after another have the solution of all their samples together."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mobillm_flower.core.side_networks import (
    ActivationBatch,
    AlignmentSpec,
    ClosedFormSideNetwork,
    LabelledBatch,
    SideNetworkConfig,
)
from mobillm_flower.core.side_networks.ridge import Sums
from mobillm_flower.core.side_networks.task_sums import TaskSums
from mobillm_flower.core.task_sequence import TaskSequence
from mobillm_flower.errors import MismatchError

TYPE, OTHER, WIDTH = "a" * 64, "b" * 64, 6
TASKS = TaskSequence().append("one", "abc").append("two", "de").append("three", "fghi")
OUTPUTS, CPU = TASKS.num_outputs, torch.device("cpu")


def samples(task: int, count: int = 40, *, constant: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """z [B, D], labels within the task [B], and p_b over its classes [B, K_t]."""
    generator = torch.Generator().manual_seed(task)
    classes = TASKS.sizes[task]
    rows = torch.randn(count, WIDTH, generator=generator) + task
    labels = (rows[:, :classes] + 0.3 * torch.randn(count, classes, generator=generator)).argmax(1)
    base = torch.rand(count, classes, generator=generator).softmax(1)
    return rows, labels, torch.full_like(base, 1 / classes) if constant else base


def one_at_a_time(*, weights: float = 1.0) -> TaskSums:
    """Add each task to what its predecessors left behind."""
    kept: dict[str, Tensor] = {}
    for task in range(3):
        sizes = TASKS.sizes[: task + 1]
        sums = TaskSums.carried(WIDTH, sizes, kept, CPU) if kept else TaskSums.empty(WIDTH, sizes, CPU)
        rows, labels, base = samples(task)
        for part in (slice(0, 15), slice(15, None)):
            hot = functional.one_hot(labels[part], TASKS.sizes[task])
            sums.add(rows[part], hot, base[part], torch.full((len(hot),), weights))
        kept = sums.tensors()
    return sums


def test_sums_over_all_classes_are_those_of_all_samples_with_the_base_prediction_over_all_classes() -> None:
    expected = Sums(WIDTH, OUTPUTS, CPU)
    for task, span in enumerate(TASKS):
        rows, labels, base = samples(task)
        hot = functional.one_hot(labels + span.start, OUTPUTS)
        targets = hot - span.widen(base.double(), OUTPUTS)
        expected.add(rows.double(), targets, torch.full((len(rows),), 0.5).double())
    made = one_at_a_time(weights=0.5).for_all_classes()
    assert made.count == expected.count == 120
    for name in ("weight", "square", "rows", "targets", "moment"):
        assert torch.allclose(getattr(made, name), getattr(expected, name), atol=1e-9), name
    assert torch.allclose(made.gram.tril(), expected.gram.tril())
    ours, theirs = made.choose(), expected.choose()
    assert ours.penalty == pytest.approx(theirs.penalty)
    assert torch.allclose(ours.weight, theirs.weight)
    assert ours.error == pytest.approx(theirs.error)


def test_sums_of_other_vectors_or_tasks_are_refused() -> None:
    kept = one_at_a_time().tensors()
    TaskSums.carried(WIDTH, (*TASKS.sizes, 2), kept, CPU)
    with pytest.raises(MismatchError, match=r"do not fit \(base, gram, hot\)"):
        TaskSums.carried(WIDTH + 1, (*TASKS.sizes, 2), kept, CPU)
    with pytest.raises(MismatchError, match="same backbone, layers, random features and tasks"):
        TaskSums.carried(WIDTH, (3, 2), kept, CPU)


def network(num_tasks: int, *, features: int = 0, types: tuple[str, ...] = (TYPE,)) -> ClosedFormSideNetwork:
    sizes = TASKS.sizes[:num_tasks]
    made = SideNetworkConfig(
        name="closed-form",
        types={name: AlignmentSpec(WIDTH, 1) for name in types},
        num_blocks=1,
        width=WIDTH,
        bottleneck=1,
        num_outputs=sum(sizes),
        input_norm=False,
        random_features=features,
        tasks=sizes,
    ).build()
    assert isinstance(made, ClosedFormSideNetwork)
    return made


def batches(tasks: list[int], outputs: int, *, scale: float = 3.0, name: str = TYPE) -> Iterator[LabelledBatch]:
    for task in tasks:
        rows, labels, base = samples(task)
        span = TASKS.spans[task]
        wide, labels = span.widen(base, outputs), labels + span.start
        targets = scale * (functional.one_hot(labels, outputs) - wide)
        batch = ActivationBatch(name, rows[:, None])
        yield LabelledBatch(batch, labels, targets=targets, base=wide, scale=scale)


def in_turn(features: int = 0, *, also_earlier_rows: bool = False) -> ClosedFormSideNetwork:
    kept: dict[str, Tensor] = {}
    state: dict[str, Tensor] = {}
    for number in (1, 2, 3):
        made = network(number, features=features)
        if state:
            made.heads[TYPE].centre.copy_(state[f"heads.{TYPE}.centre"])  # type: ignore[operator]
        made.begin_task(kept)
        tasks = list(range(number)) if also_earlier_rows else [number - 1]
        for _ in range(2):  # again, as when more rows have come: nothing counts twice
            made.fit(batches(tasks, sum(TASKS.sizes[:number])))
        kept, state = made.end_task(), made.state_dict()
    return made


@pytest.mark.parametrize("features", [0, 16])
def test_a_network_that_learned_tasks_in_turn_has_the_solution_of_all_samples(features: int) -> None:
    head = in_turn(features).heads[TYPE]
    together = Sums(WIDTH + features, OUTPUTS, CPU)
    for part in batches([0, 1, 2], OUTPUTS):
        assert part.targets is not None
        z = head.features(part.batch.rows.flatten(1))  # type: ignore[operator]
        together.add(z.detach().double(), part.targets.double(), torch.ones(len(z)).double())
    solved = together.choose()
    assert torch.allclose(head.weight, solved.weight.T.float(), atol=1e-4)  # type: ignore[arg-type]
    assert torch.allclose(head.bias, solved.bias.float(), atol=1e-4)  # type: ignore[arg-type]


def test_without_sums_all_samples_are_fitted_as_ever() -> None:
    joint, test = network(3), [ActivationBatch(TYPE, samples(1)[0][:, None])]
    joint.fit(batches([0, 1, 2], OUTPUTS))
    assert joint.end_task() == {}
    with torch.no_grad():
        difference = joint(test) - in_turn()(test)
    assert difference.std(0).max() < 1e-4  # a constant a class, which needs samples


def test_rows_of_earlier_tasks_beside_their_sums_are_passed_by() -> None:
    test = [ActivationBatch(TYPE, samples(0)[0][:, None])]
    with torch.no_grad():
        assert torch.equal(in_turn()(test), in_turn(also_earlier_rows=True)(test))


def test_a_type_without_samples_of_the_last_task_keeps_its_sums() -> None:
    first = network(1, types=(TYPE, OTHER))
    first.fit([*batches([0], 3, name=TYPE), *batches([0], 3, name=OTHER)])
    second = network(2, types=(TYPE, OTHER))
    second.begin_task(first.end_task())
    second.fit(batches([1], 5, name=TYPE))
    kept = second.end_task()
    assert kept[f"{OTHER}.count"].tolist() == [40, 0]
    assert kept[f"{TYPE}.count"].tolist() == [40, 40]
    assert kept[f"{OTHER}.hot"].shape == (WIDTH, 5)


def test_labels_that_cannot_be_read_are_refused() -> None:
    (batch,) = batches([0], 3)
    with pytest.raises(MismatchError, match="need labels that the server can read"):
        network(1).fit([LabelledBatch(batch.batch, None, targets=batch.targets)])
