"""Windows of any shape come back as they were packed; a damaged one is rejected by name, or is the same window."""

from __future__ import annotations

import contextlib
import json
import math
import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from mobillm_flower.core.codecs import CODECS
from mobillm_flower.core.perturb import largest_mask
from mobillm_flower.core.sparse import decode_samples
from mobillm_flower.errors import PacketRejected
from mobillm_flower.wire import keys
from mobillm_flower.wire.contract import ExtractionSpec, TaskContract
from mobillm_flower.wire.target_bytes import check_targets, decode_targets
from mobillm_flower.wire.window import MAX_VALUE, Window, record_bytes
from tests.support.packets import (
    DATA_FINGERPRINT,
    PSEUDONYM,
    Packet,
    make_contract,
    make_packet,
    make_spec,
    random_activations,
    random_samples,
    random_targets,
)


def fuzz(max_examples: int) -> settings:
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    max_examples = int(os.environ.get("FUZZ_EXAMPLES", max_examples))
    return settings(max_examples=max_examples, deadline=None, database=None, suppress_health_check=slow)


@st.composite
def tasks(draw: st.DrawFn) -> TaskContract:
    if draw(st.booleans()):
        low = draw(st.integers(-5, 5))
        return make_contract(label_range=(float(low), low + draw(st.sampled_from([0.5, 1.0, 5.0]))))
    return make_contract(labels=tuple(f"label{i}" for i in range(draw(st.integers(2, 40)))))


@st.composite
def specs(draw: st.DrawFn) -> ExtractionSpec:
    pivot = draw(st.sampled_from(["last", "first+mean", "all"]))
    clip_norm = draw(st.sampled_from([0.0, 0.5, 4.0]))
    return make_spec(
        width=draw(st.integers(1, 80)),
        num_vectors=2 if pivot == "first+mean" else 1,
        layers=tuple(range(1, draw(st.integers(1, 3)) + 1)),
        pivot=pivot,
        codec=draw(st.sampled_from(sorted(CODECS))),
        clip_norm=clip_norm,
        sigma=draw(st.sampled_from([0.0, 0.5])) if clip_norm else 0.0,
        keep=draw(st.sampled_from([1.0, 1.0, 0.5, 0.25, 0.03])),
        objective=draw(st.sampled_from(["difference", "label"])),
        send_base=draw(st.booleans()),
    )


@fuzz(150)
@given(spec=specs(), contract=tasks(), count=st.integers(0, 5), seed=st.integers(0, 2**20))
def test_round_trip(spec: ExtractionSpec, contract: TaskContract, count: int, seed: int) -> None:
    samples = random_samples(count, spec, contract, seed)
    packet = make_packet(spec=spec, contract=contract, samples=samples)
    opened = packet.open()
    assert opened == Window(
        pseudonym=PSEUDONYM,
        data_fingerprint=DATA_FINGERPRINT,
        samples=samples,
        total=count + 7,
        remaining=4,
        refused=2,
        forward_seconds=0.25,
        peak_memory_bytes=1e8,
        num_bytes=record_bytes(packet.content),
    )
    if not count:
        return
    counts = [sample.tokens * spec.vectors_per_row for sample in opened.samples]
    blobs = [sample.activations for sample in opened.samples]
    decoded = decode_samples(blobs, counts, spec.width, CODECS[spec.codec], spec.keep)
    sent = torch.cat([a.reshape(-1, spec.width) for a in random_activations(count, spec, contract, seed)])
    kept = largest_mask(sent, spec.keep)
    assert torch.equal(decoded[~kept], torch.zeros(int((~kept).sum())))
    worst = {"fp32": 0.0, "fp16": 2e-3, "int8": 0.02, "fp8": 0.07, "nf4": 0.2, "fp4": 0.25}[spec.codec]
    assert (decoded - sent)[kept].abs().max() <= worst * sent.abs().max()

    targets = decode_targets([sample.target for sample in opened.samples], spec, contract)
    labels, base = random_targets(count, contract, seed)
    if spec.objective == "label":
        assert targets.differences is None
        assert torch.equal(targets.labels.reshape(-1), labels)  # type: ignore[union-attr]
        assert (targets.base is None) == (not spec.send_base)
    else:
        assert targets.labels is None
        expected = labels[:, None] - base if contract.is_regression else torch.eye(base.shape[1])[labels] - base
        assert torch.allclose(targets.differences, expected, atol=6e-4)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------- damage
_scalars = st.one_of(
    st.integers(),
    st.integers(min_value=2**63),
    st.floats(),
    st.booleans(),
    st.binary(max_size=80),
    st.text(max_size=40),
    st.sampled_from([0, 1, -1, 2**31, 2**32, 2**63, 10**400, math.nan, math.inf, "", b"", "[" * 5000, "{}", "null"]),
)
_config_values = st.one_of(
    _scalars,
    st.lists(st.integers(), max_size=3),
    st.lists(st.floats(), max_size=3),
    st.lists(st.text(max_size=5), max_size=3),
    st.lists(st.binary(max_size=5), max_size=3),
)
_metric_values = st.one_of(
    st.integers(), st.floats(), st.just(10**400), st.lists(st.floats(), max_size=3), st.lists(st.integers(), max_size=3)
)
_records = st.sampled_from([keys.HEADER, keys.ACTIVATIONS, keys.TARGETS, keys.METRICS])
_array_names = st.sampled_from(
    [
        (keys.ACTIVATIONS, keys.PAYLOAD),
        (keys.ACTIVATIONS, keys.LENGTHS),
        (keys.ACTIVATIONS, keys.TOKENS),
        (keys.TARGETS, keys.PAYLOAD),
    ]
)
_dtypes = st.one_of(
    npst.integer_dtypes(), npst.unsigned_integer_dtypes(), npst.floating_dtypes(), npst.boolean_dtypes(),
    npst.unicode_string_dtypes(max_len=3), npst.datetime64_dtypes(),
)  # fmt: skip


def damage_field(data: st.DataObject, packet: Packet) -> None:
    """Set any field of a header or of metrics to anything, or delete it."""
    name = data.draw(st.sampled_from([keys.HEADER, keys.METRICS]))
    record = packet.content[name]
    key = data.draw(st.sampled_from([*sorted(record), "another"]))
    if key in record and data.draw(st.booleans()):
        del record[key]
    else:
        record[key] = data.draw(_config_values if name == keys.HEADER else _metric_values)


def damage_record(data: st.DataObject, packet: Packet) -> None:
    """Delete a record, or put one of any kind in its place."""
    name = data.draw(_records)
    kind: Any = data.draw(st.sampled_from([None, ConfigRecord, MetricRecord, ArrayRecord, "swap"]))
    if kind is None:
        del packet.content[name]
    elif kind == "swap":
        packet.content[name] = packet.content[data.draw(_records)]
    else:
        packet.content[name] = kind()


def damage_bytes(data: st.DataObject, packet: Packet) -> None:
    """Change, cut or add bytes of an array as it is serialized, its .npy header included."""
    record, name = data.draw(_array_names)
    honest = packet.content[record][name]
    blob = bytearray(honest.data)
    for _ in range(data.draw(st.integers(1, 4))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(blob)), st.integers(0, len(blob))))
    added = data.draw(st.binary(max_size=8))
    packet.content[record][name] = Array(honest.dtype, honest.shape, honest.stype, bytes(blob[:cut]) + added)


def damage_claims(data: st.DataObject, packet: Packet) -> None:
    """Lie about an array's dtype, shape and kind of serialization."""
    record, name = data.draw(_array_names)
    packet.content[record][name] = Array(
        data.draw(st.one_of(st.text(max_size=8), st.sampled_from(["uint8", "float64", "object"]))),
        tuple(data.draw(st.lists(st.integers(), max_size=4))),
        data.draw(st.sampled_from(["numpy.ndarray", "numpy.ndarray", "torch.Tensor", ""])),
        packet.content[record][name].data,
    )


def damage_array(data: st.DataObject, packet: Packet) -> None:
    """Put any array in an array's place, or delete it."""
    record, name = data.draw(_array_names)
    if data.draw(st.integers(0, 4)) == 0:
        del packet.content[record][name]
        return
    dtype: Any = data.draw(st.one_of(_dtypes, st.sampled_from([np.dtype(np.uint8), np.dtype(np.uint32)])))
    shape = data.draw(npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6))
    packet.set_array(name, data.draw(npst.arrays(dtype, shape)), record)


_DAMAGES = [damage_field, damage_record, damage_bytes, damage_claims, damage_array]
_BASES = [
    make_packet(3, spec=spec, contract=contract)
    for spec, contract in (
        (make_spec(codec="nf4"), make_contract()),
        (make_spec(codec="fp16", pivot="all", objective="label", send_base=True), make_contract()),
        (make_spec(codec="int8", keep=0.5, clip_norm=4.0, sigma=0.1), make_contract(label_range=(0.0, 5.0))),
        (make_spec(objective="label"), make_contract(label_range=(-1.0, 1.0))),
    )
]


def copied(packet: Packet) -> Packet:
    return replace(packet, content=RecordDict({name: record.copy() for name, record in packet.content.items()}))


def opened_or_rejected(packet: Packet) -> Window | PacketRejected:
    """Open a packet; any other exception than PacketRejected comes out."""
    try:
        return packet.open()
    except PacketRejected as error:
        return error


def may_differ(opened: Window, honest: Window) -> Window:
    """Give a window the honest one's values in fields that only say something of the device itself."""
    names = ("pseudonym", "data_fingerprint", "total", "remaining", "refused", "forward_seconds", "peak_memory_bytes")
    return replace(opened, num_bytes=honest.num_bytes, **{name: getattr(honest, name) for name in names})


@fuzz(400)
@given(base=st.sampled_from(_BASES), data=st.data())
def test_damage_is_rejected_or_harmless(base: Packet, data: st.DataObject) -> None:
    packet, honest = copied(base), base.open()
    for damage in data.draw(st.lists(st.sampled_from(_DAMAGES), min_size=1, max_size=2)):
        # the first damage may have removed what the second would change
        with contextlib.suppress(KeyError, AttributeError, TypeError):
            damage(data, packet)
    opened = opened_or_rejected(packet)
    if isinstance(opened, PacketRejected):
        assert opened.rule
        assert opened.detail
        return
    assert may_differ(opened, honest) == honest
    assert 0 <= opened.forward_seconds < 1e15
    assert 0 <= opened.peak_memory_bytes < 1e15
    assert opened.remaining + opened.refused + len(opened.samples) <= opened.total


@fuzz(400)
@given(base=st.sampled_from(_BASES), data=st.data())
def test_a_liar_with_a_fitting_hash_gets_nothing_unusable_in(base: Packet, data: st.DataObject) -> None:
    """The bytes are anything and the hash fits them: what is let in decodes to finite, bounded, possible values."""
    packet = copied(base)
    record, name = data.draw(_array_names)
    values = packet.array(name, record).copy()
    flat = values.reshape(-1)
    most = np.iinfo(values.dtype).max
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, flat.size - 1))
        flat[at] = data.draw(
            st.one_of(st.integers(0, most), st.integers(0, 9), st.sampled_from([0x7C, 0x7F, 0xFF, 64]))
        )
    packet.set_array(name, values, record)
    packet.rehash()
    opened = opened_or_rejected(packet)
    if isinstance(opened, PacketRejected):
        assert opened.rule in {"lengths", "tokens", "activations", "norm", "targets"}
        return
    spec, contract = packet.spec, packet.contract
    counts = [sample.tokens * spec.vectors_per_row for sample in opened.samples]
    decoded = decode_samples(
        [sample.activations for sample in opened.samples], counts, spec.width, CODECS[spec.codec], spec.keep
    )
    assert bool(torch.isfinite(decoded).all())
    assert float(decoded.abs().max()) <= MAX_VALUE
    targets = decode_targets([sample.target for sample in opened.samples], spec, contract)
    assert check_targets(targets, contract) == ""


@fuzz(100)
@given(value=_config_values)
@example(value="\x00")
@pytest.mark.parametrize("key", [keys.CONTRACT, keys.SPEC])
def test_any_value_of_an_agreed_text(key: str, value: Any) -> None:
    packet = copied(_BASES[0])
    packet.content[keys.HEADER][key] = value
    with pytest.raises(PacketRejected, match=r"^(header|contract|extraction): ") as caught:
        packet.open()
    assert caught.value.rule in {"header", key}


_json = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)


@fuzz(100)
@given(field=st.sampled_from(["labels", "max_length", "prompt", "label_range", "kind"]), value=_json)
@example(field="max_length", value=True)
@example(field="labels", value=[["alarm"]])
def test_any_value_of_an_agreed_field(field: str, value: Any) -> None:
    """A contract with anything in a field is refused, save where it is equal to the agreed one."""
    packet = copied(_BASES[0])
    agreed = json.loads(packet.contract.to_json())
    packet.content[keys.HEADER][keys.CONTRACT] = json.dumps({**agreed, field: value})
    if json.dumps(value) == json.dumps(agreed[field]):
        assert len(packet.open().samples) == 3
        return
    with pytest.raises(PacketRejected, match=f"contract: .*({field} is |is not of the form)"):
        packet.open()
