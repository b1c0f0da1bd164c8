"""Descriptions, metrics and the baselines' messages with any value in any field: opened, or refused by name."""

from __future__ import annotations

import json
import math
import os
import unicodedata
from collections.abc import Callable
from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings, target
from hypothesis import strategies as st

from mobillm_flower.core.backbone_info import BackboneInfo
from mobillm_flower.errors import MismatchError, PacketRejected
from mobillm_flower.wire import keys
from mobillm_flower.wire.baseline_messages import open_array, open_config, open_holdings, open_numbers, pack_holdings
from mobillm_flower.wire.messages import (
    DeviceDescription,
    open_description,
    open_metrics,
    pack_description,
    pack_metrics,
    refusal,
)
from tests.support.packets import PSEUDONYM, make_contract

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


def arrays(data: st.DataObject) -> RecordDict:
    claimed = Array(
        dtype=data.draw(st.sampled_from(["float32", "int64", "object", "nothing", ""])),
        shape=tuple(data.draw(st.lists(st.integers(-2, 9), max_size=3))),
        stype=data.draw(st.sampled_from(["numpy.ndarray", "pickle"])),
        data=data.draw(st.binary(max_size=60)),
    )
    return RecordDict({keys.ARRAYS: ArrayRecord({"a": claimed})})


def others(data: st.DataObject) -> RecordDict:
    record = ConfigRecord({data.draw(st.sampled_from([keys.REASON, keys.SERVER_ROUND])): data.draw(VALUES)})
    return RecordDict(
        {keys.REFUSED: record, keys.CONFIG: record, keys.METRICS: MetricRecord({"a": data.draw(NUMBERS)})}
    )


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
