"""All messages but windows, to the server and to a device, with any value in any field: opened, or refused by name.

`FUZZ_EXAMPLES=20000 pytest tests/property/test_messages_fuzz.py tests/property/test_window_fuzz.py` looks for longer.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import unicodedata
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings, target
from hypothesis import strategies as st

from mobillm_flower.core.backbone_info import BackboneInfo
from mobillm_flower.core.side_networks import AlignmentSpec, SideNetworkConfig
from mobillm_flower.errors import MismatchError, PacketRejected
from mobillm_flower.privacy.identity import Identity
from mobillm_flower.wire import keys
from mobillm_flower.wire.baseline_messages import open_array, open_config, open_holdings, open_numbers, pack_holdings
from mobillm_flower.wire.masked import open_masked, pack_masked, with_message
from mobillm_flower.wire.masked import open_message as open_masked_message
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
    pack_request,
    refusal,
)
from mobillm_flower.wire.secure_sums.messages import (
    NONCE_BYTES,
    PHASES,
    DeviceKeys,
    Offer,
    Roster,
    open_items,
    open_message,
    open_set,
    pack_message,
)
from mobillm_flower.wire.sums import (
    SumsReply,
    SumsRequest,
    SumsSpec,
    open_sums,
    open_sums_request,
    pack_sums,
    pack_sums_request,
)
from tests.support.packets import PSEUDONYM, make_contract, make_spec

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))
INFO = BackboneInfo("tiny", "bert", False, 4, 8, "fp32", "ab" * 32, "constant")
NUMBERS = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.floats(), st.sampled_from([0, -1, 2**31, math.nan, math.inf, -math.inf])
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=30))
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=8,
)
VALUES = st.one_of(
    st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.text(max_size=60), st.binary(max_size=40),
    st.just("[" * 5000), st.just("9" * 5000), JSON.map(json.dumps),
)  # fmt: skip
KEYS = [keys.VERSION, keys.PSEUDONYM, keys.BACKBONE, keys.CONTRACT, keys.NUM_TRAIN, keys.NUM_TEST, keys.CHOSEN]


def description(data: st.DataObject) -> RecordDict:
    content: Any = pack_description(DeviceDescription(PSEUDONYM, INFO, make_contract(), 12, 3))
    return damaged(content, data)


def holdings(data: st.DataObject) -> RecordDict:
    return damaged(pack_holdings(make_contract(), num_train=12, num_test=3), data)


def damaged(content: Any, data: st.DataObject) -> RecordDict:
    """Change a field, or a field of what is JSON in it, or take one away."""
    record = content[keys.DEVICE]
    for _ in range(data.draw(st.integers(1, 2))):
        key = data.draw(st.sampled_from([*KEYS, keys.LEFT_OUT]))
        how = data.draw(st.sampled_from(["replace", "inside", "remove"]))
        if how == "inside" and key in (keys.BACKBONE, keys.CONTRACT) and isinstance(record.get(key), str):
            try:
                values = json.loads(record[key])
            except (ValueError, RecursionError):
                continue
            if isinstance(values, dict) and values:
                values[data.draw(st.sampled_from([*sorted(values), "unknown"]))] = data.draw(JSON)
                record[key] = json.dumps(values)
        elif how == "remove" and key in record:
            del record[key]
        else:
            record[key] = data.draw(VALUES)
    return RecordDict({keys.DEVICE: record})


def metrics(data: st.DataObject) -> RecordDict:
    content: Any = pack_metrics({keys.NUM_EXAMPLES: 3, "accuracy": 0.5})
    name = data.draw(st.sampled_from([keys.NUM_EXAMPLES, "accuracy", "loss", "\x1b[31m"]))
    content[keys.METRICS][name] = data.draw(NUMBERS)
    return RecordDict({keys.METRICS: content[keys.METRICS]})


def any_array(data: st.DataObject) -> Array:
    return Array(
        dtype=data.draw(st.sampled_from(["float32", "int64", "object", "nothing", ""])),
        shape=tuple(data.draw(st.lists(st.integers(-2, 9), max_size=3))),
        stype=data.draw(st.sampled_from(["numpy.ndarray", "pickle"])),
        data=data.draw(st.binary(max_size=60)),
    )


def arrays(data: st.DataObject) -> RecordDict:
    return RecordDict({keys.ARRAYS: ArrayRecord({"a": any_array(data)})})


def others(data: st.DataObject) -> RecordDict:
    record = ConfigRecord({data.draw(st.sampled_from([keys.REASON, keys.SERVER_ROUND])): data.draw(VALUES)})
    return RecordDict(
        {keys.REFUSED: record, keys.CONFIG: record, keys.METRICS: MetricRecord({"a": data.draw(NUMBERS)})}
    )


def any_record(content: RecordDict, data: st.DataObject) -> RecordDict:
    """Change a field or an array of any of a message's records, or take one away."""
    records: dict[str, Any] = dict(content)
    for _ in range(data.draw(st.integers(1, 2))):
        name = data.draw(st.sampled_from(sorted(records)))
        record = records[name]
        key = data.draw(st.sampled_from([*sorted(record), "unknown"]))
        if data.draw(st.booleans()) and key in record:
            del record[key]
        elif isinstance(record, ArrayRecord):
            record[key] = any_array(data)
        elif isinstance(record, MetricRecord):
            record[key] = data.draw(NUMBERS)
        elif isinstance(value := record.get(key), str) and value.startswith("{") and data.draw(st.booleans()):
            values = json.loads(value)
            values[data.draw(st.sampled_from([*sorted(values), "unknown"]))] = data.draw(JSON)
            record[key] = json.dumps(values)
        else:
            record[key] = data.draw(VALUES)
        if not records[name]:
            del records[name]
    return RecordDict(records)


SUMS = SumsSpec(width=3, num_outputs=2, capacity=100, min_samples=1, held_out=0.1, target_bound=1.0)
SUMS_REQUEST = SumsRequest(make_contract(), make_spec(), SUMS, frozenset({b"r" * 16}))


def sums(data: st.DataObject) -> RecordDict:
    words = np.zeros(SUMS.shape.num_words, np.uint32 if SUMS.scale.bits == 32 else np.uint64)
    return any_record(pack_sums(SumsReply(words, PSEUDONYM, b"r" * 16, 0.1, 1.0), request=SUMS_REQUEST), data)


def masked(data: st.DataObject) -> RecordDict:
    return any_record(pack_masked(b"message", forward_seconds=0.1, peak_memory_bytes=1.0), data)


def asked(data: st.DataObject) -> RecordDict:
    """What a server asks a device."""
    side = SideNetworkConfig.of(
        {"ab" * 32: AlignmentSpec(8, 1)}, name="additive", num_blocks=2, bottleneck=2, num_outputs=3
    )
    rule = {"loss": "logit", "scale": 1.0, "use_base": True}
    spec, contract = make_spec(), make_contract()
    requests = [
        pack_request(WindowRequest(contract, spec, 1, 8, 1 << 20, frozenset({b"r" * 16}))),
        pack_evaluation(EvaluationRequest(contract, spec, side, rule, side.build().state_dict(), frozenset(), "fp32")),
        with_message(pack_sums_request(SUMS_REQUEST), b"message"),
    ]
    return any_record(data.draw(st.sampled_from(requests)), data)


def read_asked(content: RecordDict) -> None:
    for read in (open_request, partial(open_evaluation, agree=lambda *_: None), open_sums_request, open_masked_message):
        with contextlib.suppress(MismatchError, PacketRejected):
            read(content)


OFFER = Offer(1, b"n" * NONCE_BYTES, "ab" * 16, 8, 32, 3)


def protocol(data: st.DataObject) -> RecordDict:
    """Bytes of a secure sum's messages, changed, cut or made longer, as they lie in a record."""
    signed = [
        DeviceKeys.sign(
            Identity(bytes([i]) * 32), OFFER, cipher_key=b"c" * 32, mask_key=b"m" * 32, commitment=b"h" * 32
        )
        for i in range(3)
    ]
    roster = Roster(OFFER, tuple(sorted(signed, key=lambda member: member.identity)))
    messages = [OFFER.pack(), signed[0].pack(), roster.pack(), pack_message(PHASES[0], OFFER.nonce, b"body"), b""]
    whole = bytearray(data.draw(st.sampled_from(messages)))
    start, count = data.draw(st.integers(0, len(whole))), data.draw(st.integers(0, 40))
    whole[start : start + count] = data.draw(st.binary(max_size=60))
    return RecordDict({keys.SECURE_SUMS: ConfigRecord({"message": bytes(whole)})})


def read_protocol(content: RecordDict) -> None:
    message: Any = content[keys.SECURE_SUMS]["message"]
    readers: list[Callable[[bytes], Any]] = [
        Offer.open,
        lambda data: DeviceKeys.open(data).is_signed(OFFER),
        lambda data: Roster.open(OFFER, data).digest,
        open_message,
        lambda data: open_set(data, 3),
        lambda data: open_items(data, 32, 3),
    ]
    for read in readers:
        with contextlib.suppress(MismatchError, PacketRejected):
            read(message)


def read_others(content: RecordDict) -> None:
    reason = refusal(content)
    assert reason is None or not any(unicodedata.category(c) == "Cc" for c in reason)
    open_config(content, keys.SERVER_ROUND)
    open_numbers(content)


TARGETS: dict[str, tuple[Callable[[st.DataObject], RecordDict], Callable[[RecordDict], Any]]] = {
    "description": (description, open_description),
    "metrics": (metrics, lambda content: open_metrics(content, metric="accuracy", num_test=3, bounds=(0, 1))),
    "holdings": (holdings, open_holdings),
    "arrays": (arrays, lambda content: open_array(content, "a")),
    "refusals and numbers": (others, read_others),
    "sums": (sums, lambda content: open_sums(content, request=SUMS_REQUEST)),
    "masked sums": (masked, lambda content: open_masked(content, vector_bytes=SUMS_REQUEST.sums.num_bytes)),
    "secure sums' bytes": (protocol, read_protocol),
    "requests": (asked, read_asked),
}


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=EXAMPLES, deadline=None, database=None)
@given(data=st.data())
def test_any_value_in_any_field_is_opened_or_refused_by_name(name: str, data: st.DataObject) -> None:
    make, read = TARGETS[name]
    content = make(data)
    opened, reason = None, ""
    try:
        opened = read(content)
    except (MismatchError, PacketRejected) as error:
        reason = str(error)
    target(float(len(reason)), label="length of the reason")  # deeper checks have longer reasons
    assert len(reason) < 2000
    assert "\x1b" not in reason
    if name == "metrics" and opened is not None:
        assert all(math.isfinite(value) for value in opened.values())
