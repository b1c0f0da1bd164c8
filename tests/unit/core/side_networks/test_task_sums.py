"""Tasks one after another in closed form: each keeps its own solution, and sums of all tell them apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
    grown,
)
from mobillm_flower.core.side_networks.ridge import Ridge, Sums
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
    rows = torch.randn(count, WIDTH, generator=generator)
    rows[:, 4:] += 4 * torch.tensor([(1, 0), (0, 1), (-1, -1)][task])  # where a task's texts are
    labels = (rows[:, :classes] + 0.3 * torch.randn(count, classes, generator=generator)).argmax(1)
    base = torch.rand(count, classes, generator=generator).softmax(1)
    return rows, labels, torch.full_like(base, 1 / classes) if constant else base


def one_at_a_time(*, weights: float = 1.0) -> TaskSums:
    """Add each task to what its predecessors left behind."""
    kept: dict[str, Tensor] = {}
    for task in range(3):
        sums = TaskSums.carried(WIDTH, task + 1, kept, CPU) if kept else TaskSums.empty(WIDTH, 1, CPU)
        rows, _, _ = samples(task)
        for part in (rows[:15], rows[15:]):
            sums.add(part, torch.full((len(part),), task), torch.full((len(part),), weights))
        kept = sums.tensors()
    return sums


def test_tasks_are_told_apart_by_the_ridge_regression_of_all_samples() -> None:
    expected = Sums(WIDTH, 3, CPU)
    for task in range(3):
        rows, _, _ = samples(task)
        targets = torch.zeros(len(rows), 3).double()
        targets[:, task] = 1
        expected.add(rows.double(), targets, torch.full((len(rows),), 0.5).double())
    ours, theirs = one_at_a_time(weights=0.5).solve(), expected.choose()
    assert ours.penalty == pytest.approx(theirs.penalty)
    assert torch.allclose(ours.weight, theirs.weight)
    assert torch.allclose(ours.bias, theirs.bias)
    assert ours.error == pytest.approx(theirs.error)


def test_sums_of_other_vectors_or_tasks_are_refused() -> None:
    kept = one_at_a_time().tensors()
    TaskSums.carried(WIDTH, 4, kept, CPU)
    with pytest.raises(MismatchError, match=r"do not fit \(gram, rows\)"):
        TaskSums.carried(WIDTH + 1, 4, kept, CPU)
    with pytest.raises(MismatchError, match=r"do not fit \(count, rows, weight\).* features and tasks"):
        TaskSums.carried(WIDTH, 2, kept, CPU)


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


def in_turn(
    features: int = 0, *, rows_of: str = "the last", types: tuple[str, ...] = (TYPE,)
) -> list[ClosedFormSideNetwork]:
    """Learn three tasks; return the network after each. `rows_of`: the last task, all, or all and no sums."""
    kept: dict[str, Tensor] = {}
    made: list[ClosedFormSideNetwork] = []
    for number in (1, 2, 3):
        fresh = network(number, features=features, types=types)
        if made:
            fresh.load_state_dict(grown(fresh, made[-1].state_dict()))
            fresh.begin_task({} if rows_of == "all, and no sums" else kept)
        tasks: Sequence[int] = [number - 1] if rows_of == "the last" else range(number)
        for _ in range(2):  # again, as when more rows have come: nothing counts twice
            fresh.fit(batches(list(tasks), sum(TASKS.sizes[:number])))
        kept = fresh.end_task()
        made.append(fresh)
    return made


def predict(made: ClosedFormSideNetwork, task: int) -> Tensor:
    with torch.no_grad():
        predicted: Tensor = made([ActivationBatch(TYPE, samples(task)[0][:, None])])
    return predicted


@pytest.mark.parametrize("features", [0, 16])
def test_inside_a_task_the_solution_is_that_of_its_own_samples_and_stays(features: int) -> None:
    networks = in_turn(features)
    for task, span in enumerate(TASKS.spans):
        rows, labels, base = samples(task)
        own = slice(span.start, span.stop)
        z = networks[task].heads[TYPE].features(rows)  # type: ignore[operator]
        ridge = Ridge(WIDTH + features, span.num_classes)
        ridge.add(z, functional.one_hot(labels, span.num_classes) - base, torch.ones(len(z)))
        solved = ridge.solve()
        wanted = 3.0 * (z.double() @ solved.weight.T + solved.bias).float()
        for after in networks[task:]:
            scores = predict(after, task)[:, own]
            shift = (scores - wanted).mean(1, keepdim=True)  # the task's, the same for all of its classes
            assert torch.allclose(scores - shift, wanted, atol=1e-4)


def test_scores_of_tasks_tell_them_apart() -> None:
    for task, span in enumerate(TASKS.spans):
        chosen = predict(in_turn()[-1], task).argmax(1)
        assert ((chosen >= span.start) & (chosen < span.stop)).float().mean() > 0.8


def test_sums_of_earlier_tasks_and_their_samples_come_to_the_same() -> None:
    from_sums, from_rows = (in_turn(rows_of=rows)[-1] for rows in ("the last", "all, and no sums"))
    assert torch.allclose(predict(from_sums, 1), predict(from_rows, 1), atol=1e-4)
    ours, theirs = from_sums.end_task(), from_rows.end_task()
    assert all(torch.allclose(ours[name], theirs[name]) for name in ours.keys() | theirs.keys())


def test_rows_of_earlier_tasks_beside_their_sums_are_passed_by() -> None:
    assert torch.equal(predict(in_turn()[-1], 0), predict(in_turn(rows_of="all")[-1], 0))


def test_a_type_without_samples_of_the_last_task_keeps_its_sums() -> None:
    first = network(1, types=(TYPE, OTHER))
    first.fit([*batches([0], 3, name=TYPE), *batches([0], 3, name=OTHER)])
    second = network(2, types=(TYPE, OTHER))
    second.begin_task(first.end_task())
    second.fit(batches([1], 5, name=TYPE))
    kept = second.end_task()
    assert kept[f"{OTHER}.count"].tolist() == [40, 0]
    assert kept[f"{TYPE}.count"].tolist() == [40, 40]
    assert kept[f"{OTHER}.rows"].shape == (2, WIDTH)


def test_a_type_that_joins_with_a_later_task_is_centred_by_its_own_samples_and_others_stay_as_they_are() -> None:
    first = network(1)
    first.fit(batches([0], 3))
    second = network(2, types=(TYPE, OTHER))
    second.load_state_dict(grown(second, first.state_dict()))
    second.begin_task(first.end_task())
    for _ in range(2):
        second.fit([*batches([1], 5), *batches([1], 5, name=OTHER)])
    assert torch.equal(second.heads[TYPE].centre, first.heads[TYPE].centre)  # type: ignore[arg-type]
    mean = samples(1)[0].mean(0)
    assert torch.allclose(second.heads[OTHER].centre, mean, atol=1e-6)  # type: ignore[arg-type]


def test_labels_that_cannot_be_read_are_refused() -> None:
    (batch,) = batches([0], 3)
    with pytest.raises(MismatchError, match="need labels that the server can read"):
        network(1).fit([LabelledBatch(batch.batch, None, targets=batch.targets)])
