"""Runs in which only sums leave the device: exact at any partition and order, counted, checked, gone on with."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Message

from mobillm_flower import SideTunedModel, SideTuningClient, load_settings, make_strategy
from mobillm_flower.backbones.public import public_text
from mobillm_flower.errors import CacheError, RunFailed, SettingsError
from mobillm_flower.runs.events import Prepared
from mobillm_flower.runs.record import read_run
from mobillm_flower.server import ActivationCache
from mobillm_flower.server.plan import TrainingPlan, replay
from mobillm_flower.server.sums import solve_exact, total
from mobillm_flower.wire import keys
from tests.support.local_grid import LocalGrid
from tests.support.runs import tiny_config
from tests.support.superlink import events
from tests.support.tiny_models import save_tiny


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny(tmp_path_factory.mktemp("backbone"), "bert")
    (folder / "public.txt").write_text("\n".join(public_text()[:80]), "utf-8")
    return folder


def config_of(folder: Path, backbone: Path, **changes: Any) -> dict[str, Any]:
    changes = {
        "data__max_samples": 0,
        "backbone__token_budget": 1,
        "task__labels": ["no", "yes"],
        "activations__projection": 24,
        **changes,
    }
    changes |= {"activations__public_text": str(backbone / "public.txt")}
    config = tiny_config(folder, backbone, **changes)
    return {key: value for key, value in config.items() if key != "side-network.bottleneck"} | {"preset": "analytic"}


def run(config: dict[str, Any], devices: int = 3, **grid_options: Any) -> Any:
    """Return the strategy and the messages of a run, as (request, reply)."""
    nodes = [{"partition-id": i, "num-partitions": devices} for i in range(devices)]
    strategy = make_strategy(load_settings(config))
    strategy.poll_s = 0.0
    strategy.start(LocalGrid(SideTuningClient(load_data=few_rows).app, nodes, config, **grid_options), ArrayRecord())
    return strategy


def weights(strategy: Any) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in strategy.trainer.state.items()}


def opened(folder: Path) -> contextlib.closing[ActivationCache]:
    return contextlib.closing(ActivationCache(folder / "cache.sqlite"))


def few_rows(context: Context) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The same 90 messages whatever the number of devices, and ten to test on."""
    number, devices = (int(context.node_config[key]) for key in ("partition-id", "num-partitions"))
    rows = [{"text": text, "intent": "yes" if i % 3 else "no"} for i, text in enumerate(public_text()[100:190])]
    rows = rows[number::devices]
    most = int(context.run_config["data.max-samples"])
    return (rows[:most] if most else rows), [{"text": f"wake me at {i}", "intent": "yes"} for i in range(10)]


def words_of(reply: Message) -> Any:
    payload = reply.content.array_records[keys.SUMS][keys.PAYLOAD]
    return payload.numpy()


def test_the_solution_is_the_same_bit_by_bit_at_any_partition_and_order(tmp_path: Path, backbone: Path) -> None:
    central = weights(run(config_of(tmp_path / "one", backbone), devices=1))
    for devices, seed in ((3, 1),):
        federated = run(config_of(tmp_path / f"{devices}", backbone), devices=devices, order_seed=seed)
        with opened(tmp_path / f"{devices}") as cache:
            assert len(cache) == devices  # a row a device, and no sample
        assert weights(federated) == central


def test_what_a_run_predicts_with_is_the_discriminant_of_its_total(tmp_path: Path, backbone: Path) -> None:
    strategy = run(config_of(tmp_path / "run", backbone))
    with opened(tmp_path / "run") as cache:
        plan = TrainingPlan.of(cache)
        assert plan is not None
        ((name, sums),) = plan.sums.items()
        words = total(cache, name, sums)
    assert words is not None
    assert sums.one_hot  # this backbone predicts nothing by itself
    weight, bias, _, _ = solve_exact(words, sums)
    state = strategy.trainer.state
    assert torch.equal(state[f"heads.{name}.weight"], (weight.T * plan.scale).float())
    assert torch.equal(state[f"heads.{name}.bias"], (bias * plan.scale).float())


def test_one_data_message_a_device_whose_size_does_not_depend_on_samples(tmp_path: Path, backbone: Path) -> None:
    sent: list[tuple[str, int]] = []

    def watch(message: Message, reply: Message) -> Message:
        if message.metadata.message_type == keys.SUM:
            sent.append((str(message.metadata.dst_node_id), len(words_of(reply))))
        return reply

    run(config_of(tmp_path / "few", backbone, data__max_samples=15), tamper=watch)
    run(config_of(tmp_path / "all", backbone), tamper=watch)
    assert len(sent) == 6
    assert len({size for _, size in sent}) == 1


def test_the_saved_side_network_predicts_what_the_run_measured_and_can_be_solved_again(
    tmp_path: Path, backbone: Path
) -> None:
    config = config_of(tmp_path / "run", backbone)
    strategy = run(config)
    model = SideTunedModel.from_pretrained(
        tmp_path / "run" / "side_network", public_text=config["activations.public-text"]
    )
    assert len(model.predict(["wake me at six", "what is the time"]).labels) == 2
    with opened(tmp_path / "run") as cache:
        again = replay(cache, scores=strategy.rule.scores).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in strategy.trainer.state.items())


def test_a_total_without_a_device_is_that_of_a_run_that_never_had_it(tmp_path: Path, backbone: Path) -> None:
    strategy = run(config_of(tmp_path / "with", backbone))
    gone = next(iter(strategy.fleet)).description.pseudonym
    node = next(device.node_id for device in strategy.fleet if device.description.pseudonym == gone) - 100
    with opened(tmp_path / "with") as cache:
        cache.forget(gone)
        again = replay(cache, scores=strategy.rule.scores).state_dict()
    config = config_of(tmp_path / "without", backbone)
    nodes = [{"partition-id": i, "num-partitions": 3} for i in range(3) if i != node]
    other = make_strategy(load_settings(config))
    other.poll_s = 0.0
    other.start(LocalGrid(SideTuningClient(load_data=few_rows).app, nodes, config), ArrayRecord())
    assert all(torch.equal(again[name], tensor) for name, tensor in other.trainer.state.items())


def test_a_run_that_is_started_again_asks_nobody_for_sums_that_it_holds(tmp_path: Path, backbone: Path) -> None:
    config = config_of(tmp_path / "run", backbone)
    first = weights(run(config))
    asked: list[str] = []

    def watch(message: Message, reply: Message) -> Message:
        asked.append(message.metadata.message_type)
        return reply

    assert weights(run(config, tamper=watch)) == first
    assert keys.SUM not in asked


def test_a_device_of_too_few_samples_sends_no_sum(tmp_path: Path, backbone: Path) -> None:
    config = config_of(tmp_path / "run", backbone, data__max_samples=8, privacy__min_samples=9)
    with pytest.raises(RunFailed, match="no sample was received"):
        run(config)
    assert "fewer than privacy.min-samples=9" in (tmp_path / "run" / "events.jsonl").read_text()


def test_a_lie_in_the_sums_is_refused_by_name_and_the_others_are_solved(tmp_path: Path, backbone: Path) -> None:
    def lie(message: Message, reply: Message) -> Message:
        if message.metadata.message_type == keys.SUM and message.metadata.dst_node_id == 100:
            words = words_of(reply).copy()
            words[0] += 1000  # samples that it has not
            reply.content[keys.SUMS] = ArrayRecord({keys.PAYLOAD: Array(words)})
        return reply

    strategy = run(config_of(tmp_path / "run", backbone), tamper=lie)
    with opened(tmp_path / "run") as cache:
        assert len(cache) == len(strategy.fleet) - 1
    assert '"payload-hash"' in (tmp_path / "run" / "events.jsonl").read_text()


def one_has_many(context: Context) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Twelve messages each, and 130 on the first device."""
    number = int(context.node_config["partition-id"])
    rows = [{"text": text, "intent": "yes" if i % 3 else "no"} for i, text in enumerate(public_text()[100:300])]
    return rows[:130] if not number else rows[12 * number : 12 * number + 12], rows[190:200]


@pytest.mark.parametrize("secure_sums", ["never", "always"])
def test_no_device_is_most_of_the_total(tmp_path: Path, backbone: Path, secure_sums: str) -> None:
    """Only from five devices on: of [130, 12] nobody knows who lies."""

    def solved(name: str, numbers: range) -> Any:
        config = config_of(tmp_path / name, backbone, privacy__secure_sums=secure_sums, privacy__secure_sums_devices=3)
        nodes = [{"partition-id": i, "num-partitions": 7} for i in numbers]
        strategy = make_strategy(load_settings(config))
        strategy.poll_s = 0.0
        strategy.start(LocalGrid(SideTuningClient(load_data=one_has_many).app, nodes, config), ArrayRecord())
        return strategy

    strategy = solved("with", range(7))
    assert weights(strategy) == weights(solved("without", range(1, 7)))
    assert events(tmp_path / "with", "ingested")[-1]["samples"] == 6 * 12
    (dropped,) = events(tmp_path / "with", "dropped")
    assert "130 samples, more than 10 times" in dropped["reason"]
    assert "data.max-samples=120" in dropped["reason"]
    assert not events(tmp_path / "with", "rejected")
    solved("few", range(4))
    assert events(tmp_path / "few", "ingested")[-1]["samples"] == 130 + 3 * 12


def test_who_comes_when_there_is_no_room_is_passed_over_without_a_strike(
    tmp_path: Path, backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(cache: ActivationCache, _sums: Any, _samples: int) -> None:
        if cache.devices():
            raise CacheError("no room")

    monkeypatch.setattr("mobillm_flower.strategies.analytic.require_room", full)
    run(config_of(tmp_path / "run", backbone))
    assert [event["reason"] for event in events(tmp_path / "run", "dropped")] == ["no room"] * 2
    assert not events(tmp_path / "run", "rejected")


@pytest.mark.parametrize(
    "changes", [{"privacy__central_epsilon": 4.0}, {"privacy__central_epsilon": 4.0, "privacy__unit": "device"}]
)
def test_noise_of_the_server_is_drawn_once_for_a_total(tmp_path: Path, backbone: Path, changes: dict[str, Any]) -> None:
    strategy = run(config_of(tmp_path / "run", backbone, **changes))
    with opened(tmp_path / "run") as cache:
        again = replay(cache, scores=strategy.rule.scores).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in strategy.trainer.state.items())
    other = weights(run(config_of(tmp_path / "other", backbone, **changes)))
    assert other != weights(strategy)


def test_a_total_of_more_devices_is_another_release_whose_epsilon_adds_up(tmp_path: Path, backbone: Path) -> None:
    config = config_of(tmp_path / "run", backbone, privacy__central_epsilon=4.0)

    def promised() -> float:
        prepared = read_run(tmp_path / "run").last(Prepared)
        assert prepared is not None
        return float(prepared.guarantee["epsilon"])

    run(config)
    assert promised() == 4.0
    run(config)  # the same total, and its noise
    assert promised() == 4.0
    run(config, devices=4)
    assert promised() == 8.0


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("loss.name", "logit", "loss.name=logit"),
        ("privacy.joint-epsilon", 1.0, "privacy.joint-epsilon"),
        ("side-network.name", "additive", "side-network.name=additive"),
        ("activations.keep", 0.5, "keep"),
        ("stop.accuracy", 0.9, "stop.accuracy"),
    ],
)
def test_settings_that_sums_have_no_use_for_are_refused(key: str, value: Any, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        load_settings({"preset": "analytic", key: value, "activations.projection": 16})


def test_an_epsilon_of_sums_is_refused_where_samples_are_sent() -> None:
    with pytest.raises(SettingsError, match="preset=analytic"):
        load_settings({"privacy.central-epsilon": 1.0})


def test_sums_are_whole_numbers_of_the_word_that_follows(tmp_path: Path, backbone: Path) -> None:
    strategy = run(config_of(tmp_path / "run", backbone))
    ((_, spec),) = strategy.plan.sums.items()
    with opened(tmp_path / "run") as cache:
        rows = cache.read(cache.rows().column("id").tolist())
    for held, _ in rows:
        values = np.frombuffer(held, np.uint32 if spec.scale.bits == 32 else np.uint64)
        assert len(values) == spec.shape.num_words


def numbers(context: Context) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Texts with a number each, the words in it."""
    train, test = few_rows(context)
    return [{**row, "intent": float(len(row["text"].split()))} for row in train], [
        {**row, "intent": 4.0} for row in test
    ]


def pairs(context: Context) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Pairs of texts."""
    train, test = few_rows(context)
    return [{**row, "other": row["text"]} for row in train], [{**row, "other": "no"} for row in test]


@pytest.mark.parametrize(
    ("load", "changes"),
    [
        (numbers, {"task__kind": "regression", "task__labels": [], "task__label_range": [0.0, 40.0]}),
        (pairs, {"task__kind": "pairs", "data__pair_column": "other"}),
    ],
)
def test_numbers_and_pairs_have_sums_too(tmp_path: Path, backbone: Path, load: Any, changes: dict[str, Any]) -> None:
    config = config_of(tmp_path / "run", backbone, **changes)
    nodes = [{"partition-id": i, "num-partitions": 2} for i in range(2)]
    strategy = make_strategy(load_settings(config))
    strategy.poll_s = 0.0
    result = strategy.start(LocalGrid(SideTuningClient(load_data=load).app, nodes, config), ArrayRecord())
    assert result.evaluate_metrics_clientapp
    assert all(tensor.isfinite().all() for tensor in strategy.trainer.state.values())
    assert any(bool(tensor.any()) for name, tensor in strategy.trainer.state.items() if name.endswith("weight"))


def test_each_backbone_type_has_sums_and_a_solution_of_its_own(tmp_path: Path, backbone: Path) -> None:
    config = config_of(tmp_path / "run", backbone) | {
        "backbone.name": "by-partition",
        "backbone.choices": [f"{backbone}@1", f"{backbone}@2"],
        "activations.projection": 12,
    }
    strategy = run(config, devices=2)
    assert len(strategy.plan.sums) == 2
    solved = [bool(tensor.any()) for name, tensor in strategy.trainer.state.items() if name.endswith("weight")]
    assert solved == [True, True]
