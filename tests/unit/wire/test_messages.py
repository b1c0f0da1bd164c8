"""The other messages: what goes in comes out, and what is malformed is refused with a reason."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ConfigRecord, MetricRecord, RecordDict

from mobillm_flower.core.backbone_info import BackboneInfo
from mobillm_flower.core.side_networks import AlignmentSpec, SideNetworkConfig
from mobillm_flower.errors import MismatchError, PacketRejected
from mobillm_flower.wire import keys
from mobillm_flower.wire.contract import ExtractionSpec, TaskContract
from mobillm_flower.wire.messages import (
    DeviceDescription,
    EvaluationRequest,
    WindowRequest,
    open_description,
    open_evaluation,
    open_metrics,
    open_request,
    pack_description,
    pack_evaluation,
    pack_metrics,
    pack_refusal,
    pack_request,
    refusal,
)
from mobillm_flower.wire.window import record_bytes
from tests.support.packets import PSEUDONYM, make_contract, make_spec

INFO = BackboneInfo("tiny", "bert", False, 4, 8, "fp32", "ab" * 32, "constant")
DEVICE = DeviceDescription(PSEUDONYM, INFO, make_contract(), 12, 0)
REQUEST = WindowRequest(make_contract(), make_spec(), 3, 16, 2**20, frozenset({bytes(16), b"x" * 16}))
TYPES = {"ab" * 32: AlignmentSpec(8, 1)}


def evaluation() -> EvaluationRequest:
    config = SideNetworkConfig.of(TYPES, name="additive", num_blocks=2, bottleneck=4, num_outputs=3)
    return EvaluationRequest(
        contract=make_contract(),
        spec=make_spec(),
        side_config=config,
        prediction={"loss": "square"},
        state=config.build().state_dict(),
        held=frozenset({bytes(16), b"x" * 16}),
    )


def agreed(_contract: TaskContract, _spec: ExtractionSpec) -> None:
    """The device agrees."""


def changed(content: RecordDict, record: str, key: str, value: object) -> RecordDict:
    records: Any = content
    records[record][key] = value
    return content


def without(content: RecordDict, record: str, key: str) -> RecordDict:
    del content[record][key]
    return content


# descriptions ----------------------------------------------------------------------------------------------------
def test_description_round_trip() -> None:
    assert open_description(pack_description(DEVICE)) == DEVICE


@pytest.mark.parametrize("content", [RecordDict(), RecordDict({keys.DEVICE: MetricRecord()})])
def test_description_missing(content: RecordDict) -> None:
    with pytest.raises(PacketRejected, match="records: 'device' must be a ConfigRecord"):
        open_description(content)


@pytest.mark.parametrize("chosen", ["m@2: 612 MiB measured, 800 MiB allowed; the largest", "é" * 300])
def test_a_description_may_say_which_backbone_was_chosen_and_why(chosen: str) -> None:
    device = dataclasses.replace(DEVICE, chosen=chosen)
    assert open_description(pack_description(device)) == device


@pytest.mark.parametrize("chosen", ["x" * 301, "two\nlines", "bell\x07", 5, b"bytes", ["a", "b"]])
def test_what_it_says_is_one_short_printable_line(chosen: object) -> None:
    with pytest.raises(PacketRejected, match="description: 'chosen' must be one line of at most 300 characters"):
        open_description(changed(pack_description(DEVICE), keys.DEVICE, keys.CHOSEN, chosen))


@pytest.mark.parametrize("version", [0, 2, "1", -1])
def test_description_of_another_version(version: object) -> None:
    with pytest.raises(PacketRejected, match=r"schema-version: version .*, this server reads 1"):
        open_description(changed(pack_description(DEVICE), keys.DEVICE, keys.VERSION, version))


@pytest.mark.parametrize("key", [keys.PSEUDONYM, keys.BACKBONE, keys.CONTRACT, keys.NUM_TRAIN, keys.NUM_TEST])
def test_description_without_a_field(key: str) -> None:
    with pytest.raises(PacketRejected, match="description: a field is missing or malformed"):
        open_description(without(pack_description(DEVICE), keys.DEVICE, key))


@pytest.mark.parametrize(
    "pseudonym",
    ["", "0" * 31, "0" * 33, "G" * 32, "../../etc/passwd" * 2, "0" * 31 + "\n", "A" * 32, b"0" * 32, 5],
)
def test_description_with_a_bad_pseudonym(pseudonym: object) -> None:
    """The same form as a window's header asks for, so that a described device can also upload."""
    with pytest.raises(PacketRejected, match="description: "):
        open_description(changed(pack_description(DEVICE), keys.DEVICE, keys.PSEUDONYM, pseudonym))


@pytest.mark.parametrize("count", [-1, 1.0, "3", [1]])
@pytest.mark.parametrize("key", [keys.NUM_TRAIN, keys.NUM_TEST])
def test_description_with_bad_counts(key: str, count: object) -> None:
    with pytest.raises(PacketRejected, match="description: sample counts must be whole numbers"):
        open_description(changed(pack_description(DEVICE), keys.DEVICE, key, count))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("depth", 0),
        ("depth", "4"),
        ("depth", 4.5),
        ("width", -8),
        ("width", None),
        ("causal", 1),
        ("name", 3),
        ("fingerprint", ["ab"]),
    ],
)
def test_description_with_a_bad_backbone(field: str, value: object) -> None:
    record = json.dumps({**dataclasses.asdict(INFO), field: value})
    with pytest.raises(PacketRejected, match="description: a field of the backbone has another type"):
        open_description(changed(pack_description(DEVICE), keys.DEVICE, keys.BACKBONE, record))


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"name": 1, "more": 2}', "[" * 100_000, "9" * 5000])
@pytest.mark.parametrize("key", [keys.BACKBONE, keys.CONTRACT])
def test_description_with_other_json(key: str, text: str) -> None:
    with pytest.raises(PacketRejected, match="description: a field is missing or malformed"):
        open_description(changed(pack_description(DEVICE), keys.DEVICE, key, text))


# requests --------------------------------------------------------------------------------------------------------
def test_request_round_trip() -> None:
    assert open_request(pack_request(REQUEST)) == REQUEST
    empty = dataclasses.replace(REQUEST, held=frozenset())
    assert open_request(pack_request(empty)) == empty


def test_request_is_the_same_whatever_the_order_of_held() -> None:
    ids = [bytes([i]) * 16 for i in range(50)]
    records = [
        pack_request(dataclasses.replace(REQUEST, held=frozenset(order)))[keys.REQUEST][keys.HELD]
        for order in (ids, reversed(ids))
    ]
    assert records[0] == records[1] == b"".join(ids)


def test_request_missing() -> None:
    with pytest.raises(MismatchError, match="the server's message carries no 'request'"):
        open_request(RecordDict())
    with pytest.raises(MismatchError, match="the server's message carries no 'request'"):
        open_evaluation(RecordDict({keys.REQUEST: MetricRecord()}), agreed)


@pytest.mark.parametrize("version", [0, 2, "1"])
def test_request_of_another_version(version: object) -> None:
    with pytest.raises(MismatchError, match=r"the server speaks version .*, this device 1; install the same"):
        open_request(changed(pack_request(REQUEST), keys.REQUEST, keys.VERSION, version))


@pytest.mark.parametrize("key", [keys.CONTRACT, keys.SPEC, keys.ROUND, keys.WINDOW, keys.MAX_BYTES, keys.HELD])
def test_request_without_a_field(key: str) -> None:
    with pytest.raises(MismatchError, match="lacks a field or has one of another form"):
        open_request(without(pack_request(REQUEST), keys.REQUEST, key))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (keys.WINDOW, -1),
        (keys.WINDOW, "4"),
        (keys.MAX_BYTES, 1.5),
        (keys.ROUND, [1]),
        (keys.HELD, "00"),
        (keys.HELD, 3),
    ],
)
def test_request_with_a_bad_field(key: str, value: object) -> None:
    with pytest.raises(MismatchError, match="lacks a field or has one of another form"):
        open_request(changed(pack_request(REQUEST), keys.REQUEST, key, value))


@pytest.mark.parametrize("key", [keys.CONTRACT, keys.SPEC])
def test_request_with_other_json(key: str) -> None:
    with pytest.raises(MismatchError, match="is not of the form that this version reads"):
        open_request(changed(pack_request(REQUEST), keys.REQUEST, key, "{}"))


def test_difference_names_field_and_both_values() -> None:
    with pytest.raises(MismatchError, match=r"what is uploaded differs: codec is 'nf4' at the server, 'fp32' on this device; keep is 0.5") as caught:  # fmt: skip # noqa: E501
        make_spec().require_same(make_spec(codec="nf4", keep=0.5), mine="on this device", theirs="at the server")
    assert "give both sides the same settings" in str(caught.value)
    make_spec().require_same(make_spec(), mine="here", theirs="there")


@pytest.mark.parametrize("agreed", [make_contract(), make_contract(label_range=(0.0, 5.0)), make_spec(keep=0.25)])
def test_agreed_values_survive_json(agreed: Any) -> None:
    again = type(agreed).from_json(agreed.to_json())
    assert again == agreed
    assert hash(again) == hash(agreed)
    assert again.to_json() == agreed.to_json()


# evaluation ------------------------------------------------------------------------------------------------------
def test_evaluation_round_trip() -> None:
    request = evaluation()
    opened = open_evaluation(pack_evaluation(request), agreed)
    assert (opened.contract, opened.spec, opened.prediction) == (request.contract, request.spec, request.prediction)
    assert opened.side_config == request.side_config
    assert opened.held == request.held
    assert set(opened.state) == set(request.state)
    for name, tensor in request.state.items():
        assert torch.equal(opened.state[name], tensor)
    opened.side_config.build().load_state_dict(dict(opened.state))


@pytest.mark.parametrize(("codec", "error"), [("fp16", 1e-3), ("int8", 2e-2), ("nf4", 0.2)])
def test_weights_travel_under_a_codec(codec: str, error: float) -> None:
    config = SideNetworkConfig.of(TYPES, name="additive", num_blocks=2, bottleneck=64, num_outputs=3, width=64)
    state = {name: torch.randn_like(value) for name, value in config.build().state_dict().items()}
    request = dataclasses.replace(evaluation(), side_config=config, state=state, codec=codec)
    content = pack_evaluation(request)
    opened = open_evaluation(content, agreed).state
    for name, value in state.items():
        if value.dim() < 2:
            assert torch.equal(opened[name], value)
        else:
            assert opened[name].shape == value.shape
            assert torch.linalg.vector_norm(opened[name] - value) <= error * torch.linalg.vector_norm(value)
    whole = record_bytes(pack_evaluation(dataclasses.replace(request, codec="fp32")))
    assert record_bytes(content) < {"fp16": 0.6, "int8": 0.35, "nf4": 0.25}[codec] * whole


def test_weights_of_another_network() -> None:
    content = pack_evaluation(evaluation())
    del content[keys.SIDE_NETWORK]["gates"]
    with pytest.raises(MismatchError, match="other weights than its configuration names"):
        open_evaluation(content, agreed)


def test_evaluation_of_an_empty_state() -> None:
    opened = open_evaluation(pack_evaluation(dataclasses.replace(evaluation(), state={})), agreed)
    assert dict(opened.state) == {}


def test_evaluation_without_arrays() -> None:
    content = pack_evaluation(evaluation())
    content[keys.SIDE_NETWORK] = ConfigRecord()
    with pytest.raises(MismatchError, match="carries no 'side-network'"):
        open_evaluation(content, agreed)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (keys.SIDE_CONFIG, "not json"),
        (keys.SIDE_CONFIG, "[]"),
        (keys.SIDE_CONFIG, "{}"),
        (keys.SIDE_CONFIG, '{"types": []}'),
        (keys.SIDE_CONFIG, '{"types": {"a": 1}}'),
        (keys.PREDICTION, "{"),
        (keys.HELD, "00"),
        (keys.CODEC, "int9"),
    ],
)
def test_evaluation_with_a_bad_field(key: str, value: object) -> None:
    with pytest.raises(MismatchError, match="lacks a field or has one of another form"):
        open_evaluation(changed(pack_evaluation(evaluation()), keys.REQUEST, key, value), agreed)


@pytest.mark.parametrize("data", [b"", b"\x93NUMPY\x01\x00", b"PK\x03\x04"])
def test_evaluation_with_a_damaged_array(data: bytes) -> None:
    content: Any = pack_evaluation(evaluation())
    content[keys.SIDE_NETWORK]["gates"] = Array("float32", (1,), "numpy.ndarray", data)
    with pytest.raises(MismatchError, match="lacks a field or has one of another form"):
        open_evaluation(content, agreed)


# metrics and refusals --------------------------------------------------------------------------------------------
def test_metrics_round_trip() -> None:
    metrics = {keys.NUM_EXAMPLES: 4.0, "accuracy": 0.75}
    assert open_metrics(pack_metrics(metrics), metric="accuracy", num_test=4) == metrics
    nothing = {keys.NUM_EXAMPLES: 0.0}
    assert open_metrics(pack_metrics(nothing), metric="accuracy", num_test=0) == nothing


@pytest.mark.parametrize(
    "content",
    [RecordDict(), RecordDict({keys.METRICS: ConfigRecord()}), pack_metrics({"accuracy": 1.0})],
)
def test_metrics_missing(content: RecordDict) -> None:
    with pytest.raises(PacketRejected, match="metrics: 'metrics' must be a MetricRecord with 'num-examples'"):
        open_metrics(content, metric="accuracy", num_test=1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e15, [1.0], 10**400])
def test_metrics_must_be_finite_numbers(value: object) -> None:
    with pytest.raises(PacketRejected, match="metrics: 'accuracy' must be a finite number"):
        open_metrics(
            changed(pack_metrics({keys.NUM_EXAMPLES: 1.0}), keys.METRICS, "accuracy", value),
            metric="accuracy",
            num_test=1,
        )


@pytest.mark.parametrize("count", [-1.0, 3.0, 1e14])
def test_metrics_are_over_the_samples_that_were_described(count: float) -> None:
    content = pack_metrics({keys.NUM_EXAMPLES: count, "accuracy": 1.0})
    with pytest.raises(PacketRejected, match="is not the number of test samples described, 4"):
        open_metrics(content, metric="accuracy", num_test=4)


@pytest.mark.parametrize("names", [["round"], ["accuracy", "kind"], []])
def test_metrics_have_no_other_name(names: list[str]) -> None:
    content = pack_metrics({keys.NUM_EXAMPLES: 4.0, **dict.fromkeys(names, 1.0)})
    with pytest.raises(PacketRejected, match="must hold num-examples and accuracy, and nothing else"):
        open_metrics(content, metric="accuracy", num_test=4)


def test_refusal() -> None:
    assert refusal(pack_refusal("no rows left")) == "no rows left"
    assert refusal(pack_metrics({keys.NUM_EXAMPLES: 1.0})) is None
    assert refusal(RecordDict({keys.REFUSED: MetricRecord()})) is None
    assert refusal(RecordDict({keys.REFUSED: ConfigRecord()})) == ""


def test_refusal_is_cut() -> None:
    assert refusal(pack_refusal("x" * 10_000)) == "x" * 499 + "…"
    assert refusal(pack_refusal("a\x1b[2J\nb")) == r"a\x1b[2J\nb"


def test_packing_changes_no_tensor() -> None:
    request = evaluation()
    before = {name: tensor.clone() for name, tensor in request.state.items()}
    content: Any = pack_evaluation(request)
    name = next(iter(before))
    assert content[keys.SIDE_NETWORK][name].numpy().dtype == np.float32
    assert all(torch.equal(request.state[name], tensor) for name, tensor in before.items())
