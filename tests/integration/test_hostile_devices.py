"""One device of several lies; the others learn as if it were not there, and the run ends with them."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, Context, Message

from mobillm_flower import SideTuningClient, load_settings, make_strategy
from mobillm_flower.errors import MobiLLMError
from mobillm_flower.models.saved import saved_backbones
from mobillm_flower.privacy.identity import Identity
from mobillm_flower.privacy.ledger import Release
from mobillm_flower.server import ActivationCache
from mobillm_flower.wire import keys
from mobillm_flower.wire.contract import ExtractionSpec, TaskContract
from mobillm_flower.wire.messages import pack_metrics
from mobillm_flower.wire.proof import prove
from mobillm_flower.wire.window import Window, open_window, pack_window
from tests.support.local_grid import LocalGrid
from tests.support.runs import tiny_config
from tests.support.superlink import events
from tests.support.task_runs import DEVICES, SOLVED, TASKS, config_of, rows
from tests.support.tiny_models import save_tiny

LIAR, HONEST = 100, 4  # the liar's node has the lowest number: it is the first to answer


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("backbone"), "bert")


def start(
    config: dict[str, Any],
    tamper: Callable[[Message, Message], Message] | None = None,
    *,
    nodes: Sequence[dict[str, Any]] = ({},) * (HONEST + 1),
    liars: int = 1,
) -> Any:
    """Run with four honest devices and, as node 100, one that tampers with its answers; or with more such liars."""
    strategy = make_strategy(load_settings(config))
    strategy.poll_s = 0.0
    configs = [{"partition-id": i, "num-partitions": HONEST + 1, **own} for i, own in enumerate(nodes)]

    def by_the_liar(message: Message, reply: Message) -> Message:
        return tamper(message, reply) if tamper and message.metadata.dst_node_id < LIAR + liars else reply

    strategy.start(LocalGrid(SideTuningClient().app, configs, config, tamper=by_the_liar), ArrayRecord())
    return strategy


def describes(record: str, **values: Any) -> Callable[[Message, Message], Message]:
    """Change fields of the contract or the backbone that a device describes."""

    def lie(message: Message, reply: Message) -> Message:
        if message.metadata.message_type == keys.DESCRIBE:
            said: Any = reply.content[keys.DEVICE]
            said[record] = json.dumps({**json.loads(str(said[record])), **values})
        return reply

    return lie


def signed(lie: Callable[[Message, Message], Message], run: Path) -> Callable[[Message, Message], Message]:
    """Sign a lie as the device that it is, whose folder is the run's first."""

    def sign(message: Message, reply: Message) -> Message:
        reply = lie(message, reply)
        if message.metadata.message_type == keys.DESCRIBE:
            reply.content = prove(reply.content, Identity(_secret(run / "devices" / "partition-0")), message)
        return reply

    return sign


def _secret(folder: Path) -> bytes:
    return (folder / "secret").read_bytes()


LIES = {
    "another metric": describes(keys.CONTRACT, metric="macro-f1"),
    "another length": describes(keys.CONTRACT, max_length=15),
    "other labels": describes(keys.CONTRACT, labels=["a", "b"]),
    "no labels": describes(keys.CONTRACT, labels=[], label_range=[0.0, 1.0]),
    "another width of the same type": describes(keys.BACKBONE, width=7),
    "another depth of the same type": describes(keys.BACKBONE, depth=1),
    "a type that fills the memory": describes(keys.BACKBONE, fingerprint="0" * 64, width=32768, depth=1024),
}


@pytest.mark.parametrize("preset", ["pae", "fed"])
@pytest.mark.parametrize("lie", LIES)
def test_who_describes_what_the_others_do_not_is_refused_alone(
    tmp_path: Path, backbone: Path, lie: str, preset: str
) -> None:
    config = tiny_config(tmp_path / "run", backbone, preset=preset, trainer__epochs=1, data__max_samples=6)
    strategy = start(config, signed(LIES[lie], tmp_path / "run"))
    assert [event["node"] for event in events(tmp_path / "run", "refused")] == [str(LIAR)]
    assert len(strategy.fleet) == HONEST
    assert events(tmp_path / "run", "ingested")[-1]["samples"] == 6 * HONEST
    assert strategy.plan.side_config.width == 16
    assert events(tmp_path / "run", "finished")[-1]["outcome"] == "completed"


def test_a_start_that_brought_no_sample_can_be_tried_again_with_other_devices(tmp_path: Path, backbone: Path) -> None:
    config = tiny_config(tmp_path / "run", backbone, trainer__epochs=1, data__max_samples=6)

    strategy = make_strategy(load_settings(config))
    strategy.poll_s = 0.0
    alone = signed(describes(keys.BACKBONE, width=7), tmp_path / "run")
    grid = LocalGrid(SideTuningClient().app, [{"partition-id": 0, "num-partitions": 5}], config, tamper=alone)
    with pytest.raises(MobiLLMError, match="no sample was received"):
        strategy.start(grid, ArrayRecord())
    start(config)
    assert events(tmp_path / "run", "ingested")[-1]["samples"] == 6 * (HONEST + 1)


def test_nobody_takes_anothers_pseudonym(tmp_path: Path, backbone: Path) -> None:
    """Whoever says the pseudonym of another, which logs and reports name, is refused, and the other is not."""
    config = tiny_config(tmp_path / "run", backbone, trainer__epochs=1, data__max_samples=6)
    start(config)
    victim = events(tmp_path / "run", "device")[-1]["device"]
    config = {**config, "run.folder": str(tmp_path / "again"), "task.max-length": 12}
    devices, own = tmp_path / "run" / "devices", {"backbone.name": str(backbone)}
    folders = [{"device-folder": str(devices / f"partition-{i}"), **own} for i in range(HONEST + 1)]

    def claim(_message: Message, reply: Message) -> Message:
        for record in (keys.DEVICE, keys.HEADER):
            if record in reply.content:
                reply.content[record][keys.PSEUDONYM] = victim
        return reply

    start(config, claim, nodes=folders)
    (refused,) = events(tmp_path / "again", "refused")
    assert (refused["node"], "identity" in refused["reason"]) == (str(LIAR), True)
    with contextlib.closing(ActivationCache(tmp_path / "again" / "cache.sqlite")) as cache:
        assert (len(cache.devices()), cache.devices()[victim]) == (HONEST, 6)


def test_what_a_device_says_of_its_size_neither_lays_out_the_schedule_nor_keeps_the_run_going(
    tmp_path: Path, backbone: Path
) -> None:
    many, sent = 10**8, 0
    first: list[Window] = []

    def drip(message: Message, reply: Message) -> Message:
        """Describe many samples, and send one that is new in each round."""
        nonlocal sent
        if message.metadata.message_type == keys.DESCRIBE:
            said: Any = reply.content[keys.DEVICE]
            said[keys.NUM_TRAIN] = many
            key = Identity(_secret(tmp_path / "run" / "devices" / "partition-0"))
            reply.content = prove(reply.content, key, message)
        if message.metadata.message_type != keys.EXTRACT:
            return reply
        asked: Any = message.content[keys.REQUEST]
        spec, contract = ExtractionSpec.from_json(asked[keys.SPEC]), TaskContract.from_json(asked[keys.CONTRACT])
        if not first:
            first.append(open_window(reply.content, spec=spec, contract=contract, max_samples=99, max_bytes=10**9))
        sent += 1
        assert sent < 50, "the run goes on and on"
        new = replace(first[0].samples[0], release=hashlib.sha256(b"%d" % sent).digest()[:16])
        return Message(
            pack_window(
                replace(first[0], samples=[new], total=many, remaining=many - sent, refused=0),
                spec=spec,
                contract=contract,
            ),
            reply_to=message,
        )

    config = tiny_config(tmp_path / "run", backbone, trainer__epochs=3, data__max_samples=6)
    strategy = start(config, drip)
    assert [event["rule"] for event in events(tmp_path / "run", "rejected")] == ["progress"] * 3
    assert events(tmp_path / "run", "ingested")[-1]["samples"] == 6 * HONEST
    assert strategy.trainer.options.planned_steps < 20


def test_samples_of_an_earlier_task_are_not_new_again_and_again(tmp_path: Path, backbone: Path) -> None:
    """The cache keeps a device's rows of all tasks, and ignores those that it has."""
    first: list[Release] = []
    sent = 0

    def repeat(message: Message, reply: Message) -> Message:
        """Remember the first task's samples, and send them again in the second one without end."""
        nonlocal sent
        if message.metadata.message_type != keys.EXTRACT:
            return reply
        asked: Any = message.content[keys.REQUEST]
        spec, contract = ExtractionSpec.from_json(asked[keys.SPEC]), TaskContract.from_json(asked[keys.CONTRACT])
        window = open_window(reply.content, spec=spec, contract=contract, max_samples=99, max_bytes=10**9)
        if len(contract.labels) == len(TASKS["mood"]):
            first.extend(window.samples)
            return reply
        sent += 1
        assert sent < 20, "the run goes on and on"
        samples = [replace(new, release=old.release) for new, old in zip(window.samples, first, strict=False)]
        packed = pack_window(replace(window, samples=samples, remaining=12, refused=0), spec=spec, contract=contract)
        return Message(packed, reply_to=message)

    def by_the_liar(message: Message, reply: Message) -> Message:
        return repeat(message, reply) if message.metadata.dst_node_id == LIAR else reply

    for task, after in (("mood", ""), ("topic", str(tmp_path / "mood"))):
        config = config_of(
            tmp_path / task, backbone, task, continual__after=after, continual__method="replay", **SOLVED
        )
        nodes = [
            {"partition-id": i, "device-folder": str(tmp_path / f"device-{i}"), "backbone.name": str(backbone)}
            for i in range(DEVICES)
        ]
        strategy = make_strategy(load_settings(config))
        strategy.poll_s = 0.0
        app = SideTuningClient(partial(_rows_of_task, task)).app
        strategy.start(LocalGrid(app, nodes, config, tamper=by_the_liar), ArrayRecord())
    assert len(first) == 24
    assert [event["rule"] for event in events(tmp_path / "topic", "rejected")] == ["progress"] * 3
    assert events(tmp_path / "topic", "ingested")[-1]["samples"] == 24 * (DEVICES - 1)


def _rows_of_task(task: str, context: Context) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    start = 100 * int(str(context.node_config["partition-id"]))
    return rows(task, start, start + 24), rows(task, start + 50, start + 60)


def test_no_name_that_a_device_gave_is_saved_or_loaded(tmp_path: Path, backbone: Path) -> None:
    config = tiny_config(tmp_path / "run", backbone, trainer__epochs=1, data__max_samples=6)
    named = describes(keys.BACKBONE, name="attacker/same-weights", revision="v1")
    start(config, signed(named, tmp_path / "run"))
    saved = (tmp_path / "run" / "side_network" / "config.json").read_text("utf-8")
    assert "attacker" not in saved
    assert [info.name for info in saved_backbones(tmp_path / "run" / "side_network")] == [str(backbone)]


@pytest.mark.parametrize("name", ["x\x1b[2J", "x\ny", "x\u202ey", "x" * 501])
def test_a_name_with_control_characters_or_without_end_is_refused_and_not_repeated(
    tmp_path: Path, backbone: Path, name: str
) -> None:
    config = tiny_config(tmp_path / "run", backbone, trainer__epochs=1, data__max_samples=6)
    start(config, signed(describes(keys.BACKBONE, name=name), tmp_path / "run"))
    (refused,) = events(tmp_path / "run", "refused")
    assert "without control characters" in refused["reason"]


def test_a_metric_counts_within_its_range_and_by_the_samples_that_are_held(tmp_path: Path, backbone: Path) -> None:
    def boast(claimed: float, count: float) -> Callable[[Message, Message], Message]:
        def lie(message: Message, reply: Message) -> Message:
            if message.metadata.message_type == keys.DESCRIBE:
                said: Any = reply.content[keys.DEVICE]
                said[keys.NUM_TEST] = int(count)
                key = Identity(_secret(tmp_path / str(claimed) / "devices" / "partition-0"))
                reply.content = prove(reply.content, key, message)
            if message.metadata.message_type == keys.EVALUATE:
                reply.content = pack_metrics({keys.NUM_EXAMPLES: count, "accuracy": claimed})
            return reply

        return lie

    def run(claimed: float) -> list[dict[str, Any]]:
        config = tiny_config(tmp_path / str(claimed), backbone, trainer__epochs=1, data__max_samples=6)
        start(config, boast(claimed, 10**8))
        return events(tmp_path / str(claimed), "evaluation")

    (honest,) = run(1.5)
    assert honest["devices"] == HONEST
    assert [event["rule"] for event in events(tmp_path / "1.5", "rejected")] == ["metrics"]
    (boasted,) = run(1.0)
    tested = sum(event["num_test"] for event in events(tmp_path / "1.0", "device") if event["num_test"] < 10**8)
    assert tested < boasted["num_examples"] < 2 * tested


@pytest.mark.parametrize("liars", [1, 2])
def test_who_sends_without_end_is_stopped_though_another_does_so_too(
    tmp_path: Path, backbone: Path, monkeypatch: pytest.MonkeyPatch, liars: int
) -> None:
    monkeypatch.setattr("mobillm_flower.strategies.intake._MOST_OF_ONE", 2)
    many, sent = 10**6, 0
    first: list[Release] = []

    def flood(message: Message, reply: Message) -> Message:
        nonlocal sent
        node = message.metadata.dst_node_id - LIAR
        if message.metadata.message_type == keys.DESCRIBE:
            said: Any = reply.content[keys.DEVICE]
            said[keys.NUM_TRAIN] = many
            key = Identity(_secret(tmp_path / "run" / "devices" / f"partition-{node}"))
            reply.content = prove(reply.content, key, message)
        if message.metadata.message_type != keys.EXTRACT:
            return reply
        asked: Any = message.content[keys.REQUEST]
        spec, contract = ExtractionSpec.from_json(asked[keys.SPEC]), TaskContract.from_json(asked[keys.CONTRACT])
        window = open_window(reply.content, spec=spec, contract=contract, max_samples=99, max_bytes=10**9)
        first.extend(window.samples[: 1 - len(first)])
        samples = [replace(first[0], release=sent.to_bytes(15, "big") + bytes([i])) for i in range(3)]
        sent += 3
        assert sent < 100, "the run goes on and on"
        packed = pack_window(
            replace(window, samples=samples, total=many, remaining=many - sent, refused=0),
            spec=spec,
            contract=contract,
        )
        return Message(packed, reply_to=message)

    config = tiny_config(tmp_path / "run", backbone, trainer__epochs=1, data__max_samples=6, rounds__window=3)
    start(config, flood, liars=liars)
    dropped = events(tmp_path / "run", "dropped")
    assert len(dropped) == liars
    assert all("2 times as many samples as the other devices" in event["reason"] for event in dropped)
    assert events(tmp_path / "run", "ingested")[-1]["samples"] == 6 * (HONEST + 1 - liars) + 12 * liars
