"""Whole runs of language modelling on a tiny random causal model: devices, packet, cache, trainer, evaluation."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from mobillm_flower import SideTunedModel, SideTuningClient, load_settings, make_strategy
from mobillm_flower.backbones.load import load_head
from mobillm_flower.cli import app
from mobillm_flower.clients.device import Device
from mobillm_flower.clients.releases import make_window
from mobillm_flower.errors import MismatchError
from mobillm_flower.evaluation.references import measure_references
from mobillm_flower.evaluation.responses import ROUGE, measure_language, rouge
from mobillm_flower.privacy.device_folder import DeviceFolder
from mobillm_flower.reports.html import write_report
from mobillm_flower.reports.table import results_rows
from mobillm_flower.runs.device_events import DeviceSummary, Window
from mobillm_flower.runs.record import read_run
from mobillm_flower.server import ActivationCache
from mobillm_flower.server.plan import Frozen, replay
from mobillm_flower.tasks import load_central_data, load_local_data
from mobillm_flower.tasks.extraction import extraction_spec
from tests.support.caches import state_bytes
from tests.support.local_grid import LocalGrid
from tests.support.pages import ROOT
from tests.support.runs import run
from tests.support.superlink import events
from tests.support.tiny_models import WORDS, save_tiny

NUM_ROWS = 24


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("backbone") / "opt", "opt")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for split, first in (("train", 0), ("test", 100)):
        rows = [
            {
                "who": "AB"[i % 4 == 0],
                "question": " ".join(WORDS[(first + i + j) % 12] for j in range(i % 5 + 1)),
                "answer": WORDS[i % 3],
            }
            for i in range(NUM_ROWS)
        ]
        folder.joinpath(f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return folder


def make_config(folder: Path, backbone: Path, data: Path, **changes: Any) -> dict[str, Any]:
    return {
        "preset": "mobillm",
        "backbone.name": str(backbone),
        "backbone.device": "cpu",
        "task.kind": "language-modelling",
        "task.prompt": "{text} and then",
        "task.max-length": 16,
        "data.source": str(data),
        "data.text-column": "question",
        "data.pair-column": "answer",
        "activations.codec": "fp16",
        "side-network.bottleneck": 8,
        "trainer.epochs": 20,
        "trainer.averaging": 0.0,
        "trainer.validation-share": 0.0,
        "trainer.batch-size": 4,
        "trainer.learning-rate": 0.02,
        "trainer.weight-decay": 0.0,
        "trainer.dropout": 0.0,
        "trainer.overlap-steps": 2,
        "trainer.num-threads": 1,
        "rounds.window": 5,
        "run.folder": str(folder),
        **{key.replace("__", ".").replace("_", "-"): value for key, value in changes.items()},
    }


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, backbone: Any, data: Any) -> Any:
    config = make_config(tmp_path_factory.mktemp("label"), backbone, data)
    return config, run(config)


def test_a_run_learns_the_answers_and_every_device_measures_it(labelled: Any) -> None:
    config, strategy = labelled
    measured = strategy.result.evaluate_metrics_clientapp
    model = SideTunedModel.from_pretrained(Path(config["run.folder"]) / "side_network")
    assert model.contract.per_token
    test = strategy_test(config)
    before, after = model.with_network(None).evaluate(test), model.evaluate(test)
    assert after < before - 0.4  # this small head's logits differ by little: 211 tokens at random are 5.35 nats
    (record,) = list(measured.values())[-1:]
    assert record["cross-entropy"] == pytest.approx(after, abs=0.05)  # devices are weighed by samples, not tokens


def strategy_test(config: Any) -> Any:
    return load_central_data(load_settings(config)).test


def test_a_run_equals_centralized_training_from_its_cache_bit_by_bit(labelled: Any) -> None:
    config, strategy = labelled
    cache = ActivationCache(Path(config["run.folder"]) / "cache.sqlite")
    again = replay(cache, scores=strategy.rule.scores, frozen=Frozen(head=load_head(config["backbone.name"])))
    assert state_bytes(again) == state_bytes(strategy.trainer.network)
    references = measure_references(Path(config["run.folder"]))
    assert references["identical"] is True
    assert references["tuned"] == references["centralized"] < references["base"]
    assert "majority" not in references


@pytest.mark.parametrize(
    ("changes", "near"),
    [
        ({}, 0.15),
        ({"preset": "pae", "loss__name": "logit"}, 0.25),  # the head is reached by running a token, much of this model
        ({"side_network__name": "upper-layers"}, 0.15),
    ],
    ids=["label", "difference", "upper-layers"],
)
def test_what_was_planned_is_what_a_run_takes(
    tmp_path: Path, backbone: Any, data: Any, changes: dict[str, Any], near: float
) -> None:
    pytest.importorskip("peft")
    config = make_config(tmp_path, backbone, data, data__num_devices=3, **changes)
    run(config)
    words = [word for key, value in config.items() for word in ("-c", f"{key}={value}")]
    answer = CliRunner().invoke(app, ["plan", *words, "--gflops", "20", "--rounds", "2", "--json"])
    assert answer.exit_code == 0, answer.output
    found = json.loads(answer.stdout)
    record = read_run(Path(config["run.folder"]))
    devices = len(record.all(DeviceSummary))
    up = sum(window.bytes for window in record.all(Window)) / devices
    assert found["side_tuning"]["bytes_up"] == pytest.approx(up, rel=0.15)

    settings = load_settings(config)
    local = load_local_data(settings, 0, devices)
    device = Device(settings, local, DeviceFolder(tmp_path / "counted"))
    spec = extraction_spec(device.backbone.info, settings, num_blocks=device.backbone.info.depth, num_outputs=1)
    with FlopCounterMode(display=False) as counter:
        make_window(device, spec, held=frozenset(), size=len(local.train), max_bytes=1 << 30)
    assert found["side_tuning"]["flops"] == pytest.approx(counter.get_total_flops(), rel=near)


def test_the_report_says_that_tokens_are_plain(labelled: Any) -> None:
    config, _ = labelled
    folder = Path(config["run.folder"])
    page = write_report(folder).read_text("utf-8")
    assert "every token in the loss as it is" in page
    assert read_run(folder).outcome == "completed"


@pytest.mark.parametrize(("loss", "share"), [("logit", 0.7), ("square", 0.1)])
def test_corrections_teach_what_labels_do(
    labelled: Any, tmp_path: Path, backbone: Any, data: Any, loss: str, share: float
) -> None:
    """Under the logit loss as much (batches differ, since the order follows the bytes), under the square loss less."""
    config, strategy = labelled
    run(make_config(tmp_path, backbone, data, preset="pae", loss__name=loss))
    test = strategy_test(config)
    by_label, model = (
        SideTunedModel.from_pretrained(folder / "side_network") for folder in (strategy.run.folder.path, tmp_path)
    )
    base = model.with_network(None).evaluate(test)
    assert base - model.evaluate(test) > share * (base - by_label.evaluate(test))


def test_a_run_with_a_causal_mixer_is_measured_alike_on_devices_and_in_one_place(
    tmp_path: Path, backbone: Any, data: Any
) -> None:
    config = make_config(tmp_path, backbone, data, side_network__name="causal", trainer__epochs=5)
    strategy = run(config)
    found = measure_references(tmp_path)
    assert found["identical"] is True
    assert found["tuned"] < found["base"] - 0.1
    (record,) = list(strategy.result.evaluate_metrics_clientapp.values())[-1:]
    assert record["cross-entropy"] == pytest.approx(found["tuned"], abs=0.05)


def measured_page(folder: Path) -> str:
    """The report with what `mobillm run` measures after a run."""
    references = {"metric": "cross-entropy", **measure_language(folder)}
    folder.joinpath("results.json").write_text(json.dumps({"references": references}), "utf-8")
    return write_report(folder).read_text("utf-8")


def test_responses_are_measured_if_asked_and_their_texts_shown_only_if_asked_too(
    labelled: Any, tmp_path: Path, backbone: Any, data: Any
) -> None:
    config, _ = labelled
    assert measure_language(Path(config["run.folder"])) == {}
    shown = {"task__responses": 6, "task__show_responses": 6, "trainer__epochs": 1}
    run(make_config(tmp_path / "shown", backbone, data, **shown))
    found = measure_language(tmp_path / "shown")["responses"]
    assert found["num"] == 6
    assert [set(texts) for texts in found["shown"]] == [{"prompt", "reference", "base", "tuned"}] * 6
    references = [texts["reference"] for texts in found["shown"]]
    for which in ("base", "tuned"):
        again = rouge(references, [texts[which] for texts in found["shown"]])
        assert {name: found[which][name] for name in ROUGE} == pytest.approx(again)
    page = measured_page(tmp_path / "shown")
    assert page.count(found["shown"][0]["prompt"]) >= 1
    assert "ROUGE-L" in page
    run(make_config(tmp_path / "hidden", backbone, data, **{**shown, "task__show_responses": 0}))
    assert "shown" not in measure_language(tmp_path / "hidden")["responses"]
    assert "Response 1" not in measured_page(tmp_path / "hidden")


def test_rouge_is_that_of_the_library() -> None:
    assert rouge(["the cat sat"], ["the cat sat"]) == dict.fromkeys(ROUGE, 1.0)
    found = rouge(["the cat sat"], ["the dog sat"])
    assert found == pytest.approx({"rouge1": 2 / 3, "rouge2": 0.0, "rougeL": 2 / 3})


def test_each_speakers_texts_are_measured_before_and_after(tmp_path: Path, backbone: Any, data: Any) -> None:
    natural = {"data__partition": "natural", "data__partition_column": "who", "data__num_devices": 2}
    plain = {"data__pair_column": "", "task__prompt": "", "data__text_column": "answer_text", "trainer__epochs": 5}
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "test"):
        rows = [json.loads(line) for line in data.joinpath(f"{split}.jsonl").read_text("utf-8").splitlines()]
        rows = [{"who": row["who"], "answer_text": f"{row['question']} {row['answer']}"} for row in rows]
        folder.joinpath(f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    run(make_config(tmp_path / "run", backbone, folder, **natural, **plain))
    found = measure_language(tmp_path / "run")["speakers"]
    assert [row[:2] for row in found["rows"]] == [["A", 18], ["B", 6]]
    assert all(tuned < base for _, _, base, tuned in found["rows"])
    assert found["metrics"]["cross-entropy"] == {name: [base, tuned] for name, _, base, tuned in found["rows"]}
    assert found["unseen"] == []
    references = {"metric": "cross-entropy", "speakers": {**found, "unseen": ["B"]}}
    shown = {row[0]: row[1:] for row in results_rows(read_run(tmp_path / "run"), references)}
    before, after = found["metrics"]["cross-entropy"]["B"]
    assert shown["cross-entropy, 1 unseen by who"] == (f"{after:.4f}", f"{before:.4f} before")
    assert "next-word-top-3, 1 seen by who" in shown
    assert ("better, by who", "2") in [row[:2] for row in results_rows(read_run(tmp_path / "run"), references)]
    assert "test texts" in measured_page(tmp_path / "run")


def test_the_server_loads_no_head_that_only_a_device_names(tmp_path: Path, backbone: Any, data: Any) -> None:
    other = save_tiny(tmp_path / "other", "opt", seed=1)
    config = make_config(tmp_path / "run", backbone, data)
    nodes = [{"partition-id": i, "num-partitions": 2, "backbone.name": str(other)} for i in range(2)]
    strategy = make_strategy(load_settings(config))
    strategy.poll_s = 0.0
    with pytest.raises(MismatchError, match="of which training needs a part"):
        strategy.start(LocalGrid(SideTuningClient().app, nodes, config), ArrayRecord())


def test_of_several_backbone_types_that_of_most_devices_is_taken(tmp_path: Path, backbone: Any, data: Any) -> None:
    choices = {"backbone__name": "by-partition", "backbone__choices": f"{backbone}@2,{backbone}@3"}
    run(make_config(tmp_path / "run", backbone, data, data__num_devices=3, trainer__epochs=1, **choices))
    (refused,) = events(tmp_path / "run", "refused")
    assert "takes one backbone type" in refused["reason"]
    assert [device["layers"] for device in events(tmp_path / "run", "device")] == [2, 2]


OFFLINE = """
import json, sys
from mobillm_flower import SideTunedModel
from tests.support.runs import run
config = json.loads(sys.argv[1])
run(config)
model = SideTunedModel.from_pretrained(config["run.folder"] + "/side_network")
made = model.generate("the dog", max_new_tokens=4, min_new_tokens=4)
print(json.dumps({"name": model.backbone.info.name, "made": made}))
"""


def test_a_backbone_of_the_hub_runs_without_a_network_once_it_was_downloaded(
    tmp_path: Path, backbone: Any, data: Any
) -> None:
    """The hub's cache as `hf download` leaves it: devices, server and the saved model find the model by its name."""
    stored, commit = tmp_path / "home" / "hub" / "models--someone--tiny-opt", "0" * 40
    stored.joinpath("refs").mkdir(parents=True)
    stored.joinpath("refs", "main").write_text(commit, "utf-8")
    shutil.copytree(backbone, stored / "snapshots" / commit)
    config = make_config(tmp_path / "run", backbone, data, backbone__name="someone/tiny-opt", trainer__epochs=1)
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    made = subprocess.run(
        [sys.executable, "-c", OFFLINE, json.dumps(config)],
        env={**os.environ, **offline},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert made.returncode == 0, made.stderr[-2000:]
    found = json.loads(made.stdout.splitlines()[-1])
    named = SideTunedModel.from_pretrained(tmp_path / "run" / "side_network", backbone=str(backbone))
    assert found == {
        "name": "someone/tiny-opt",
        "made": named.generate("the dog", max_new_tokens=4, min_new_tokens=4),
    }


def test_upper_layers_learn_from_the_states_of_all_tokens(tmp_path: Path, backbone: Path, data: Path) -> None:
    config = make_config(tmp_path / "run", backbone, data, side_network__name="upper-layers", trainer__epochs=10)
    done = run(config)
    cache = ActivationCache(tmp_path / "run" / "cache.sqlite")
    samples = load_central_data(load_settings(config))
    answers = sum(len(answer.split()) for answer in samples.train.pairs or [])
    assert sum(row.tokens for row in cache.rows()) > 2 * answers
    assert measure_references(tmp_path / "run")["identical"]
    model = SideTunedModel.from_pretrained(tmp_path / "run" / "side_network", device="cpu")
    before, after = model.with_network(None).evaluate(samples.test), model.evaluate(samples.test)
    assert after < before - 0.4
    assert "assume that the server reads the prompt too" in write_report(tmp_path / "run").read_text("utf-8")
    model.save_pretrained(tmp_path / "again")
    again = SideTunedModel.from_pretrained(tmp_path / "again", device="cpu")
    assert again.evaluate(samples.test) == after
    prompts = samples.test.texts[:4]
    assert again.generate(prompts, max_new_tokens=1) != model.with_network(None).generate(prompts, max_new_tokens=1)
    assert state_bytes(model.side_network) == state_bytes(done.trainer.network)
