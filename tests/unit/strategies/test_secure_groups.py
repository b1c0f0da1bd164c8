"""Runs with secure sums: the server gets a group's sum alone, and the solution is that of plain sums."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray

from mobillm_flower import SideTuningClient, load_settings, make_strategy
from mobillm_flower.errors import RunFailed
from mobillm_flower.reports.not_protected import not_protected
from mobillm_flower.reports.source import read_source
from mobillm_flower.server import ActivationCache
from mobillm_flower.strategies.secure_groups import num_groups
from mobillm_flower.wire import keys
from mobillm_flower.wire.secure_sums import PHASES
from mobillm_flower.wire.secure_sums.messages import open_message, pack_message
from tests.support.cli import lines, parsed, refused
from tests.support.local_grid import LocalGrid
from tests.support.runs import tiny_config
from tests.support.tiny_models import save_tiny


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("backbone"), "bert")


def config_of(folder: Path, backbone: Path, **changes: Any) -> dict[str, Any]:
    few = {
        "data__max_samples": 20,
        "activations__projection": 8,
        "privacy__min_samples": 2,
    }
    secure = {"privacy__secure_sums": "always", "privacy__secure_sums_devices": 3}
    config = tiny_config(folder, backbone, **{**few, **secure, **changes})
    return {key: value for key, value in config.items() if key != "side-network.bottleneck"} | {"preset": "analytic"}


def run(config: dict[str, Any], devices: int = 4, *, nodes: Any = None, run_id: int = 1, **grid_options: Any) -> Any:
    nodes = nodes or [{"partition-id": i, "num-partitions": devices} for i in range(devices)]
    strategy = make_strategy(load_settings(config))
    strategy.poll_s = 0.0
    grid = LocalGrid(SideTuningClient().app, nodes, config, **grid_options)
    TaskIdentity.run_id = run_id
    strategy.start(grid, ArrayRecord())
    return strategy


def weights(strategy: Any) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in strategy.trainer.state.items()}


def payload(content: RecordDict) -> NDArray[np.uint8]:
    record = content[keys.SECURE_SUMS]
    assert isinstance(record, ArrayRecord)
    return record[keys.PAYLOAD].numpy().astype(np.uint8)


def held(folder: Path) -> list[bytes]:
    cache = ActivationCache(folder / "cache.sqlite")
    rows = [vector for vector, _ in cache.read(cache.rows().column("id").tolist())]
    cache.close()
    return rows


def phase_of(message: Message) -> str:
    if message.metadata.message_type != keys.SECURE_SUM:
        return ""
    return str(PHASES[payload(message.content)[0]])


def test_the_solution_is_that_of_plain_sums_and_no_message_holds_a_devices_own(tmp_path: Path, backbone: Path) -> None:
    kinds: Counter[str] = Counter()
    sent: list[bytes] = []

    def watch(message: Message, reply: Message) -> Message:
        kinds[message.metadata.message_type] += 1
        if phase_of(message) == "masked sums":
            sent.append(payload(reply.content).tobytes())
        return reply

    secure = run(config_of(tmp_path / "secure", backbone), tamper=watch)
    plain = run(config_of(tmp_path / "plain", backbone, privacy__secure_sums="never"))
    assert weights(secure) == weights(plain)
    assert kinds[keys.SUM] == 0
    assert kinds[keys.SECURE_SUM] == 4 * len(PHASES)
    assert len(held(tmp_path / "secure")) == 1
    own = held(tmp_path / "plain")
    assert len(own) == 4
    assert not any(vector in message for vector in own for message in sent)
    open_sums = list((tmp_path / "secure").rglob("*.open.json"))
    assert not open_sums  # their secrets are deleted afterwards
    said = dict(not_protected(read_source(tmp_path / "secure")))
    assert "the sum of groups of at least 4 devices" in said["Labels"]
    assert "the sum of groups" in said["Texts"]
    assert "sum of groups" not in dict(not_protected(read_source(tmp_path / "plain")))["Labels"]


@pytest.mark.parametrize(
    ("devices", "least", "groups"), [(6, 6, 1), (128, 6, 1), (129, 6, 2), (1000, 6, 8), (129, 100, 1), (300, 140, 2)]
)
def test_no_group_is_smaller_than_the_least(devices: int, least: int, groups: int) -> None:
    assert num_groups(devices, least) == groups
    assert devices // groups >= least


@pytest.mark.parametrize("phase", PHASES)
def test_one_of_four_devices_stops_in_a_phase_and_the_sum_is_that_of_the_others(
    phase: str, tmp_path: Path, backbone: Path
) -> None:
    def stop(message: Message, reply: Message) -> Message | Error:
        return (
            Error(5, "node unavailable")
            if message.metadata.dst_node_id == 100 and phase_of(message) == phase
            else reply
        )

    strategy = run(config_of(tmp_path / "run", backbone), tamper=stop)
    others = 3 if phase in PHASES[:3] else 4
    log = (tmp_path / "run" / "events.jsonl").read_text("utf-8")
    assert log.count('"event": "group-summed"') == 1
    assert len(held(tmp_path / "run")) == 1
    assert sum(device.done for device in strategy.fleet) == others


def test_forgetting_a_device_is_a_fresh_sum_of_its_group_without_it(tmp_path: Path, backbone: Path) -> None:
    folder, nodes = tmp_path / "run", [{"partition-id": i, "num-partitions": 5} for i in range(5)]
    strategy = run(config_of(folder, backbone), nodes=nodes)
    gone = strategy.fleet.devices[100].description.pseudonym
    message = refused("cache", "forget", folder, gone, "--yes")
    assert "with 4 others, and cannot be taken out of it; forget the group" in message
    (group,) = parsed("cache", "ls", folder)["devices"]
    lines("cache", "forget", folder, group["device"], "--yes")
    assert not held(folder)
    for made_with_it in ("side_network", "checkpoint"):
        shutil.rmtree(folder / made_with_it)
    again = weights(run(config_of(folder, backbone), nodes=nodes[1:], run_id=2))
    assert again == weights(run(config_of(tmp_path / "never", backbone), nodes=nodes[1:]))


def test_too_few_devices_are_refused_with_the_number_and_the_setting(tmp_path: Path, backbone: Path) -> None:
    config = config_of(tmp_path / "run", backbone, privacy__secure_sums_devices=5)
    with pytest.raises(RunFailed, match=r"4 device\(s\) .* at least 5; .* privacy.secure-sums-devices"):
        run(config)


def test_auto_means_secure_where_a_third_more_devices_are_there(tmp_path: Path, backbone: Path) -> None:
    for devices, rows in ((3, 3), (4, 1)):
        config = config_of(tmp_path / str(devices), backbone, privacy__secure_sums="auto")
        run(config, devices=devices)
        assert len(held(tmp_path / str(devices))) == rows


def test_a_run_that_is_gone_on_with_asks_nobody_whose_groups_sum_is_held(tmp_path: Path, backbone: Path) -> None:
    config = config_of(tmp_path / "run", backbone)
    first = weights(run(config))
    asked: list[str] = []

    def watch(message: Message, reply: Message) -> Message:
        asked.append(message.metadata.message_type)
        return reply

    assert weights(run(config, tamper=watch)) == first
    assert keys.SECURE_SUM not in asked


def test_no_second_run_leaves_out_other_samples_of_devices_that_promise_something(
    tmp_path: Path, backbone: Path
) -> None:
    """The difference of the two groups' sums would be the few samples between the shares."""
    own = {
        "privacy.max-releases": 9,
        "privacy.min-samples": 2,
        "backbone.name": str(backbone),
        "data.label-column": "intent",
    }
    nodes = [{"partition-id": i, "num-partitions": 4, "device-folder": str(tmp_path / str(i)), **own} for i in range(4)]
    run(config_of(tmp_path / "a", backbone, trainer__validation_share=0.3), nodes=nodes)
    again = config_of(tmp_path / "b", backbone, trainer__validation_share=0.4, activations__projection=7)
    with pytest.raises(RunFailed, match="no secure sum could be opened"):
        run(again, nodes=nodes, run_id=2)
    assert "sums of a part of these samples" in (tmp_path / "b" / "events.jsonl").read_text("utf-8")


def test_a_group_whose_sum_cannot_be_right_is_named_and_left_out(tmp_path: Path, backbone: Path) -> None:
    def lie(message: Message, reply: Message) -> Message:
        if message.metadata.dst_node_id == 100 and phase_of(message) == "masked sums":
            phase, nonce, body = open_message(payload(reply.content).tobytes())
            words = np.frombuffer(body, "<u4").copy()
            words[[0, -1]] += np.array([1000, 97], "u4")  # samples that it has not, and of the moment; modulo 2³²
            lied = np.frombuffer(pack_message(phase, nonce, words.tobytes()), np.uint8)
            reply.content[keys.SECURE_SUMS] = ArrayRecord({keys.PAYLOAD: Array(lied)})
        return reply

    with pytest.raises(RunFailed, match="no secure sum could be opened: counts: sums of"):
        run(config_of(tmp_path / "run", backbone), tamper=lie)
    assert '"the sum"' in (tmp_path / "run" / "events.jsonl").read_text("utf-8")


def test_a_device_whose_own_settings_say_always_sends_no_sum_of_its_own(tmp_path: Path, backbone: Path) -> None:
    config = config_of(tmp_path / "run", backbone, privacy__secure_sums="never")
    nodes = [{"partition-id": i, "num-partitions": 3} for i in range(3)]
    nodes[0] |= {"privacy.secure-sums": "always", "privacy.secure-sums-devices": 3, "privacy.min-samples": 2}  # type: ignore[dict-item]
    nodes[0]["device-folder"] = str(tmp_path / "own")  # type: ignore[assignment]
    nodes[0]["backbone.name"] = str(backbone)  # type: ignore[assignment]
    strategy = make_strategy(load_settings(config))
    strategy.poll_s = 0.0
    strategy.start(LocalGrid(SideTuningClient().app, nodes, config), ArrayRecord())
    assert len(held(tmp_path / "run")) == 2
    assert "privacy.secure-sums=always" in (tmp_path / "run" / "events.jsonl").read_text("utf-8")
