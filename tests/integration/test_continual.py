"""Tasks one after another in runs: what a run takes over, what it leaves, what is refused, and what is predicted."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord
from safetensors.torch import load_file

from mobillm_flower import SideTunedModel, SideTuningClient, load_settings, make_strategy
from mobillm_flower.errors import InUseError, MismatchError, RunFailed, SettingsError, UnsupportedError
from mobillm_flower.models.saved import WEIGHTS, saved_tasks
from mobillm_flower.reports.html import write_report
from mobillm_flower.reports.table import results_rows
from mobillm_flower.runs import events
from mobillm_flower.runs.folder import RunFolder
from mobillm_flower.runs.record import read_run
from mobillm_flower.server import ActivationCache
from mobillm_flower.server.plan import can_replay, replay
from mobillm_flower.strategies import continual
from tests.support.caches import state_bytes
from tests.support.cli import lines, parsed, refused
from tests.support.local_grid import LocalGrid
from tests.support.pages import ROOT
from tests.support.runs import tiny_config
from tests.support.tiny_models import WORDS, save_tiny

DEVICES = 3
TASKS = {"mood": ("bad", "good"), "topic": ("home", "work", "sport")}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("backbone"), "bert")


def rows(task: str, start: int, end: int) -> list[dict[str, str]]:
    """Texts of which the first word tells the mood and the second one the topic."""
    labels = TASKS[task]
    place = 0 if task == "mood" else 1
    made = []
    for i in range(start, end):
        words = [WORDS[(7 * i + 3 * k + i // 20) % 20] for k in range(4)]
        words[place] = WORDS[(1, 7, 13)[i % len(labels)]]
        made.append({"text": " ".join(words), "label": labels[i % len(labels)]})
    return made


def config_of(folder: Path, backbone: Path, task: str, **changes: Any) -> dict[str, Any]:
    config = tiny_config(folder, backbone, data__label_column="label", **{"continual__task": task, **changes})
    config["task.labels"] = changes.get("task__labels") or ",".join(TASKS[task])
    for key, value in list(config.items()):
        if value is None:
            del config[key]
    return config


def run(
    folder: Path,
    backbone: Path,
    task: str,
    *,
    nodes: Sequence[int] = range(DEVICES),
    train: Callable[[str, int], list[dict[str, str]]] | None = None,
    **changes: Any,
) -> Any:
    """Run one task on some of the devices; `train` gives the rows of a device that learns from others."""
    config = config_of(folder, backbone, task, **changes)

    def load(context: Any) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
        number = int(str(context.node_config["partition-id"]))
        learned = train(task, number) if train else rows(task, 100 * number, 100 * number + 24)
        return learned, rows(task, 100 * number + 50, 100 * number + 60)

    configs = [{"partition-id": i, "num-partitions": DEVICES} for i in nodes]
    strategy = make_strategy(load_settings(config))
    strategy.poll_s = 0.0
    strategy.start(LocalGrid(SideTuningClient(load).app, configs, config), ArrayRecord())
    return strategy


SOLVED: dict[str, Any] = {"side_network__bottleneck": None}
STEPS: dict[str, Any] = {"trainer__epochs": 60, "trainer__weight_decay": 0.01, "trainer__batch_size": 8}


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
        assert set(known.labels) <= set(labels)
        right = [label == row["label"] for label, row in zip(known.labels, learned, strict=True)]
        assert sum(right) / len(right) > 1.4 / len(labels)
    texts = [row["text"] for row in rows("topic", 1050, 1054)]
    together = model.for_task("").predict(texts)
    assert together.scores.shape == (4, 5)
    assert set(together.labels) <= {f"{task}: {label}" for task, labels in TASKS.items() for label in labels}
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


REFUSED: list[tuple[dict[str, Any], dict[str, Any], type[Exception], str]] = [
    ({}, {"continual__task": "mood"}, SettingsError, "continual.task='mood' is taken: .* has learned mood"),
    ({}, {"continual__method": "oa-adapter"}, SettingsError, "run the first task with continual.method=oa-adapter"),
    ({}, {"continual__method": "closed-form"}, SettingsError, "adds to a solution, and .* trained additive"),
    (
        {},
        {"activations__codec": "int8"},
        MismatchError,
        "what is uploaded differs: codec is 'int8' in this run, 'nf4' in",
    ),
    ({}, {"activations__pivot": "mean"}, MismatchError, "what is uploaded differs: num_vectors is 1 in this run"),
    ({}, {"activations__num_blocks": 2}, MismatchError, "what is uploaded differs: layers is"),
    ({}, {"side_network__bottleneck": 8}, MismatchError, "the side network differs: bottleneck is 8 in this run, 4 in"),
    (
        {"continual__keep": "nothing", "continual__method": "sequential"},
        {},
        SettingsError,
        "continual.method=replay needs samples of earlier tasks, and .* kept none of some; choose sequential",
    ),
    (
        SOLVED,
        {**SOLVED, "preset": "analytic", "continual__method": "closed-form", "continual__keep": "sums"},
        SettingsError,
        "devices sent samples, and strategy=analytic asks for sums; choose pae or fed",
    ),
    (
        SOLVED,
        {**SOLVED, "continual__keep": "sums", "continual__method": "closed-form"},
        SettingsError,
        "run the first task with continual.method=closed-form and continual.keep=sums",
    ),
]


@pytest.mark.parametrize(("first", "second", "error", "said"), REFUSED)
def test_what_cannot_be_gone_on_with_is_refused_before_anything_is_written(
    tmp_path: Path, backbone: Path, first: dict[str, Any], second: dict[str, Any], error: type[Exception], said: str
) -> None:
    run(tmp_path / "mood", backbone, "mood", **first)
    with pytest.raises(error, match=said):
        run(tmp_path / "topic", backbone, "topic", **{"continual__after": str(tmp_path / "mood"), **second})
    assert not RunFolder(tmp_path / "topic").side_network.exists()
    assert run(tmp_path / "again", backbone, "mood", nodes=[0]).trainer.position.finished


def test_another_backbone_is_refused_by_name(tmp_path: Path, backbone: Path) -> None:
    run(tmp_path / "mood", backbone, "mood")
    other = save_tiny(tmp_path / "other", "bert", num_hidden_layers=2)
    with pytest.raises(
        MismatchError, match=r"\(continual.after\) was a run of .*backbone.* and the devices have .*other"
    ):
        run(tmp_path / "topic", other, "topic", continual__after=str(tmp_path / "mood"))


def test_a_run_that_is_none_or_is_not_over_is_refused(tmp_path: Path, backbone: Path) -> None:
    after: dict[str, Any] = {"continual__after": str(tmp_path / "mood")}
    with pytest.raises(SettingsError, match="is no folder of a run with its settings and cache"):
        run(tmp_path / "topic", backbone, "topic", **after)
    run(tmp_path / "mood", backbone, "mood")
    with (
        RunFolder(tmp_path / "mood").hold(),
        pytest.raises(InUseError, match="the run goes on; wait until it has ended"),
    ):
        run(tmp_path / "topic", backbone, "topic", **after)
    (tmp_path / "mood" / "side_network" / "config.json").unlink()
    with pytest.raises(RunFailed, match="the run is not finished"):
        run(tmp_path / "topic", backbone, "topic", **after)


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


def test_a_sequential_run_that_is_started_again_goes_on_with_the_weights_it_took_over(
    tmp_path: Path, backbone: Path
) -> None:
    run(tmp_path / "mood", backbone, "mood", **STEPS)
    way = {**STEPS, "trainer__overlap_steps": 0, "continual__method": "sequential"}
    way["continual__after"] = str(tmp_path / "mood")
    whole = run(tmp_path / "whole", backbone, "topic", **way)
    with pytest.raises(RunFailed, match="no sample was received"):
        run(tmp_path / "topic", backbone, "topic", nodes=[0], rounds__num_rounds=1, stop__seconds=1e-9, **way)
    stopped = run(tmp_path / "topic", backbone, "topic", **way)
    assert state_bytes(stopped.trainer.network) == state_bytes(whole.trainer.network)


def test_a_run_that_was_killed_before_it_kept_its_sums_keeps_them_when_it_is_started_again(
    tmp_path: Path, backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    way = {**SOLVED, "continual__method": "closed-form", "continual__keep": "sums"}
    whole = run(tmp_path / "whole", backbone, "mood", **way)
    with monkeypatch.context() as patched:
        patched.setattr(continual, "end", _killed)
        with pytest.raises(RunFailed, match="killed"):
            run(tmp_path / "mood", backbone, "mood", **way)
    again = run(tmp_path / "mood", backbone, "mood", **way)
    assert state_bytes(again.trainer.network) == state_bytes(whole.trainer.network)
    expected, kept = (continual.kept_sums(RunFolder(tmp_path / name)) for name in ("whole", "mood"))
    assert kept.keys() == expected.keys()
    assert all(torch.equal(kept[name], expected[name]) for name in kept)


def _killed(*_: object) -> None:
    raise RunFailed("killed")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, backbone: Path) -> Path:
    """Two runs, of which the first one's samples are gone; what the machine of a simulation measures stands beside."""
    folder = tmp_path_factory.mktemp("finished")
    way = {**SOLVED, "continual__method": "closed-form", "continual__keep": "sums"}
    run(folder / "mood", backbone, "mood", **way)
    run(folder / "topic", backbone, "topic", continual__after=str(folder / "mood"), **{**way, "continual__keep": "all"})
    references = {"metric": "accuracy", "num_test": 9, "num_train": 72, "tuned": 0.9}
    (folder / "mood" / "results.json").write_text(json.dumps({"references": references}), "utf-8")
    earlier = {"task": "mood", "metric": "accuracy", "num_test": 9, "known": 0.85, "unknown": 0.5}
    references |= {"tuned": 0.7, "task_unknown": 0.6, "tasks": [earlier]}
    (folder / "topic" / "results.json").write_text(json.dumps({"references": references}), "utf-8")
    return folder


def test_the_report_of_the_last_run_shows_the_sequence(finished: Path) -> None:
    page = write_report(finished / "topic").read_text("utf-8")
    shown = page[page.index("Tasks one after another") :]
    for figure in ("0.8500", "0.9000", "-0.0500", "0.7750", "mood 0.0500"):  # a[2,1], a[1,1], BWT, AA, forgetting
        assert figure in shown
    assert "one after another, by closed-form; 5 classes in all" in shown
    assert "Tasks one after another" not in write_report(finished / "mood").read_text("utf-8")
    table = {what: (figure, remark) for what, figure, remark in results_rows(read_run(finished / "topic"), {})}
    assert table["kept for the next task"][0] == "72 samples"
    references = json.loads((finished / "topic" / "results.json").read_text("utf-8"))["references"]
    table = {what: (figure, remark) for what, figure, remark in results_rows(read_run(finished / "topic"), references)}
    assert table["accuracy, task unknown"][0] == "0.6000"
    assert table["accuracy on mood"] == ("0.8500", "task unknown 0.5000; 9 samples; 0.9000 when it was learned")


def test_the_report_says_what_it_cannot_know_when_an_earlier_run_is_gone(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "topic", tmp_path / "topic")
    log = tmp_path / "topic" / "events.jsonl"
    log.write_text(log.read_text("utf-8").replace(str(finished), str(tmp_path)), "utf-8")
    (tmp_path / "topic" / "results.json").unlink()
    page = write_report(tmp_path / "topic").read_text("utf-8")
    assert "Average accuracy and forgetting are not known" in page


def test_the_list_of_the_cache_says_what_was_deleted_of_each_task(finished: Path) -> None:
    said = lines("cache", "ls", finished / "topic")
    assert "task mood: 0 samples; 72 were deleted when it was learned (continual.keep=sums)" in said
    assert "task topic: 72 samples" in said
    listed = parsed("cache", "ls", finished / "topic")
    assert listed["tasks"] == ["mood", "topic"]
    assert listed["deleted"] == {"mood": {"keep": "sums", "deleted": 72}}
    assert {device["task"] for device in listed["devices"]} == {"topic"}


def test_predictions_of_a_named_task_and_of_all(finished: Path) -> None:
    text = rows("mood", 1, 2)[0]["text"]
    known = parsed("predict", finished / "topic", "--task", "mood", "--text", text)
    assert known[0]["label"] in TASKS["mood"]
    together = parsed("predict", finished / "topic", "--text", text)
    task, label = together[0]["label"].split(": ")
    assert label in TASKS[task]
    assert "no task is called 'mod'" in refused("predict", finished / "topic", "--task", "mod", "--text", text)
    assert "give --task, one of mood, topic" in refused("predict", finished / "topic", "--base", "--text", text)


def test_tasks_that_read_texts_differently_must_be_known(tmp_path: Path, backbone: Path) -> None:
    run(tmp_path / "mood", backbone, "mood")
    run(tmp_path / "topic", backbone, "topic", continual__after=str(tmp_path / "mood"), task__max_length=12)
    evaluation = read_run(tmp_path / "topic").last(events.Evaluation)
    assert evaluation is not None
    assert set(evaluation.metrics) == {"accuracy"}
    model = SideTunedModel.from_pretrained(tmp_path / "topic" / "side_network")
    with pytest.raises(UnsupportedError, match="mood, topic read texts in different ways"):
        model.for_task("")
    assert model.for_task("mood").contract.max_length == 16


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_example_learns_three_tasks(tmp_path: Path) -> None:
    """In Flower's simulation, on a few messages; the last report has what was measured after each task."""
    backbone = save_tiny(tmp_path / "backbone", "bert")
    command = [sys.executable, str(ROOT / "examples" / "continual" / "run.py"), "--out", str(tmp_path / "runs")]
    words = [f"backbone.name={backbone}", "data.num-devices=2", "data.max-samples=20", "task.max-length=16"]
    command += [part for word in words for part in ("-c", word)]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600)
    assert made.returncode == 0, made.stderr[-2000:]
    for row in ("accuracy, task unknown", "accuracy on intent", "accuracy on time"):
        assert row in made.stdout
    page = (tmp_path / "runs" / "form" / "report.html").read_text("utf-8")
    assert "average after the last task" in page
    assert "weights equal to centralized" in made.stdout
