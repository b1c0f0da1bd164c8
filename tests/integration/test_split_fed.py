"""SplitFed beside what it must equal: training in one place with one device, FedLoRA with several."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from mobillm_flower import BaselineClient, load_backbone, load_settings, make_strategy
from mobillm_flower.clients.baselines import SplitDevice
from mobillm_flower.errors import MismatchError, RunFailed, SettingsError, UnsupportedError
from mobillm_flower.models.fine_tuned import FineTunedModel
from mobillm_flower.models.split import SplitModel
from mobillm_flower.tasks import load_local_data
from mobillm_flower.wire import keys
from tests.support.local_grid import LocalGrid
from tests.support.tiny_models import save_tiny

WITHOUT_DROPOUT: dict[str, dict[str, Any]] = {
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "distilbert": {"dropout": 0.0, "attention_dropout": 0.0},
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "opt": {"dropout": 0.0},
    "gemma3": {},
}


def config_of(backbone: Path, folder: Path, *, devices: int = 1, **changes: Any) -> dict[str, Any]:
    return {
        "strategy": "split-fed",
        "backbone.name": str(backbone),
        "data.label-column": "intent",
        "data.max-samples": 20,
        "data.num-devices": devices,
        "task.max-length": 16,
        "rounds.num-rounds": 2,
        "peer.batch-size": 4,
        "peer.learning-rate": 3e-3,
        "run.folder": str(folder),
        **{key.replace("__", ".").replace("_", "-"): value for key, value in changes.items()},
    }


def run(config: dict[str, Any], **options: Any) -> Any:
    devices = config["data.num-devices"]
    nodes = [{"partition-id": i, "num-partitions": devices} for i in range(devices)]
    grid = LocalGrid(BaselineClient().app, nodes, config, **options)
    result = make_strategy(load_settings(config)).start(grid, ArrayRecord())
    events = [json.loads(line) for line in (Path(config["run.folder"]) / "events.jsonl").read_text().splitlines()]
    return result.arrays.to_torch_state_dict(), events, grid


def seed_of(config: dict[str, Any], data: Any, round_: int) -> int:
    content = RecordDict({"config": ConfigRecord({"server-round": round_})})
    return SplitDevice(load_settings(config), data, Path()).seed(content)


@pytest.mark.parametrize(("name", "precision"), [*((name, "fp32") for name in WITHOUT_DROPOUT), ("bert", "bf16")])
def test_one_device_trains_bit_by_bit_as_the_model_does_in_one_place(tmp_path: Path, name: str, precision: Any) -> None:
    backbone = save_tiny(tmp_path / name, name, **WITHOUT_DROPOUT[name])
    config = config_of(backbone, tmp_path / "run", peer__cut=2, peer__local_epochs=2, backbone__precision=precision)
    found, _, _ = run(config)
    data = load_local_data(load_settings(config), 0, 1)
    alone = FineTunedModel(load_backbone(str(backbone), precision=precision), data.contract)
    first = alone.trained_state()
    for round_ in (1, 2):
        alone.fit(data.train, epochs=2, batch_size=4, learning_rate=3e-3, seed=seed_of(config, data, round_))
    assert found.keys() == alone.trained_state().keys()
    for key, value in alone.trained_state().items():
        assert torch.equal(value, found[key]), key
        assert not torch.equal(value, first[key]), key


def test_with_dropout_too_when_it_is_drawn_as_at_the_two_ends(tmp_path: Path) -> None:
    backbone = save_tiny(tmp_path / "bert", "bert", hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3)
    config = config_of(backbone, tmp_path / "run", rounds__num_rounds=1)
    found, _, _ = run(config)
    data = load_local_data(load_settings(config), 0, 1)
    alone = FineTunedModel(load_backbone(str(backbone)), data.contract)
    optimizer, seed = alone.optimizer(3e-3), seed_of(config, data, 1)
    alone.train()
    for step, (inputs, labels) in enumerate(alone.batches(data.train, 4, seed)):
        below, above = np.random.SeedSequence([seed, step]).generate_state(2).tolist()
        at_the_cut = alone.backbone.stack[1].register_forward_pre_hook(
            lambda *_call, above=above: torch.manual_seed(above) and None
        )
        torch.manual_seed(below)
        alone.step(inputs, labels, optimizer)
        at_the_cut.remove()
    for key, value in alone.trained_state().items():
        assert torch.equal(value, found[key]), key


def test_a_fleet_trains_as_fed_lora_does_at_another_price(tmp_path: Path) -> None:
    backbone = save_tiny(tmp_path / "bert", "bert", **WITHOUT_DROPOUT["bert"])
    split, events, _ = run(config_of(backbone, tmp_path / "split", devices=2, data__max_samples=25))
    lora, others, _ = run(config_of(backbone, tmp_path / "lora", devices=2, data__max_samples=25, strategy="fed-lora"))
    for key, value in lora.items():
        assert torch.allclose(value, split[key], atol=1e-6), key
    costs = [[event for event in found if event["event"] == "work"] for found in (events, others)]
    assert len(costs[0]) == len(costs[1]) == 4
    assert sorted(event["loss"] for event in costs[0]) == pytest.approx(sorted(event["loss"] for event in costs[1]))
    assert sum(event["loss"] for event in costs[0][2:]) < sum(event["loss"] for event in costs[0][:2])
    for ours, theirs in zip(*costs, strict=True):
        assert ours["samples"] == theirs["samples"]
        assert 0 < ours["flops"] < 0.5 * theirs["flops"]  # one of three layers, no head
        assert ours["server_seconds"] > 0
    data = load_local_data(load_settings(config_of(backbone, tmp_path, devices=2, data__max_samples=25)), 0, 2)
    tokens = sum(
        len(sample["input_ids"]) for sample in load_backbone(str(backbone)).tokenize(data.train.texts, None, 16)
    )
    states = 4 * 16 * tokens  # float32, width 16
    mine = [event for event in costs[0] if event["samples"] == len(data.train)]
    assert all(states < event["bytes_up"] for event in mine)
    assert all(states < event["bytes_down"] for event in mine)
    assert not list((tmp_path / "split" / "devices").glob("*/split.pt"))


def test_a_device_that_fails_on_the_way_is_left_out_of_the_mean(tmp_path: Path) -> None:
    from flwr.app import Error

    backbone = save_tiny(tmp_path / "bert", "bert", **WITHOUT_DROPOUT["bert"])
    config = config_of(backbone, tmp_path / "run", devices=2, rounds__num_rounds=1)

    def fail(message: Any, reply: Any) -> Any:
        steps = message.content["config"].get(keys.STEP, 0) if "config" in message.content else 0
        late = message.metadata.message_type == "train" and message.metadata.dst_node_id == 101 and steps == 2
        return Error(5, "node unavailable") if late else reply

    _, events, _ = run(config, tamper=fail)
    assert [event["node"] for event in events if event["event"] == "failure"] == ["101"]
    assert [event["node"] for event in events if event["event"] == "work"] == ["100"]


def test_gradients_of_another_step_are_refused(tmp_path: Path) -> None:
    backbone = save_tiny(tmp_path / "bert", "bert")
    config = config_of(backbone, tmp_path / "run")
    settings = load_settings(config)
    device = SplitDevice(settings, load_local_data(settings, 0, 1), tmp_path / "device")
    first = ArrayRecord({name: value.detach() for name, value in device.split.device_part.items()})
    device.train(RecordDict({"arrays": first, "config": ConfigRecord({"server-round": 1})}))
    for round_, step in ((1, 2), (2, 1)):
        content = RecordDict({"config": ConfigRecord({"server-round": round_, "step": step})})
        with pytest.raises(MismatchError, match=f"gradients of step {step} of round {round_} came"):
            device.train(content)
    shutil.rmtree(tmp_path / "device")
    with pytest.raises(MismatchError, match="gradients of step 1 of round 1 came"):
        device.train(RecordDict({"config": ConfigRecord({"server-round": 1, "step": 1})}))


@pytest.mark.parametrize("cut", [3, 4])
def test_a_cut_that_leaves_no_layer_is_refused(tmp_path: Path, cut: int) -> None:
    backbone = save_tiny(tmp_path / "bert", "bert")
    with pytest.raises((SettingsError, RunFailed), match=f"peer.cut={cut} of 3 layers; give 1 to 2"):
        run(config_of(backbone, tmp_path / "run", peer__cut=cut))


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    settings = load_settings(config_of(save_tiny(tmp_path / "t5", "bart"), tmp_path / "run"))
    contract = load_local_data(settings, 0, 1).contract
    model = FineTunedModel(load_backbone(settings.backbone.name), contract)
    with pytest.raises(UnsupportedError, match="is an encoder-decoder"):
        SplitModel(model, 1)
