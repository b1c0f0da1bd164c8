"""A comparison of an app's own: which rows, settings and methods it takes, and what it refuses."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mobillm_flower import load_settings
from mobillm_flower.cli.new import TaskKind
from mobillm_flower.errors import SettingsError, UnsupportedError
from mobillm_flower.evaluation.compare.cells import Cell
from mobillm_flower.evaluation.compare.curves import Plan
from mobillm_flower.evaluation.compare.of_app import Extent, plan_of_app
from mobillm_flower.launch import App, read_app
from tests.support.cli import lines, refused
from tests.support.pages import ROOT

QUICKSTART = ROOT / "examples" / "quickstart"


def planned(app: App, tmp_path: Path, *words: str, methods: str = "", quick: bool = False) -> Plan:
    names = methods.split(",") if methods else []
    return plan_of_app(app, words, names, Extent(seeds=2, rounds=9, quick=quick, work=tmp_path / "work"))


def new_app(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> App:
    monkeypatch.chdir(tmp_path)
    lines("new", "my_app", "--task", task)
    return read_app("my_app")


def test_an_apps_rows_settings_and_partition_are_taken(tmp_path: Path) -> None:
    plan = planned(read_app(QUICKSTART), tmp_path, "trainer.epochs=3", "backbone.layers=2", "peer.rank=4")
    (task,) = plan.tasks
    assert (task.num_train, task.num_validation, task.num_test) == (960, 240, 0)
    assert task.settings["data.partition-column"] == "persona"
    assert task.settings["backbone.layers"] == "2"
    assert "trainer.epochs" not in task.settings
    assert (plan.partitions, plan.num_devices, list(plan.seeds)) == (["natural"], 20, [0, 1])
    made = {method.name: method for method in plan.methods}
    assert list(made) == ["pae", "upper-layers", "fed-lora", "central-lora"]
    assert made["pae"].settings == {"trainer.epochs": "3", "rounds.window": "16"}  # as `mobillm run` would run it
    assert made["fed-lora"].settings == {"rounds.num-rounds": "9", "peer.rank": "4"}
    trials = {"pae": 1, "upper-layers": 3, "fed-lora": 3, "central-lora": 3}  # what is solved has no learning rate
    assert {method.name: len(method.trials) for method in plan.methods} == trials


def test_a_quick_look_is_small(tmp_path: Path) -> None:
    plan = planned(read_app(QUICKSTART), tmp_path, quick=True)
    (task,) = plan.tasks
    assert (task.num_train, task.num_validation, task.num_test) == (300, 0, 200)
    assert (plan.num_devices, len(plan.seeds), plan.turns) == (3, 1, 1)
    assert {len(method.trials) for method in plan.methods} == {1}
    assert [method.name for method in plan.methods] == ["pae", "fed-lora", "central-lora"]
    assert plan.methods[0].trials == [{}]


def test_a_learning_rate_that_is_given_is_not_chosen_again(tmp_path: Path) -> None:
    words = ["trainer.learning-rate=0.01", "peer.learning-rate=0.02"]
    made = {method.name: method for method in planned(read_app(QUICKSTART), tmp_path, *words).methods}
    assert made["pae"].trials == [{"trainer.learning-rate": "0.01"}]
    assert made["fed-lora"].trials == [{"peer.learning-rate": "0.02"}]
    assert len(made["upper-layers"].trials) == 3


@pytest.mark.parametrize("task", [kind.value for kind in TaskKind])
@pytest.mark.parametrize("quick", [True, False])
def test_every_cell_of_every_task_has_settings(
    task: str, quick: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = new_app(task, tmp_path, monkeypatch)
    methods = "pae,fed,upper-layers,fed-lora," + ("mobillm" if task == "language-modelling" else "split-fed")
    plan = planned(app, tmp_path, "backbone.layers=2", methods=methods, quick=quick)
    for method in plan.methods:
        words = {**method.settings_for(plan.tasks[0]), **method.trials[0]}
        cell = Cell(plan.tasks[0], method.name, plan.partitions[0], 0, plan.num_devices, "test", words)
        found = load_settings(overrides=cell.words(tmp_path / "work"))
        assert (found.task.kind, found.backbone.layers) == (task, 2)
        assert Path(found.data.source).is_dir()
        assert task != "regression" or method.name == "fed-lora" or found.loss.name == "square"


def test_what_cannot_be_compared_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quickstart = read_app(QUICKSTART)
    with pytest.raises(SettingsError, match="--methods fedprox is not known; give some of pae"):
        planned(quickstart, tmp_path, methods="pae,fedprox")
    with pytest.raises(UnsupportedError, match=r"backbone\.name=by-partition gives devices several backbones"):
        planned(read_app(ROOT / "examples" / "fleet"), tmp_path)
    with pytest.raises(SettingsError, match=r"did you mean 'trainer\.epochs'"):
        planned(quickstart, tmp_path, "trainer.epoch=3")
    with pytest.raises(
        UnsupportedError, match="split-fed does not model language here; compare mobillm, pae, fed, upper"
    ):
        planned(new_app("language-modelling", tmp_path, monkeypatch), tmp_path, methods="mobillm,split-fed")
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setattr("mobillm_flower.evaluation.compare.of_app.find_spec", lambda _name: None)
    with pytest.raises(UnsupportedError, match="need `peft`: pip install mobillm-flower"):
        planned(quickstart, tmp_path)


def test_a_plan_without_peft_says_which_extra_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    words = ["--samples", "10", "--tokens", "8", "--labels", "2", "--gflops", "20"]
    assert "needs `peft`: pip install mobillm-flower" in refused("plan", *words)


def test_sums_are_compared_without_a_learning_rate_and_with_an_apps_own_settings(tmp_path: Path) -> None:
    for quick in (False, True):
        plan = planned(read_app(QUICKSTART), tmp_path, methods="analytic,pae", quick=quick)
        made = {method.name: method for method in plan.methods}
        assert made["analytic"].trials == [{}]
    words = ("preset=analytic", "activations.projection=16", "privacy.min-samples=2")
    (own,) = planned(read_app(QUICKSTART), tmp_path, *words, methods="analytic").methods
    assert own.settings["activations.projection"] == "16"
