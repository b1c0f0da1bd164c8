"""Tasks one after another in runs: what a run takes over, what it leaves, and what it has learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mobillm_flower import SideTunedModel
from mobillm_flower.errors import MismatchError, SettingsError
from mobillm_flower.models.saved import WEIGHTS, saved_tasks
from mobillm_flower.reports.html import write_report
from mobillm_flower.runs import events
from mobillm_flower.runs.folder import RunFolder
from mobillm_flower.runs.record import read_run
from mobillm_flower.server import ActivationCache
from mobillm_flower.server.plan import can_replay, replay
from mobillm_flower.strategies import continual
from tests.support.caches import state_bytes
from tests.support.task_runs import DEVICES, SOLVED, STEPS, TASKS, rows, run
from tests.support.tiny_models import save_tiny


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("backbone"), "bert")


@pytest.mark.parametrize("preset", ["pae", "fed"])
@pytest.mark.parametrize("solved", [True, False])
def test_a_second_task_appends_its_classes_and_both_are_predicted(
    tmp_path: Path, backbone: Path, preset: str, solved: bool
) -> None:
    """Devices need not have an earlier task's data, nor be the same ones."""
    way: dict[str, Any] = {"preset": preset, **(SOLVED if solved else STEPS)}
    run(tmp_path / "mood", backbone, "mood", nodes=[0, 1], **way)
    run(tmp_path / "topic", backbone, "topic", nodes=[1, 2], continual__after=str(tmp_path / "mood"), **way)
    folder = tmp_path / "topic" / "side_network"
    tasks = saved_tasks(folder)
    assert tasks is not None
    assert (tasks.names, tasks.num_outputs) == (("mood", "topic"), 5)
    evaluation = read_run(tmp_path / "topic").last(events.Evaluation)
    assert evaluation is not None
    assert set(evaluation.metrics) == {"accuracy", "accuracy-task-unknown"}
    assert evaluation.metrics["accuracy"] > evaluation.metrics["accuracy-task-unknown"] - 1e-6
    model = SideTunedModel.from_pretrained(folder)
    for task, labels in TASKS.items():
        learned = rows(task, 100, 124)  # of the device that had both tasks
        known = model.for_task(task).predict([row["text"] for row in learned])
        right = [label == row["label"] for label, row in zip(known.labels, learned, strict=True)]
        assert sum(right) / len(right) > 1.4 / len(labels)
    texts = [row["text"] for row in rows("topic", 1050, 1054)]
    together = model.for_task("").predict(texts)
    assert together.scores.shape == (4, 5)
    assert model.for_task("").contract.labels == tuple(f"{t}: {label}" for t, of_t in TASKS.items() for label in of_t)
    own = model.for_task("topic").predict(texts)
    torch.testing.assert_close(own.scores - together.scores[:, 2:], torch.zeros(4, 3), atol=1e-6, rtol=0)
    assert model.predict(texts).labels == own.labels  # the last task is the model's own
    assert model.for_task("").for_task("topic").spec == model.spec  # with p_b again
    model.for_task("").save_pretrained(tmp_path / "copy")
    assert SideTunedModel.from_pretrained(tmp_path / "copy").spec == model.spec
    with pytest.raises(MismatchError, match="no task is called 'tpic'; learned were, in this order: mood, topic"):
        model.for_task("tpic")


@pytest.mark.parametrize("solved", [True, False])
def test_with_all_samples_kept_the_network_is_that_of_all_tasks_at_once(
    tmp_path: Path, backbone: Path, solved: bool
) -> None:
    """Replay depends on the rows of the cache alone: whoever trains from them in one place has the same weights."""
    way = SOLVED if solved else {"trainer__overlap_steps": 0}
    run(tmp_path / "mood", backbone, "mood", **way)
    second = run(tmp_path / "topic", backbone, "topic", continual__after=str(tmp_path / "mood"), **way)
    cache = ActivationCache(tmp_path / "topic" / "cache.sqlite")
    assert sorted((held.task, held.samples) for held in cache.holdings()) == [(0, 24)] * 3 + [(1, 24)] * 3
    assert can_replay(cache)
    assert state_bytes(replay(cache, scores=second.rule.scores)) == state_bytes(second.trainer.network)
    cache.close()
    again = run(tmp_path / "topic", backbone, "topic", continual__after=str(tmp_path / "mood"), **way)
    assert state_bytes(again.trainer.network) == state_bytes(second.trainer.network)
    assert [e.what for e in read_run(tmp_path / "topic").session.all(events.StartedAgain)] == ["nothing new"]


@pytest.mark.parametrize(("keep", "left"), [("share", 6), ("nothing", 0)])
def test_what_is_not_kept_is_deleted_and_the_run_is_over(tmp_path: Path, backbone: Path, keep: str, left: int) -> None:
    method = "replay" if left else "sequential"
    way: dict[str, Any] = {"continual__keep": keep, "continual__share": 0.08, "continual__method": method}
    run(tmp_path / "mood", backbone, "mood", **way)
    held = read_run(tmp_path / "mood").last(events.TaskKept)
    assert held is not None
    assert (held.task, held.keep, held.samples, held.deleted) == ("mood", keep, left, 72 - left)
    with_rows = ActivationCache(tmp_path / "mood" / "cache.sqlite")
    assert (len(with_rows), can_replay(with_rows)) == (left, False)
    with_rows.close()
    with pytest.raises(
        MismatchError, match=r"samples of its task were deleted \(continual.keep\); it cannot be started"
    ):
        run(tmp_path / "mood", backbone, "mood", **way)
    run(tmp_path / "topic", backbone, "topic", continual__after=str(tmp_path / "mood"), **way)
    again = read_run(tmp_path / "topic").last(events.TaskKept)
    assert again is not None
    assert (again.samples, again.deleted) == (2 * left, 72 - left)
    begun = read_run(tmp_path / "topic").last(events.TaskBegun)
    assert begun is not None
    assert (begun.task, begun.earlier, begun.samples, begun.classes) == ("topic", ["mood"], left, 5)


def skewed(task: str, number: int) -> list[dict[str, str]]:
    """Training rows of a device that has next to nothing of most classes: Dirichlet, α = 0.1, inside the task."""
    all_rows = [row for device in range(DEVICES) for row in rows(task, 100 * device, 100 * device + 24)]
    held: list[dict[str, str]] = []
    for place, label in enumerate(TASKS[task]):
        of_class = [row for row in all_rows if row["label"] == label]
        held.append(of_class[number])  # a device that has nothing would take no part
        of_class = of_class[DEVICES:]
        shares = np.random.default_rng(place).dirichlet([0.1] * DEVICES)
        ends = np.round(np.cumsum(shares) * len(of_class)).astype(int)
        held += of_class[ends[number - 1] if number else 0 : ends[number]]
    return held


@pytest.mark.parametrize("method", ["closed-form", "oa-adapter"])
def test_who_holds_which_samples_of_a_task_does_not_matter(tmp_path: Path, backbone: Path, method: str) -> None:
    """Asynchronously, too: once all samples have come, training depends on them alone."""
    solved = method == "closed-form"
    linear = {**SOLVED, "side_network__random_features": 0}
    way = {"preset": "fed", **(linear if solved else {**STEPS, "trainer__epochs": 2, "arrivals__ingest_first": True})}
    way |= {"continual__method": method, "continual__keep": "sums" if solved else "nothing"}
    made = []
    for name, held in (("even", None), ("skewed", skewed)):
        run(tmp_path / name / "mood", backbone, "mood", train=held, **way)
        after: dict[str, Any] = {"continual__after": str(tmp_path / name / "mood")}
        second = run(tmp_path / name / "topic", backbone, "topic", train=held, **after, **way)
        made.append(state_bytes(second.trainer.network))
    assert made[0] == made[1]


def test_sums_alone_may_leave_the_devices_task_after_task(tmp_path: Path, backbone: Path) -> None:
    """Under strategy=analytic the second task's sums are added to those of the first, whoever sends them when."""
    (backbone / "public.txt").write_text("\n".join(row["text"] for row in rows("mood", 500, 560)), "utf-8")
    way: dict[str, Any] = {"preset": "analytic", **SOLVED, "activations__public_text": str(backbone / "public.txt")}
    way |= {"continual__method": "closed-form", "continual__keep": "sums", "data__max_samples": 0}
    made = []
    for name, orders in (("one", ([0, 1], [1, 2])), ("another", ([1, 0], [2, 1]))):
        run(tmp_path / name / "mood", backbone, "mood", nodes=orders[0], **way)
        after: dict[str, Any] = {"continual__after": str(tmp_path / name / "mood")}
        second = run(tmp_path / name / "topic", backbone, "topic", nodes=orders[1], **after, **way)
        made.append(state_bytes(second.trainer.network))
    assert made[0] == made[1]
    assert continual.kept_sums(RunFolder(tmp_path / "one" / "topic")).keys()
    before, after_all = (load_file(tmp_path / "one" / task / "side_network" / WEIGHTS) for task in TASKS)
    (weight,) = (name for name in before if name.endswith(".weight"))
    assert torch.equal(after_all[weight][:2], before[weight])  # inside the first task nothing has changed
    evaluation = read_run(tmp_path / "one" / "topic").last(events.Evaluation)
    assert evaluation is not None
    assert evaluation.metrics["accuracy"] >= evaluation.metrics["accuracy-task-unknown"] > 0.6
    samples = {"continual__after": str(tmp_path / "one" / "topic"), "continual__method": "closed-form"}
    with pytest.raises(SettingsError, match=r"devices sent sums, and strategy=pae asks for samples; choose analytic"):
        run(tmp_path / "third", backbone, "mood", **{**samples, "continual__task": "again", **SOLVED})


def test_tasks_that_overlap_in_time_are_one_run_of_all_their_classes(tmp_path: Path, backbone: Path) -> None:
    """Devices 0 and 1 have the one task, device 2 the other; a third task can follow."""
    labels = ",".join((*TASKS["mood"], *TASKS["topic"]))

    def train(_task: str, number: int) -> list[dict[str, str]]:
        return rows("topic" if number == 2 else "mood", 100 * number, 100 * number + 24)

    way = {**SOLVED, "side_network__random_features": 0, "continual__method": "closed-form"}
    run(tmp_path / "both", backbone, "mood", train=train, task__labels=labels, **{**way, "continual__task": "both"})
    after: dict[str, Any] = {"continual__after": str(tmp_path / "both")}
    run(tmp_path / "third", backbone, "topic", **after, **{**way, "continual__task": "third"})
    model = SideTunedModel.from_pretrained(tmp_path / "third" / "side_network", task="both")
    assert model.contract.labels == (*TASKS["mood"], *TASKS["topic"])
    right = 0
    for number in range(DEVICES):
        held = train("", number)
        predicted = model.predict([row["text"] for row in held]).labels
        right += sum(label == row["label"] for label, row in zip(predicted, held, strict=True))
    assert right / 72 > 0.5


def accuracy(folder: Path, task: str) -> float:
    """Accuracy with the task known, on what the devices learned from."""
    model = SideTunedModel.from_pretrained(folder / "side_network", task=task)
    learned = [row for number in range(DEVICES) for row in rows(task, 100 * number, 100 * number + 24)]
    predicted = model.predict([row["text"] for row in learned]).labels
    return float(np.mean([label == row["label"] for label, row in zip(predicted, learned, strict=True)]))


@pytest.mark.parametrize(
    ("method", "keep"), [("closed-form", "sums"), ("oa-adapter", "nothing"), ("o-lora", "nothing")]
)
def test_methods_that_need_no_samples_of_earlier_tasks_keep_them(
    tmp_path: Path, backbone: Path, method: str, keep: str
) -> None:
    way = {**(SOLVED if keep == "sums" else STEPS), "continual__method": method, "continual__keep": keep}
    way |= {"continual__orthogonality": 0.1, "continual__threshold": 0.1}
    run(tmp_path / "mood", backbone, "mood", **way)
    before = accuracy(tmp_path / "mood", "mood")
    second = run(tmp_path / "topic", backbone, "topic", continual__after=str(tmp_path / "mood"), **way)
    assert second.plan.side_config.tasks == (2, 3)
    page = write_report(tmp_path / "topic").read_text("utf-8")
    assert ("Effective ranks" in page) is (keep == "nothing")
    for folder in ("mood", "topic"):
        cache = ActivationCache(tmp_path / folder / "cache.sqlite")
        assert len(cache) == 0
        cache.close()
        assert RunFolder(tmp_path / folder).sums.is_file() is (keep == "sums")
    assert before > 0.7
    assert accuracy(tmp_path / "topic", "mood") > before - (0.0 if keep == "sums" else 0.15) - 1e-9
    model, texts = SideTunedModel.from_pretrained(tmp_path / "topic" / "side_network"), ["a b", "c d"]
    known, together = (model.for_task(task).predict(texts).scores for task in ("topic", ""))
    base = 1 / 3 if keep == "sums" else 1 / 5  # p_b of the task, or its share of one over all classes
    torch.testing.assert_close(known - base, together[:, 2:] - 1 / 5, atol=1e-5, rtol=0)
    assert accuracy(tmp_path / "topic", "topic") > 0.45
