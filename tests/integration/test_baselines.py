"""The baselines with the real ClientApp and Flower's own FedAvg, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from mobillm_flower import SideTuningClient, load_backbone, load_settings, make_strategy
from mobillm_flower.clients.baselines import BASELINE_DEVICES, BaselineClient
from mobillm_flower.errors import MismatchError, RunFailed, SettingsError, UnsupportedError
from mobillm_flower.models.fine_tuned import FineTunedModel, baseline_model
from mobillm_flower.tasks import load_local_data
from tests.support.local_grid import LocalGrid
from tests.support.tiny_models import save_tiny


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "bert", "bert")


def config_of(strategy: str, backbone: Path, folder: Path, *, devices: int, **changes: Any) -> dict[str, Any]:
    return {
        "strategy": strategy,
        "backbone.name": str(backbone),
        "data.label-column": "intent",
        "data.max-samples": 20,
        "data.num-devices": devices,
        "task.max-length": 16,
        "rounds.num-rounds": 2,
        "peer.keep-rounds": True,
        "peer.num-seeds": 8,
        "peer.local-steps": 3,
        "run.folder": str(folder),
        **{key.replace("__", ".").replace("_", "-"): value for key, value in changes.items()},
    }


def run(config: dict[str, Any]) -> Any:
    devices = config["data.num-devices"]
    nodes = [{"partition-id": i, "num-partitions": devices} for i in range(devices)]
    grid = LocalGrid(BaselineClient().app, nodes, config)
    strategy = make_strategy(load_settings(config))
    result = strategy.start(grid, ArrayRecord())
    events = [json.loads(line) for line in (Path(config["run.folder"]) / "events.jsonl").read_text().splitlines()]
    return strategy, result, events


def measured_again(strategy: Any, arrays: ArrayRecord, config: dict[str, Any]) -> float:
    """The accuracy of a run's last weights over all devices' test samples."""
    settings, model = load_settings(config), strategy.model
    if "sums" in arrays:
        sums = dict(enumerate(arrays["sums"].numpy().tolist()))
        model.replay(sums, learning_rate=settings.peer.learning_rate)
    else:
        model.load_trained(arrays.to_torch_state_dict())
    devices = settings.data.num_devices
    tests = [load_local_data(settings, partition, devices).test for partition in range(devices)]
    return float(sum(model.evaluate(test) * len(test) for test in tests) / sum(map(len, tests)))


@pytest.mark.parametrize("name", list(BASELINE_DEVICES))
def test_a_baseline_runs_to_its_end_and_logs_what_it_cost(tmp_path: Path, backbone: Any, name: str) -> None:
    config = config_of(
        name, backbone, tmp_path, devices=2, **({"rounds.num-rounds": 1} if name == "upload-all" else {})
    )
    strategy, result, events = run(config)
    assert events[-1]["outcome"] == "completed"
    work = [event for event in events if event["event"] == "work"]
    rounds = config["rounds.num-rounds"]
    assert [event["round"] for event in work] == sorted(2 * list(range(1, rounds + 1)))
    assert all(event["bytes_up"] > 0 and event["bytes_down"] > 0 for event in work)
    assert all((event["flops"] > 0) == (name != "upload-all") for event in work)
    assert [event["seconds"] > 0 for event in events if event["event"] == "server-work"] == [True] * (
        name == "upload-all"
    )
    (evaluation,) = [event for event in events if event["event"] == "evaluation"]
    assert evaluation["round"] == rounds
    assert evaluation["metrics"]["accuracy"] == pytest.approx(measured_again(strategy, result.arrays, config))
    kept = torch.load(tmp_path / "rounds" / f"{rounds}.pt")
    assert kept.keys() == result.arrays.to_torch_state_dict().keys()


@pytest.mark.parametrize("name", ["fed-lora", "split-fed"])
def test_a_device_that_is_not_heard_of_in_time_is_named(tmp_path: Path, backbone: Any, name: str) -> None:
    """The average is without it, which whoever compares must know."""
    config = config_of(name, backbone, tmp_path, devices=2, rounds__num_rounds=1, rounds__timeout_s=5.0)

    def lose(message: Message, reply: Message) -> Message | None:
        lost = message.metadata.dst_node_id == 101 and message.metadata.message_type == "train"
        return None if lost else reply

    nodes = [{"partition-id": i, "num-partitions": 2} for i in range(2)]
    make_strategy(load_settings(config)).start(
        LocalGrid(BaselineClient().app, nodes, config, tamper=lose), ArrayRecord()
    )
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    failures = [(event["node"], event["reason"]) for event in events if event["event"] == "failure"]
    assert failures == [("101", "no answer within rounds.timeout-s=5")]
    assert [event["node"] for event in events if event["event"] == "work"] == ["100"]


@pytest.mark.parametrize("name", ["fed-lora", "fed-kseed", "upload-all"])
def test_baselines_of_language_models_run_to_their_end(tmp_path: Path, name: str) -> None:
    backbone = save_tiny(tmp_path / "opt", "opt")
    one = {"rounds.num-rounds": 1} if name == "upload-all" else {}
    config = config_of(name, backbone, tmp_path / "run", devices=2, task__kind="language-modelling", **one)
    strategy, result, events = run(config)
    assert events[-1]["outcome"] == "completed"
    (evaluation,) = [event for event in events if event["event"] == "evaluation"]
    assert evaluation["metrics"]["cross-entropy"] == pytest.approx(measured_again(strategy, result.arrays, config))


def test_split_training_of_tokens_is_refused(tmp_path: Path) -> None:
    backbone = save_tiny(tmp_path / "opt", "opt")
    config = config_of("split-fed", backbone, tmp_path / "run", devices=2, task__kind="language-modelling")
    with pytest.raises((RunFailed, UnsupportedError), match="split training predicts classes and numbers"):
        run(config)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["fed-lora", "fed-bitfit"])
def test_one_device_alone_trains_as_the_model_does_in_one_place(
    tmp_path: Path, backbone: Any, name: str, precision: str
) -> None:
    config = config_of(name, backbone, tmp_path, devices=1, rounds__num_rounds=1, backbone__precision=precision)
    _, result, _ = run(config)
    settings = load_settings(config)
    data = load_local_data(settings, 0, 1)
    model = load_backbone(str(backbone), precision=precision)
    alone = FineTunedModel(model, data.contract, method=name.removeprefix("fed-"))
    first_round = RecordDict({"config": ConfigRecord({"server-round": 1})})
    seed = BASELINE_DEVICES[name](settings, data, tmp_path).seed(first_round)
    alone.fit(data.train, epochs=1, batch_size=16, learning_rate=1e-3, seed=seed)
    found = result.arrays.to_torch_state_dict()
    assert found["head.weight"].abs().sum() > 0
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert name != "fed-bitfit" or any(key.endswith("attention.output.dense.bias") for key in found)
    for key, value in alone.trained_state().items():
        assert torch.allclose(value, found[key], atol=1e-7), key


def test_a_server_makes_the_model_of_the_devices_from_seeds_and_scalars(tmp_path: Path, backbone: Any) -> None:
    config = config_of("fed-kseed", backbone, tmp_path, devices=1, rounds__num_rounds=1, peer__learning_rate=1e-2)
    strategy, result, _ = run(config)
    on_the_device = baseline_model(load_settings(config), strategy.contract).trained_state()  # last evaluated
    sums = result.arrays["sums"].numpy()
    assert np.count_nonzero(sums) > 0
    at_the_server = strategy.model
    at_the_server.replay(dict(enumerate(sums.tolist())), learning_rate=1e-2)
    moved = 0.0
    for name, value in at_the_server.trained_state().items():
        assert torch.equal(value, on_the_device[name])
        moved += float((value - at_the_server._initial[name]).abs().sum())
    assert moved > 0


def test_zeroth_order_steps_lower_the_loss(tmp_path: Path, backbone: Any) -> None:
    config = config_of(
        "fed-kseed",
        backbone,
        tmp_path,
        devices=1,
        rounds__num_rounds=12,
        peer__num_seeds=64,
        peer__local_steps=20,
        peer__learning_rate=3e-3,
        rounds__evaluate_every=0,
    )
    strategy, result, _ = run(config)
    data = load_local_data(load_settings(config), 0, 1)
    inputs, labels = next(strategy.model.batches(data.train, 20, 0))
    strategy.model.replay({}, learning_rate=3e-3)
    before = strategy.model.batch_loss(inputs, labels)
    strategy.model.replay(dict(enumerate(result.arrays["sums"].numpy().tolist())), learning_rate=3e-3)
    assert strategy.model.batch_loss(inputs, labels) < before


def test_a_baseline_without_rounds_is_refused(tmp_path: Path, backbone: Any) -> None:
    with pytest.raises(SettingsError, match=r"rounds\.num-rounds rounds; give it"):
        make_strategy(load_settings(config_of("fed-lora", backbone, tmp_path, devices=1, rounds__num_rounds=0)))


def test_devices_of_side_tuning_are_refused_by_name(tmp_path: Path, backbone: Any) -> None:
    config = config_of("fed-lora", backbone, tmp_path, devices=1)
    grid = LocalGrid(SideTuningClient().app, [{"partition-id": 0, "num-partitions": 1}], config)
    with pytest.raises((MismatchError, RunFailed), match="BaselineClient"):
        make_strategy(load_settings(config)).start(grid, ArrayRecord())
