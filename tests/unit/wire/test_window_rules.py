"""Every rule that the server can reject a window for, each with packets that break that rule and no other."""

from __future__ import annotations

import inspect
import io
import json
import pickle
import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord

from mobillm_flower.errors import PacketRejected
from mobillm_flower.privacy.ledger import Release
from mobillm_flower.wire import keys, window
from mobillm_flower.wire.window import open_window
from tests.support.packets import (
    Packet,
    make_contract,
    make_packet,
    make_spec,
    random_samples,
    with_activations,
    with_target,
)

Maker = Callable[..., Packet]
"""Makes a packet when it is called with nothing; its defaults keep what a loop held when it was registered."""

CASES: list[tuple[str, str, Maker]] = []


def breaks(rule: str, match: str) -> Callable[[Maker], Maker]:
    """Register a maker of a packet that breaks `rule`."""

    def register(make: Maker) -> Maker:
        CASES.append((rule, match, make))
        return make

    return register


def tampered(change: Callable[[Packet], object], *, rehash: bool = False, **arguments: object) -> Packet:
    """Return a valid packet after `change`."""
    packet = make_packet(**arguments)  # type: ignore[arg-type]
    change(packet)
    if rehash:
        packet.rehash()
    return packet


def in_header(key: str, value: object) -> Packet:
    return tampered(lambda p: p.content[keys.HEADER].__setitem__(key, value))


def without(record: str, key: str) -> Packet:
    return tampered(lambda p: p.content[record].__delitem__(key))


def json_field(key: str, field: str, value: object) -> Packet:
    packet = make_packet()
    values = json.loads(packet.content[keys.HEADER][key])
    packet.content[keys.HEADER][key] = json.dumps({**values, field: value})
    return packet


def raw_array(name: str, data: bytes, stype: str = "numpy.ndarray") -> Packet:
    """A packet in which one array's serialized bytes are these."""
    packet = make_packet()
    honest = packet.content[keys.ACTIVATIONS][name]
    packet.content[keys.ACTIVATIONS][name] = Array(honest.dtype, honest.shape, stype, data)
    return packet


# records ---------------------------------------------------------------------------------------------------------
for _name in (keys.HEADER, keys.ACTIVATIONS, keys.TARGETS, keys.METRICS):
    breaks("records", f"'{_name}' must be a")(lambda name=_name: tampered(lambda p: p.content.pop(name)))
breaks("records", "'header' must be a ConfigRecord")(
    lambda: tampered(lambda p: p.content.__setitem__(keys.HEADER, MetricRecord({keys.VERSION: 1})))
)
breaks("records", "'activations' must be a ArrayRecord")(
    lambda: tampered(lambda p: p.content.__setitem__(keys.ACTIVATIONS, ConfigRecord()))
)
breaks("records", "'targets' must be a ArrayRecord")(
    lambda: tampered(lambda p: p.content.__setitem__(keys.TARGETS, ConfigRecord()))
)
breaks("records", "'metrics' must be a MetricRecord")(
    lambda: tampered(lambda p: p.content.__setitem__(keys.METRICS, ConfigRecord({keys.NUM_EXAMPLES: 3})))
)

# size, window ----------------------------------------------------------------------------------------------------
breaks("size", r"\d+ bytes, at most \d+ were asked for")(lambda: replace(make_packet(), max_bytes=500))
breaks("size", "at most 2000 were asked for")(
    lambda: replace(tampered(lambda p: p.content.__setitem__("more", ConfigRecord({"x": b"x" * 2000}))), max_bytes=2000)
)
breaks("window", "3 samples, at most 2 were asked for")(lambda: replace(make_packet(3), max_samples=2))

# schema-version, header ------------------------------------------------------------------------------------------
breaks("schema-version", "version 2, this server reads 1")(lambda: in_header(keys.VERSION, 2))
breaks("schema-version", "version 0, this server reads 1")(lambda: in_header(keys.VERSION, 0))
for _value in (True, "1", 1.0, b"1", [1], -1, 10**6 + 1):
    breaks("header", "'schema-version' must be a whole number")(lambda value=_value: in_header(keys.VERSION, value))
for _key in (keys.VERSION, keys.TOTAL, keys.REMAINING, keys.REFUSED):
    breaks("header", f"'{_key}' must be a whole number")(lambda key=_key: without(keys.HEADER, key))
breaks("header", "'total' must be a whole number from 0 to 1000000000")(lambda: in_header(keys.TOTAL, 10**9 + 1))
breaks("header", "'refused' must be a whole number")(lambda: in_header(keys.REFUSED, -1))
for _key in (keys.CONTRACT, keys.SPEC, keys.PSEUDONYM, keys.DATA_FINGERPRINT):
    breaks("header", f"'{_key}' must be text")(lambda key=_key: without(keys.HEADER, key))
breaks("header", "'contract' must be text")(lambda: in_header(keys.CONTRACT, b"{}"))
for _value in ("", "0" * 31, "0" * 33, "A" * 32, "0" * 31 + "\n", "0" * 32 + "\n", "../" + "0" * 29):
    breaks("header", "'pseudonym' must be 32 hex digits")(lambda value=_value: in_header(keys.PSEUDONYM, value))
breaks("header", "'data-fingerprint' must be 32 hex digits")(lambda: in_header(keys.DATA_FINGERPRINT, "g" * 32))

# contract, extraction --------------------------------------------------------------------------------------------
breaks("contract", r"labels is 3 names \(\w{8}\) there, 3 names \(\w{8}\) here")(
    lambda: json_field(keys.CONTRACT, "labels", ["alarm", "music", "tea"])
)
breaks("contract", "max_length is 7 there, 6 here")(lambda: json_field(keys.CONTRACT, "max_length", 7))
for _value in ("", "[]", "{}", "null", "NaN", "[" * 100_000, "9" * 5000, '{"kind": 1}'):
    breaks("contract", "not of the form that this version reads")(lambda value=_value: in_header(keys.CONTRACT, value))
breaks("contract", "not of the form that this version reads")(lambda: json_field(keys.CONTRACT, "another", 1))
breaks("extraction", "sigma is 1.0 there, 0.0 here")(lambda: json_field(keys.SPEC, "sigma", 1.0))
breaks("extraction", "backbone is .* there")(lambda: json_field(keys.SPEC, "backbone", "cd" * 32))
breaks("extraction", "clip_norm is nan there")(lambda: json_field(keys.SPEC, "clip_norm", float("nan")))
breaks("extraction", "layers is .* there")(lambda: json_field(keys.SPEC, "layers", [1, 4]))
breaks("extraction", "not of the form that this version reads")(lambda: json_field(keys.SPEC, "layers", {"2": 4}))
for _value in ("", "[]", "{}", "[" * 100_000):
    breaks("extraction", "not of the form that this version reads")(lambda value=_value: in_header(keys.SPEC, value))

# releases, counts ------------------------------------------------------------------------------------------------
breaks("releases", "must be bytes, 16 a sample")(lambda: without(keys.HEADER, keys.RELEASES))
breaks("releases", "must be bytes, 16 a sample")(lambda: in_header(keys.RELEASES, "0" * 48))
breaks("releases", "must be bytes, 16 a sample")(lambda: in_header(keys.RELEASES, bytes(47)))
breaks("releases", "a release id occurs twice")(
    lambda: tampered(lambda p: p.content[keys.HEADER].__setitem__(keys.RELEASES, bytes(48)), rehash=True)
)
breaks("counts", "3 sent, 4 remaining, 4 refused of 10")(lambda: in_header(keys.REFUSED, 4))
breaks("counts", "3 sent, 4 remaining, 2 refused of 8")(lambda: in_header(keys.TOTAL, 8))
for _name in (keys.LENGTHS, keys.TOKENS):
    breaks("counts", "3 releases, .*2 ")(
        lambda name=_name: tampered(lambda p: p.set_array(name, p.array(name)[:2]), rehash=True)
    )
breaks("targets", "24 bytes of targets, expected 18")(  # of four samples
    lambda: tampered(
        lambda p: p.set_array(
            keys.PAYLOAD, np.concatenate([p.array(keys.PAYLOAD, keys.TARGETS)] * 2)[:24], keys.TARGETS
        ),
        rehash=True,
    )
)
breaks("counts", "2 releases, 3 lengths")(
    lambda: tampered(
        lambda p: p.content[keys.HEADER].__setitem__(keys.RELEASES, p.content[keys.HEADER][keys.RELEASES][:32]),
        rehash=True,
    )
)

# arrays ----------------------------------------------------------------------------------------------------------
for _name in (keys.PAYLOAD, keys.LENGTHS, keys.TOKENS):
    breaks("arrays", f"'{_name}' is missing")(lambda name=_name: without(keys.ACTIVATIONS, name))
breaks("arrays", "'payload' is missing")(lambda: tampered(lambda p: p.content.__setitem__(keys.TARGETS, ArrayRecord())))


def npy(values: np.ndarray, *, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=allow_pickle)
    return buffer.getvalue()


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, payload=np.zeros(3, np.uint8))
    return buffer.getvalue()


_HUGE = npy(np.zeros(3, np.uint8)).replace(b"(3,), }         ", b"(3" + b"0" * 9 + b",), }")
breaks("arrays", "'payload' cannot be read")(lambda: raw_array(keys.PAYLOAD, b""))
breaks("arrays", "'payload' cannot be read")(lambda: raw_array(keys.PAYLOAD, b"\x93NUMPY\x01\x00"))
breaks("arrays", "'payload' cannot be read")(lambda: raw_array(keys.PAYLOAD, npy(np.zeros(9, np.uint8))[:-1]))
breaks("arrays", "'payload' cannot be read")(lambda: raw_array(keys.PAYLOAD, _HUGE))
breaks("arrays", "'payload' cannot be read")(lambda: raw_array(keys.PAYLOAD, pickle.dumps(np.zeros(3, np.uint8))))
breaks("arrays", "'payload' cannot be read")(
    lambda: raw_array(keys.PAYLOAD, npy(np.array([{}], object), allow_pickle=True))
)
breaks("arrays", "'payload' cannot be read")(
    lambda: raw_array(keys.PAYLOAD, npy(np.zeros(3, np.uint8)), stype="torch.Tensor")
)
breaks("arrays", "'payload' must be uint8 of 1 dimension")(lambda: raw_array(keys.PAYLOAD, npz()))
breaks("arrays", "'payload' must be uint8 of 1 dimension")(
    lambda: tampered(lambda p: p.set_array(keys.PAYLOAD, p.array(keys.PAYLOAD).view(np.int8)))
)
breaks("arrays", "'payload' must be uint8 of 1 dimension")(
    lambda: tampered(lambda p: p.set_array(keys.PAYLOAD, p.array(keys.PAYLOAD).reshape(3, -1)), rehash=True)
)
for _dtype in ("<i8", ">u4", "<f4", "<u8"):
    breaks("arrays", "'lengths' must be uint32 of 1 dimension")(
        lambda dtype=_dtype: tampered(
            lambda p: p.set_array(keys.LENGTHS, p.array(keys.LENGTHS).astype(dtype)), rehash=True
        )
    )
breaks("arrays", "'tokens' must be uint32 of 1 dimension")(
    lambda: tampered(lambda p: p.set_array(keys.TOKENS, np.array(1, np.uint32)), rehash=True)
)
breaks("arrays", "'payload' must be uint8 of 1 dimension")(
    lambda: tampered(
        lambda p: p.set_array(keys.PAYLOAD, p.array(keys.PAYLOAD, keys.TARGETS).reshape(3, -1), keys.TARGETS),
        rehash=True,
    )
)

# lengths, tokens, targets ----------------------------------------------------------------------------------------
breaks("lengths", "lengths add up to 193 of 192 bytes")(
    lambda: tampered(lambda p: p.set_array(keys.LENGTHS, np.array([64, 64, 65], np.uint32)), rehash=True)
)
breaks("lengths", "lengths add up to 12884901885 of 192 bytes")(  # would wrap around in 32 bits
    lambda: tampered(lambda p: p.set_array(keys.LENGTHS, np.full(3, 2**32 - 1, np.uint32)), rehash=True)
)
for _tokens in ([1, 0, 1], [1, 2, 1], [2**32 - 1] * 3):
    breaks("tokens", r"\d+ to \d+ rows a sample, allowed are 1 to 1")(
        lambda tokens=_tokens: tampered(lambda p: p.set_array(keys.TOKENS, np.array(tokens, np.uint32)), rehash=True)
    )
breaks("tokens", "7 to 7 rows a sample, allowed are 1 to 6")(
    lambda: tampered(
        lambda p: p.set_array(keys.TOKENS, np.full(1, 7, np.uint32)), rehash=True, count=1, spec=make_spec(pivot="all")
    )
)
breaks("targets", "8 bytes of targets, expected 6")(
    lambda: with_target(bytes(8), spec=make_spec(), contract=make_contract())
)
breaks("targets", "0 bytes of targets, expected 18")(
    lambda: tampered(lambda p: p.set_array(keys.PAYLOAD, np.zeros(0, np.uint8), keys.TARGETS), rehash=True)
)
breaks("targets", "a difference is not finite")(
    lambda: with_target(np.array([np.nan, 0, 0], "<f2").tobytes(), spec=make_spec(), contract=make_contract())
)
breaks("targets", "a difference is not onehot")(
    lambda: with_target(np.array([0.5, 0.5, -1], "<f2").tobytes(), spec=make_spec(), contract=make_contract())
)
breaks("targets", "a label is not below 3")(
    lambda: with_target(np.array([3], "<u2").tobytes(), spec=make_spec(objective="label"), contract=make_contract())
)

# payload-hash ----------------------------------------------------------------------------------------------------


def flip_first(packet: Packet, name: str, record: str = keys.ACTIVATIONS) -> None:
    values = packet.array(name, record).copy()
    values.reshape(-1)[0] ^= 1
    packet.set_array(name, values, record)


breaks("payload-hash", "not what the header was made for")(lambda: tampered(lambda p: flip_first(p, keys.PAYLOAD)))
breaks("payload-hash", "not what the header was made for")(
    lambda: tampered(lambda p: flip_first(p, keys.PAYLOAD, keys.TARGETS))
)
breaks("payload-hash", "not what the header was made for")(lambda: without(keys.HEADER, keys.PAYLOAD_HASH))
breaks("payload-hash", "not what the header was made for")(lambda: in_header(keys.PAYLOAD_HASH, "0" * 64))
breaks("payload-hash", "not what the header was made for")(  # the same samples under each other's ids
    lambda: tampered(
        lambda p: p.content[keys.HEADER].__setitem__(
            keys.RELEASES, p.content[keys.HEADER][keys.RELEASES][16:] + p.content[keys.HEADER][keys.RELEASES][:16]
        )
    )
)
breaks("payload-hash", "not what the header was made for")(  # as long together, cut elsewhere
    lambda: tampered(lambda p: p.set_array(keys.LENGTHS, np.array([60, 68, 64], np.uint32)))
)

_number: object
# metrics ---------------------------------------------------------------------------------------------------------
for _key in (keys.FORWARD_SECONDS, keys.PEAK_MEMORY):
    breaks("metrics", f"{_key} must be a number of at least 0")(lambda key=_key: without(keys.METRICS, key))
    for _number in (float("nan"), float("inf"), -1, 1e15, 10**400, 2**64, [1.0], []):
        breaks("metrics", f"{_key} must be a number of at least 0")(
            lambda key=_key, value=_number: tampered(lambda p: p.content[keys.METRICS].__setitem__(key, value))
        )
for _number in (2, 4, -3, float("nan"), [3]):
    breaks("metrics", "num-examples is not the number of samples, 3")(
        lambda value=_number: tampered(lambda p: p.content[keys.METRICS].__setitem__(keys.NUM_EXAMPLES, value))
    )
breaks("metrics", "num-examples is not the number of samples, 3")(lambda: without(keys.METRICS, keys.NUM_EXAMPLES))

# activations, norm -----------------------------------------------------------------------------------------------
for _value in (float("nan"), float("inf"), -float("inf")):
    breaks("activations", "not all finite")(lambda value=_value: with_activations(torch.full((1, 2, 1, 8), value)))
breaks("activations", r"a value is beyond ±1e\+06")(lambda: with_activations(torch.full((1, 2, 1, 8), -1.1e6)))
breaks("activations", "60 bytes for 16 values, expected 64")(
    lambda: tampered(lambda p: p.set_array(keys.LENGTHS, np.array([60, 68, 64], np.uint32)), rehash=True)
)
breaks("activations", "64 bytes for 32 values, expected 128")(
    lambda: tampered(
        lambda p: p.set_array(keys.TOKENS, np.full(1, 2, np.uint32)),
        rehash=True,
        spec=make_spec(pivot="all"),
        samples=[replace(s, tokens=1) for s in random_samples(1, make_spec(), make_contract())],
    )
)


def damaged(codec: str, keep: float, start: int, blob: bytes) -> Packet:
    """A sample of this codec with some of its bytes overwritten."""
    spec, contract = make_spec(codec=codec, keep=keep), make_contract()
    sample = random_samples(1, spec, contract)[0]
    stop = len(sample.activations) if start < 0 and start + len(blob) == 0 else start + len(blob)
    activations = bytearray(sample.activations)
    activations[start:stop] = blob
    return make_packet(spec=spec, contract=contract, samples=[replace(sample, activations=bytes(activations))])


_NAN = np.float32(np.nan).tobytes()
for _codec in ("nf4", "fp4", "int8", "fp8"):  # the last four bytes are a scale or an offset
    breaks("activations", "decoded values are not all finite")(lambda codec=_codec: damaged(codec, 1.0, -4, _NAN))
breaks("activations", "the mask has no known form")(lambda: damaged("fp32", 0.5, 0, b"\x07"))
breaks("activations", "the mask does not keep 4 values of every vector")(lambda: damaged("fp32", 0.5, 1, b"\xff"))
breaks("norm", "above what clip norm 1 allows")(
    lambda: with_activations(torch.full((1, 2, 1, 8), 0.5), spec=make_spec(clip_norm=1.0))
)
breaks("norm", "above what clip norm 1 allows")(
    lambda: with_activations(torch.full((1, 2, 1, 8), 5.0), spec=make_spec(clip_norm=1.0, sigma=1.0))
)
breaks("norm", "above what joint epsilon 8 allows")(
    lambda: with_activations(torch.full((1, 1, 1, 8), 5.0), spec=make_spec(projection="8 of text", joint_epsilon=8.0))
)
breaks("targets", "p_b is not 1/3, and this backbone predicts nothing else")(
    lambda: make_packet(spec=make_spec(constant_base=True))
)


@pytest.mark.parametrize(("rule", "match", "make"), CASES, ids=[f"{rule}-{i}" for i, (rule, _, _) in enumerate(CASES)])
def test_rule(rule: str, match: str, make: Maker) -> None:
    packet = make()
    with pytest.raises(PacketRejected, match=match) as caught:
        packet.open()
    assert caught.value.rule == rule
    assert str(caught.value) == f"{rule}: {caught.value.detail}"


def test_every_rule_has_a_packet() -> None:
    source = inspect.getsource(window)
    named = re.findall(r"PacketRejected\(\s*\"([a-z-]+)\"", source)
    assert len(named) == source.count("raise PacketRejected("), "a rule's name is not written where it is raised"
    assert {rule for rule, _, _ in CASES} == set(named)


def test_not_a_record_dict() -> None:
    packet = make_packet()
    with pytest.raises(PacketRejected, match="the message carries no records") as caught:
        open_window({}, spec=packet.spec, contract=packet.contract, max_samples=1, max_bytes=1)  # type: ignore[arg-type]
    assert caught.value.rule == "records"


def test_limits_are_inclusive() -> None:
    packet = make_packet(3)
    size = packet.open().num_bytes
    assert replace(packet, max_bytes=size, max_samples=3).open().num_bytes == size
    with pytest.raises(PacketRejected, match=f"size: {size} bytes, at most {size - 1}"):
        replace(packet, max_bytes=size - 1).open()


def test_counts_may_add_up_exactly() -> None:
    packet = make_packet(3)
    packet.content[keys.HEADER][keys.TOTAL] = 9  # 3 sent, 4 remaining, 2 refused
    assert packet.open().total == 9


def test_norm_leaves_room_for_the_announced_noise() -> None:
    spec = make_spec(clip_norm=1.0, sigma=0.5, width=64)
    for seed in range(20):
        assert len(make_packet(4, spec=spec, seed=seed).open().samples) == 4


def test_largest_believed_value_is_accepted() -> None:
    opened = with_activations(torch.full((1, 2, 1, 8), 1e6)).open()
    assert np.frombuffer(opened.samples[0].activations, "<f4").max() == 1e6


def test_a_rejection_is_short() -> None:
    """What a device writes into its packet must not fill the server's log."""
    packet = json_field(keys.CONTRACT, "prompt", "x" * 100_000)
    with pytest.raises(PacketRejected, match="prompt is ") as caught:
        packet.open()
    assert len(str(caught.value)) < 2000


def test_an_empty_window_is_valid() -> None:
    opened = make_packet(0).open()
    assert opened.samples == []
    assert (opened.total, opened.remaining, opened.refused) == (7, 4, 2)


def test_size_counts_every_record() -> None:
    packet = make_packet(1, samples=[Release(bytes(16), 1, bytes(64), bytes(6))])
    before = packet.open().num_bytes
    packet.content["more"] = ConfigRecord({"text": "äb", "list": ["x", "yz"], "number": 1, "bytes": b"123"})
    added = len("more") + len("textlistnumberbytes") + len("äb".encode()) + 3 + 8 + 3
    assert packet.open().num_bytes == before + added
