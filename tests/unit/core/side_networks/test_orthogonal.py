"""Adapters of tasks one after another: their equations, what is frozen, and how a dead dimension comes back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mobillm_flower.core.side_networks import (
    ActivationBatch,
    AlignmentSpec,
    BudgetedSideNetwork,
    OrthogonalSideNetwork,
    SideNetworkConfig,
    grown,
)
from mobillm_flower.core.side_networks.orthogonal import BudgetAdapter
from mobillm_flower.errors import ArgumentError, MismatchError

TYPE, WIDTH, BLOCKS, RANK = "a" * 64, 8, 2, 4
NAMES = ["o-lora", "oa-adapter"]


def config(name: str, tasks: tuple[int, ...], **changes: Any) -> SideNetworkConfig:
    values: dict[str, Any] = {"orthogonality": 0.5, "threshold": 0.6 if name == "oa-adapter" else 0.0, **changes}
    return SideNetworkConfig.of(
        {TYPE: AlignmentSpec(WIDTH, 2)},
        name=name,
        num_blocks=BLOCKS,
        bottleneck=RANK,
        num_outputs=sum(tasks),
        tasks=tasks,
        **values,
    )


def network(name: str, tasks: tuple[int, ...], **changes: Any) -> OrthogonalSideNetwork:
    made = config(name, tasks, **changes).build()
    assert isinstance(made, OrthogonalSideNetwork)
    return made


def adapter(threshold: float = 0.6) -> BudgetAdapter:
    return BudgetAdapter(WIDTH, RANK, torch.Generator().manual_seed(0), threshold)


def rows(count: int, seed: int) -> list[ActivationBatch]:
    drawn = torch.randn(count, BLOCKS, 2 * WIDTH, generator=torch.Generator().manual_seed(seed))
    return [ActivationBatch(TYPE, drawn)]


def train(made: OrthogonalSideNetwork, labels: Tensor, batches: list[ActivationBatch], steps: int = 30) -> None:
    optimizer = torch.optim.AdamW(made.parameters(), lr=0.01, weight_decay=1.0)
    for _ in range(steps):
        loss = functional.cross_entropy(made(batches), labels) + made.penalty()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def test_an_adapter_is_linear_with_a_diagonal_of_thresholded_budgets() -> None:
    made = adapter()
    tau = functional.softplus(made.threshold.detach())
    assert float(tau) == pytest.approx(0.6)
    expected = torch.tensor([max(0.0, g - 0.6) for g in (0.25, 0.75, 1.25, 1.75)])
    assert torch.allclose(made.scales.detach(), expected)
    with torch.no_grad():
        made.down.normal_()
        u, v = torch.randn(2, 3, WIDTH)
        assert torch.allclose(made(u), u @ made.down.T @ torch.diag(expected) @ made.up.T, atol=1e-6)
        assert torch.allclose(made(u) + made(v), made(u + v), atol=1e-6)


def test_a_threshold_is_never_negative() -> None:
    made = adapter(0.0)
    with torch.no_grad():
        made.threshold.fill_(-1000.0)
    assert torch.equal(made.scales, made.budget)


def test_gradients_of_budgets_and_threshold() -> None:
    made = adapter()
    with torch.no_grad():
        made.budget.copy_(torch.tensor([0.2, -0.9, 1.0, -0.3]))  # dead, active, active, dead
    upstream = torch.tensor([1.0, 2.0, 3.0, 4.0])
    (made.scales * upstream).sum().backward()
    assert made.budget.grad is not None
    assert made.threshold.grad is not None
    assert made.budget.grad.tolist() == [1.0, 2.0, 3.0, 4.0]  # straight through where it is dead
    slope = float(torch.sigmoid(made.threshold.detach()))  # of softplus
    assert float(made.threshold.grad) == pytest.approx(slope * (2.0 - 3.0))  # −sign(g) of active ones


def test_a_dead_dimension_comes_back_where_the_threshold_falls() -> None:
    made = adapter(1.5)
    assert (made.scales != 0).sum() == 1
    optimizer = torch.optim.SGD([made.threshold], lr=0.5)
    for _ in range(20):  # more of the active dimension: the gradient of τ alone
        optimizer.zero_grad()
        (-made.scales.sum()).backward()
        optimizer.step()
    assert (made.scales != 0).all()


def test_a_block_without_an_active_dimension_comes_back_by_itself() -> None:
    made = adapter(1.9)
    with torch.no_grad():
        made.down.copy_(made.up.T)  # learned before it died
    assert not made.scales.any()
    u = torch.randn(16, WIDTH, generator=torch.Generator().manual_seed(1))
    target = u @ made.down.detach().T @ made.up.detach().T
    optimizer = torch.optim.SGD([made.budget, made.threshold], lr=0.5)
    for _ in range(50):
        optimizer.zero_grad()
        (made(u) - target).square().mean().backward()
        optimizer.step()
    assert (made.scales != 0).any()


def test_the_penalty_is_of_squared_cosines_with_active_columns_alone() -> None:
    made = network("oa-adapter", (2, 2), orthogonality=0.5)
    assert isinstance(made, BudgetedSideNetwork)
    eye = torch.eye(WIDTH)
    with torch.no_grad():
        for number in range(BLOCKS):
            earlier, current = made.of_block(number)
            earlier.up.copy_(eye[:, :RANK])
            current.up.copy_(eye[:, RANK:])
        assert float(made.penalty()) == 0  # orthogonal
        current.up[:, 0] = 3 * eye[:, 3] + 3 * eye[:, 5]  # 45° to column 3, which acts: cos² = 1/2
        assert float(made.penalty()) == pytest.approx(0.5 * 0.5 / BLOCKS)
        current.up[:, 0] *= 10  # no way out by length
        assert float(made.penalty()) == pytest.approx(0.5 * 0.5 / BLOCKS)
        current.up[:, 0] = eye[:, 0]  # along column 0, which is dead
        assert float(made.penalty()) == 0


def test_budgeted_adapters_are_kept_off_what_earlier_tasks_outputs_read() -> None:
    made = network("oa-adapter", (2, 2), orthogonality=0.5)
    assert isinstance(made, BudgetedSideNetwork)
    eye = torch.eye(WIDTH)
    first, second = (output for output in made.output.children() if isinstance(output, torch.nn.Linear))
    with torch.no_grad():
        for number in range(BLOCKS):
            earlier, current = made.of_block(number)
            earlier.up.copy_(eye[:, :RANK])
            current.up.copy_(eye[:, RANK : 2 * RANK])
        first.weight.copy_(3 * eye[:2])
        second.weight.copy_(eye[RANK : RANK + 2])  # its own output may be read as it likes
        assert float(made.penalty()) == 0
        first.weight[0] = 3 * eye[RANK] + 3 * eye[0]
        assert float(made.penalty()) == pytest.approx(0.5 * 0.5)


def test_the_penalty_of_o_lora_is_of_inner_products_of_rows_of_the_down_matrices() -> None:
    made = network("o-lora", (2, 2), orthogonality=0.5)
    eye = torch.eye(WIDTH)
    with torch.no_grad():
        for number in range(BLOCKS):
            earlier, current = made.of_block(number)
            earlier.down.copy_(eye[:RANK])
            current.down.copy_(eye[RANK:])
            earlier.up.fill_(1.0)  # the up matrices may do as they like
            current.up.fill_(1.0)
        assert float(made.penalty()) == 0
        current.down[0] = -2 * eye[1]
        assert float(made.penalty()) == pytest.approx(0.5 * 2 / BLOCKS)


@pytest.mark.parametrize("name", NAMES)
def test_the_penalty_has_a_gradient_for_the_current_task_alone(name: str) -> None:
    made = network(name, (2, 2))
    made.penalty().backward()
    with_gradient = {n.split(".")[2] for n, p in made.named_parameters() if p.grad is not None and p.grad.any()}
    assert with_gradient == {"1"}


@pytest.mark.parametrize("name", NAMES)
def test_a_new_task_begins_with_the_predictions_of_before_and_changes_nothing_that_is_frozen(name: str) -> None:
    batches, others = rows(40, 1), rows(40, 2)
    first = network(name, (3,))
    train(first, torch.arange(40) % 3, batches)
    second = network(name, (3, 2))
    second.load_state_dict(grown(second, first.state_dict()))
    with torch.no_grad():
        assert torch.equal(second.eval()(others)[:, :3], first(others))
        assert not second(others)[:, 3:].any()
    second.train()
    before = {n: v.clone() for n, v in second.state_dict().items()}
    train(second, 3 + torch.arange(40) % 2, others)
    changed = {n for n, v in second.state_dict().items() if not torch.equal(v, before[n])}
    of_the_task = {n for n in before if n.startswith(("adapters.0.1.", "adapters.1.1.", "output.1."))}
    assert changed == of_the_task
    assert first.state_dict().keys() == before.keys() - of_the_task  # alignments, gates, norm, adapters, output


@pytest.mark.parametrize("name", NAMES)
def test_in_training_the_task_is_known(name: str) -> None:
    made, batches = network(name, (3, 2)), rows(6, 1)
    off = made(batches)[:, :3]
    assert (off == off[0, 0]).all()
    assert float(off.detach().exp().max()) < 1e-12  # of no weight in a cross-entropy
    assert not off.requires_grad or not torch.autograd.grad(off.sum(), made.output[1].weight)[0].any()  # type: ignore[index]


@pytest.mark.parametrize("name", NAMES)
def test_a_text_near_the_samples_of_a_task_is_taken_for_one_of_it_and_nothing_changes_inside(name: str) -> None:
    made = network(name, (3, 2)).eval()
    near = [ActivationBatch(TYPE, rows(30, task)[0].rows + 9 * torch.eye(2 * WIDTH)[task]) for task in range(2)]
    with torch.no_grad():
        torch.nn.init.normal_(made.output[1].weight, std=0.01)  # type: ignore[index]
        alone = made([near[1]])
        for task, batch in enumerate(near):
            made.means[task] = made._vectors([batch]).mean(0)
            made.variances[task] = 0.05
        scores = made([near[1]])
    assert (scores.argmax(1) >= 3).float().mean() > 0.9
    ours, theirs = (values[:, 3:] - values[:, 3:].mean(1, keepdim=True) for values in (scores, alone))
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_means_and_variances_are_those_of_the_last_tasks_samples_however_they_are_cut() -> None:
    made, (batch,) = network("o-lora", (3, 2)), rows(30, 1)
    parts = [ActivationBatch(TYPE, part) for part in (batch.rows[:7], batch.rows[7:])]
    with torch.no_grad():
        made.remember([[part] for part in parts])
        vectors = made._vectors([batch])
    assert torch.allclose(made.means[1], vectors.mean(0), atol=1e-6)
    assert float(made.variances[1]) == pytest.approx(float((vectors - vectors.mean(0)).square().mean()), rel=1e-5)
    assert not made.means[0].any()


@pytest.mark.parametrize("name", NAMES)
def test_outputs_of_all_adapters_are_added_whatever_the_task(name: str) -> None:
    made = network(name, (2, 2))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape))
        scores = made.eval()(rows(5, 0))
        made.of_block(0)[1].up.add_(torch.randn(WIDTH, RANK))
        assert not torch.allclose(made(rows(5, 0))[:, :2], scores[:, :2])


def test_dead_dimensions_do_not_count_as_ranks() -> None:
    full, sparse = network("o-lora", (2,)), network("oa-adapter", (2,), threshold=1.0)
    assert isinstance(sparse, BudgetedSideNetwork)
    assert full.effective_ranks == [[RANK] * BLOCKS]
    assert sparse.effective_ranks == [[RANK // 2] * BLOCKS]


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"threshold=2\.0 must be from 0 to below 2"):
        network("oa-adapter", (2,), threshold=2.0)
    with pytest.raises(ArgumentError, match=r"tasks=\(2, 2\) are classes of each task, and there are 3 outputs"):
        OrthogonalSideNetwork(
            tasks=(2, 2),
            types={TYPE: AlignmentSpec(WIDTH, 1)},
            num_blocks=1,
            width=WIDTH,
            bottleneck=2,
            num_outputs=3,
        )


@pytest.mark.parametrize("name", NAMES)
def test_its_configuration_makes_it_again(name: str) -> None:
    wanted = config(name, (3, 2))
    again = SideNetworkConfig.from_dict(wanted.to_dict())
    assert again == wanted
    assert again.build().state_dict().keys() == wanted.build().state_dict().keys()


def test_an_additive_network_grows_by_outputs_of_zero() -> None:
    first, second = (config("additive", tasks).build() for tasks in ((3,), (3, 2)))
    torch.nn.init.normal_(first.output.weight)  # type: ignore[arg-type,union-attr]
    second.load_state_dict(grown(second, first.state_dict()))
    with torch.no_grad():
        assert torch.allclose(second(rows(5, 1))[:, :3], first(rows(5, 1)))
        assert not second(rows(5, 1))[:, 3:].any()


def test_another_network_is_not_gone_on_with() -> None:
    first = network("o-lora", (3,))
    with pytest.raises(MismatchError, match=r"means of the earlier tasks' side network does not fit"):
        grown(
            SideNetworkConfig.of(
                {TYPE: AlignmentSpec(WIDTH, 2)}, name="additive", num_blocks=BLOCKS, bottleneck=RANK, num_outputs=5
            ).build(),
            first.state_dict(),
        )
    with pytest.raises(MismatchError, match="has 3 rows for the earlier tasks, and 2 for all"):
        grown(config("additive", (2,)).build(), config("additive", (3,)).build().state_dict())
