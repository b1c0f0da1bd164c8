"""One tiny packet, pinned to the byte: the wire format changes on purpose, and after 0.1 with a new version."""

from __future__ import annotations

import hashlib
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from mobillm_flower.privacy.ledger import Release
from mobillm_flower.wire import keys
from mobillm_flower.wire.contract import ExtractionSpec, TaskContract
from mobillm_flower.wire.window import Window, open_window, pack_window

SPEC = ExtractionSpec(
    backbone="ab" * 32,
    width=3,
    num_vectors=1,
    layers=(1, 2),
    pivot="last",
    codec="fp16",
    standardise="",
    clip_norm=0.0,
    sigma=0.0,
    keep=1.0,
    objective="difference",
    send_base=False,
)
CONTRACT = TaskContract(
    kind="classification",
    labels=("alarm", "music", "weather"),
    prompt="",
    label_words=(),
    max_length=6,
    label_range=(),
    metric="accuracy",
)
SAMPLES = [
    Release(bytes(range(16)), 1, bytes.fromhex("0000003c0040004200440045"), bytes.fromhex("003800b80000")),
    Release(bytes(range(16, 32)), 1, bytes.fromhex("008000b800bc00be00c000c1"), bytes.fromhex("00b4003a00b8")),
]

CONTRACT_JSON = (
    '{"kind":"classification","label_range":[],"label_words":[],"labels":["alarm","music","weather"],'
    '"max_length":6,"metric":"accuracy","per_token":false,"prompt":""}'
)
SPEC_JSON = (
    '{"backbone":"abababababababababababababababababababababababababababababababab","bi_encoder":false,"clip_norm":0.0,"codec":"fp16",'
    '"constant_base":false,"head_width":0,"joint_epsilon":0.0,"keep":1.0,"label_epsilon":0.0,"layers":[1,2],"layers_above":0,"mixing":"",'
    '"num_vectors":1,"objective":"difference","pivot":"last","projection":"","send_base":false,"sigma":0.0,"stage":0,"standardise":"",'
    '"vocabulary":0,"width":3}'
)
PAYLOAD_HASH = "838a797bdfbc1c346b454ec3b3b2219e8c6b7fbcc6604b1a1954cdd87b10120a"
HEADER: dict[str, Any] = {
    "schema-version": 1,
    "contract": CONTRACT_JSON,
    "extraction": SPEC_JSON,
    "pseudonym": "0123456789abcdef0123456789abcdef",
    "data-fingerprint": "fedcba9876543210fedcba9876543210",
    "releases": bytes(range(32)),
    "total": 9,
    "remaining": 4,
    "refused": 2,
    "payload-hash": PAYLOAD_HASH,
}
METRICS: dict[str, Any] = {"num-examples": 2, "forward-seconds": 0.25, "peak-memory-bytes": 1e8, "payload-bytes": 36}
ARRAYS = {  # name: dtype, shape, bytes behind the .npy header
    ("activations", "payload"): ("uint8", (24,), "0000003c0040004200440045008000b800bc00be00c000c1"),
    ("activations", "lengths"): ("uint32", (2,), "0c0000000c000000"),
    ("activations", "tokens"): ("uint32", (2,), "0100000001000000"),
    ("targets", "payload"): ("uint8", (12,), "003800b8000000b4003a00b8"),
}


def packed() -> Any:
    window = Window(
        pseudonym="0123456789abcdef0123456789abcdef",
        data_fingerprint="fedcba9876543210fedcba9876543210",
        samples=SAMPLES,
        total=9,
        remaining=4,
        refused=2,
        forward_seconds=0.25,
        peak_memory_bytes=1e8,
    )
    return pack_window(window, spec=SPEC, contract=CONTRACT)


def golden() -> Any:
    """The packet as it lies on the wire, made without the package's packing code."""
    arrays: dict[str, dict[str, Array]] = {"activations": {}, "targets": {}}
    for (record, name), (dtype, shape, data) in ARRAYS.items():
        code = {"uint8": "|u1", "uint32": "<u4"}[dtype]
        text = f"{{'descr': '{code}', 'fortran_order': False, 'shape': {shape}, }}"
        head = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + text.ljust(117).encode() + b"\n"
        arrays[record][name] = Array(dtype, shape, "numpy.ndarray", head + bytes.fromhex(data))
    return RecordDict(
        {
            "header": ConfigRecord(dict(HEADER)),
            "activations": ArrayRecord(arrays["activations"]),
            "targets": ArrayRecord(arrays["targets"]),
            "metrics": MetricRecord(dict(METRICS)),
        }
    )


def test_schema_version() -> None:
    assert keys.SCHEMA_VERSION == 1


def test_records_and_their_fields() -> None:
    content = packed()
    assert {name: type(record) for name, record in content.items()} == {
        "header": ConfigRecord,
        "activations": ArrayRecord,
        "targets": ArrayRecord,
        "metrics": MetricRecord,
    }
    assert dict(content["header"]) == HEADER
    assert dict(content["metrics"]) == METRICS
    assert {(r, name) for r in ("activations", "targets") for name in content[r]} == set(ARRAYS)


def test_array_bytes() -> None:
    content = packed()
    for (record, name), (dtype, shape, data) in ARRAYS.items():
        array = content[record][name]
        assert (array.dtype, array.shape, array.stype) == (dtype, shape, "numpy.ndarray")
        assert array.data.endswith(b"\n" + bytes.fromhex(data))
        assert array.data == golden()[record][name].data


def test_payload_hash_is_of_ids_shapes_and_bytes() -> None:
    described = bytes(range(32))
    for _, shape, data in ARRAYS.values():
        described += f"|{shape}".encode() + bytes.fromhex(data)
    assert hashlib.sha256(described).hexdigest() == PAYLOAD_HASH


def test_agreed_values_are_canonical_json() -> None:
    assert CONTRACT.to_json() == CONTRACT_JSON
    assert SPEC.to_json() == SPEC_JSON


def test_the_golden_packet_is_still_read() -> None:
    window = open_window(golden(), spec=SPEC, contract=CONTRACT, max_samples=2, max_bytes=1577)
    assert window.samples == SAMPLES
    assert (window.total, window.remaining, window.refused, window.num_bytes) == (9, 4, 2, 1577)
    assert (window.pseudonym, window.data_fingerprint) == (HEADER["pseudonym"], HEADER["data-fingerprint"])
    assert (window.forward_seconds, window.peak_memory_bytes) == (0.25, 1e8)


def test_message_types_and_record_names() -> None:
    """What a device of an older release answers to; a name changes only together with the version."""
    assert (keys.EXTRACT, keys.EVALUATE, keys.DESCRIBE) == ("train.extract", "evaluate", "query.describe")
    assert (keys.REQUEST, keys.DEVICE, keys.SIDE_NETWORK, keys.REFUSED) == (
        "request",
        "device",
        "side-network",
        "refused",
    )
