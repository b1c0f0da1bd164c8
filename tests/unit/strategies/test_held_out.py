"""The metric on what sums left out: that of the samples themselves, of groups alone under secure sums, and counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, Error, Message

from mobillm_flower import SideTunedModel, SideTuningClient, load_settings, make_strategy
from mobillm_flower.clients.summing import held_out_samples
from mobillm_flower.errors import SettingsError
from mobillm_flower.reports.quality import learning
from mobillm_flower.reports.source import read_source
from mobillm_flower.reports.table import results_rows
from mobillm_flower.runs.device_events import Dropped
from mobillm_flower.runs.events import Evaluation, HeldOut
from mobillm_flower.runs.record import read_run
from mobillm_flower.wire import keys
from mobillm_flower.wire.secure_sums import PHASES
from tests.support.local_grid import LocalGrid
from tests.unit.strategies.test_analytic import backbone, config_of, few_rows

__all__ = ["backbone"]  # a fixture

SHARE = 0.3


def run(folder: Path, backbone: Path, devices: int = 4, **changes: Any) -> tuple[SideTuningClient, list[HeldOut]]:
    grid_options = {key: changes.pop(key) for key in ("tamper",) if key in changes}
    few: dict[str, Any] = {"privacy__min_samples": 2, "trainer__validation_share": SHARE}
    few |= {"privacy__secure_sums": "never"}
    few |= {"side_network__codec": "fp32"}  # devices predict with what is saved: rounded, a near tie may flip
    config = config_of(folder, backbone, **{**few, **changes})
    client = SideTuningClient(load_data=few_rows)
    strategy = make_strategy(load_settings(config))
    strategy.poll_s = 0.0
    nodes = [{"partition-id": i, "num-partitions": devices} for i in range(devices)]
    strategy.start(LocalGrid(client.app, nodes, config, **grid_options), ArrayRecord())
    return client, read_run(folder).all(HeldOut)


@pytest.mark.parametrize("secure", [False, True])
def test_it_is_the_metric_of_the_samples_that_no_sum_has(tmp_path: Path, backbone: Path, secure: bool) -> None:
    kinds: list[bool] = []

    def watch(message: Message, reply: Message) -> Message:
        if message.metadata.message_type == keys.HELD_OUT_TALLY:
            kinds.append(keys.SECURE_SUMS in reply.content and keys.SUMS not in reply.content)
        return reply

    groups: dict[str, Any] = {"privacy__secure_sums": "always", "privacy__secure_sums_devices": 3} if secure else {}
    client, (held,) = run(tmp_path / "run", backbone, **groups, tamper=watch)
    assert kinds == ([True] * 4 * len(PHASES) if secure else [False] * 4)  # no device's own tally beside masks
    model = SideTunedModel.from_pretrained(tmp_path / "run" / "side_network", public_text=str(backbone / "public.txt"))
    right, count = 0.0, 0
    for device in client._devices.values():
        left_out = device.data.train.take(held_out_samples(device, SHARE))
        right, count = right + len(left_out) * model.evaluate(left_out), count + len(left_out)
    assert 10 < count < 50
    assert (held.samples, held.devices) == (count, 4)
    assert held.metrics == {"accuracy": pytest.approx(right / count)}
    source = read_source(tmp_path / "run")
    assert f"On {count} samples that 4 devices left out" in str(learning(source))
    assert ("accuracy, held out", f"{right / count:.4f}") in [row[:2] for row in results_rows(source.run, {})]


def test_a_tally_that_cannot_be_is_left_out(tmp_path: Path, backbone: Path) -> None:
    def lie(message: Message, reply: Message) -> Message:
        if message.metadata.message_type == keys.HELD_OUT_TALLY and message.metadata.dst_node_id == 100:
            words = reply.content.array_records[keys.SUMS][keys.PAYLOAD].numpy().copy()
            words[1] += 5  # rightly predicted ones that there are not
            reply.content[keys.SUMS] = ArrayRecord({keys.PAYLOAD: Array(words)})
        return reply

    _, (held,) = run(tmp_path / "run", backbone, tamper=lie)
    assert held.devices == 3
    assert '"tally"' in (tmp_path / "run" / "events.jsonl").read_text("utf-8")


@pytest.mark.parametrize(
    "changes",
    [
        {"privacy__min_samples": 12, "trainer__validation_share": 0.15},  # of 22 samples, which a secret draws
        {"privacy__max_releases": 3},
        {"privacy__metric_epsilon": 1.0},
    ],
)
def test_devices_that_show_too_few_or_promise_something_also_of_metrics_add_nothing(
    tmp_path: Path, backbone: Path, changes: dict[str, Any]
) -> None:
    _, events = run(tmp_path / "run", backbone, **changes)
    assert not events


def test_one_that_fails_in_its_groups_tally_costs_that_metric_and_no_device(tmp_path: Path, backbone: Path) -> None:
    """The others refuse a tally whose difference from the group's sums is one device's; nobody is dropped."""

    def fail(message: Message, reply: Message) -> Message | Error:
        of_tally = message.metadata.message_type == keys.HELD_OUT_TALLY
        return Error(5, "node unavailable") if of_tally and message.metadata.dst_node_id == 100 else reply

    secure = {"privacy__secure_sums": "always", "privacy__secure_sums_devices": 3}
    _, held = run(tmp_path / "run", backbone, devices=5, tamper=fail, **secure)
    assert not held
    record = read_run(tmp_path / "run")
    assert not record.all(Dropped)
    evaluation = record.last(Evaluation)
    assert evaluation is not None
    assert evaluation.devices == 5


def test_an_exact_metric_does_not_go_with_noise() -> None:
    with pytest.raises(SettingsError, match=r"validation-share=0"):
        load_settings({"preset": "analytic", "privacy.central-epsilon": 1.0, "trainer.validation-share": 0.1})


def test_the_ledger_counts_it_first(tmp_path: Path, backbone: Path) -> None:
    client, _ = run(tmp_path / "run", backbone, devices=2)
    for device in client._devices.values():
        texts = {text for i in held_out_samples(device, SHARE) for text in device.sample_keys[i].texts}
        evaluated = {row[0] for row in device.folder.ledger._db.execute("SELECT text FROM evaluated")}
        assert texts <= evaluated
