"""A window of samples as one Flower message, and the checks the server makes before it keeps any of it.

The layout is in `docs/reference/packet.md`. The server trusts nothing: every rule that can fail raises
`PacketRejected` with the rule's name, and a window is kept whole or not at all.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from mobillm_flower.core.codecs import CODECS
from mobillm_flower.core.pivots import PIVOTS
from mobillm_flower.core.sparse import decode_samples
from mobillm_flower.errors import MismatchError, PacketRejected
from mobillm_flower.privacy.ledger import Release
from mobillm_flower.wire import keys
from mobillm_flower.wire.contract import ExtractionSpec, TaskContract
from mobillm_flower.wire.target_bytes import check_targets, check_token_targets, decode_targets, target_size

RELEASE_BYTES = 16
MAX_TOKENS = 1 << 16
"""Most tokens of one sample of language modelling, over all its windows."""
MAX_VALUE = 1e6
"""Largest magnitude of an activation that is believed."""


@dataclass(frozen=True)
class Window:
    """A window: as a device made it, or opened and valid.

    Parameters
    ----------
    pseudonym, data_fingerprint : str
        Who sent it, and a keyed hash of that device's data.
    samples : list of Release
        The samples; may be empty when the device has nothing left.
    total, remaining, refused : int
        The device's samples, those still to come, and those it declines to release.
    forward_seconds, peak_memory_bytes : float
        As the device measured them.
    num_bytes : int
        Bytes of the message's records, of one that came.
    """

    pseudonym: str
    data_fingerprint: str
    samples: list[Release]
    total: int
    remaining: int
    refused: int
    forward_seconds: float
    peak_memory_bytes: float
    num_bytes: int = 0


def record_bytes(content: RecordDict) -> int:
    """Return the size in bytes of all records of a message, array headers and keys included, framing not.

    Flower's own `count_bytes` does the same but raises on an empty string.
    """
    total = 0
    for name, record in content.items():
        total += len(name) + sum(len(key) for key in record)
        for value in record.values():
            total += len(value.data) if isinstance(value, Array) else _value_bytes(value)
    return total


def _value_bytes(value: Any) -> int:
    if isinstance(value, list):
        return sum(_value_bytes(item) for item in value)
    if isinstance(value, str):
        return len(value.encode())
    return len(value) if isinstance(value, bytes) else 8


def pack_window(window: Window, *, spec: ExtractionSpec, contract: TaskContract) -> RecordDict:
    """Make the reply to a request for a window."""
    samples = window.samples
    arrays: dict[str, np.ndarray] = {
        keys.PAYLOAD: np.frombuffer(b"".join(s.activations for s in samples), np.uint8),
        keys.LENGTHS: np.array([len(s.activations) for s in samples], np.uint32),
        keys.TOKENS: np.array([s.tokens for s in samples], np.uint32),
    }
    targets = np.frombuffer(b"".join(s.target for s in samples), np.uint8)
    releases = b"".join(s.release for s in samples)
    header: dict[str, Any] = {
        keys.VERSION: keys.SCHEMA_VERSION,
        keys.CONTRACT: contract.to_json(),
        keys.SPEC: spec.to_json(),
        keys.PSEUDONYM: window.pseudonym,
        keys.DATA_FINGERPRINT: window.data_fingerprint,
        keys.RELEASES: releases,
        keys.TOTAL: window.total,
        keys.REMAINING: window.remaining,
        keys.REFUSED: window.refused,
        keys.PAYLOAD_HASH: _hash(releases, *arrays.values(), targets),
    }
    metrics: dict[str, Any] = {
        keys.NUM_EXAMPLES: len(samples),
        keys.FORWARD_SECONDS: window.forward_seconds,
        keys.PEAK_MEMORY: window.peak_memory_bytes,
        keys.PAYLOAD_BYTES: int(arrays[keys.PAYLOAD].nbytes + targets.nbytes),
    }
    return RecordDict(
        {
            keys.HEADER: ConfigRecord(header),
            keys.ACTIVATIONS: ArrayRecord({name: Array(array) for name, array in arrays.items()}),
            keys.TARGETS: ArrayRecord({keys.PAYLOAD: Array(targets)}),
            keys.METRICS: MetricRecord(metrics),
        }
    )


def open_window(
    content: RecordDict, *, spec: ExtractionSpec, contract: TaskContract, max_samples: int, max_bytes: int
) -> Window:
    """Check every field of an uploaded window against what was asked and against the bytes really there.

    Raises
    ------
    PacketRejected
        Any rule is broken; the rule is named.
    """
    record, num_bytes = read_header(content, max_bytes)
    header = _open_header(record, spec, contract, max_samples)
    count = len(header.releases)
    arrays = read_record(content, keys.ACTIVATIONS, ArrayRecord)
    payload = read_array(arrays, keys.PAYLOAD, np.uint8)
    lengths = read_array(arrays, keys.LENGTHS, np.uint32)
    tokens = read_array(arrays, keys.TOKENS, np.uint32)
    targets = read_array(read_record(content, keys.TARGETS, ArrayRecord), keys.PAYLOAD, np.uint8)
    if len(lengths) != count or len(tokens) != count:
        raise PacketRejected("counts", f"{count} releases, {len(lengths)} lengths, {len(tokens)} token counts")
    if int(lengths.sum(dtype=np.uint64)) != len(payload):
        raise PacketRejected(
            "lengths", f"lengths add up to {int(lengths.sum(dtype=np.uint64))} of {len(payload)} bytes"
        )
    most = most_rows(spec, contract)
    if count and not 1 <= int(tokens.min()) <= int(tokens.max()) <= most:
        raise PacketRejected(
            "tokens", f"{int(tokens.min())} to {int(tokens.max())} rows a sample, allowed are 1 to {most}"
        )
    sizes = [target_size(spec, contract, rows) for rows in tokens.tolist()]
    if len(targets) != sum(sizes):
        raise PacketRejected("targets", f"{len(targets)} bytes of targets, expected {sum(sizes)}")
    if header.payload_hash != _hash(b"".join(header.releases), payload, lengths, tokens, targets):
        raise PacketRejected("payload-hash", "the payload is not what the header was made for")
    forward_seconds, peak_memory_bytes = read_measured(content)
    if read_record(content, keys.METRICS, MetricRecord).get(keys.NUM_EXAMPLES) != count:
        raise PacketRejected("metrics", f"{keys.NUM_EXAMPLES} is not the number of samples, {count}")

    samples = [
        Release(release, rows, blob, target)
        for release, rows, blob, target in zip(
            header.releases, tokens.tolist(), _cut(payload, lengths.tolist()), _cut(targets, sizes), strict=True
        )
    ]
    if samples:
        _check_values(samples, spec, contract)
    return Window(
        pseudonym=header.pseudonym,
        data_fingerprint=header.data_fingerprint,
        samples=samples,
        total=header.total,
        remaining=header.remaining,
        refused=header.refused,
        forward_seconds=forward_seconds,
        peak_memory_bytes=peak_memory_bytes,
        num_bytes=num_bytes,
    )


class _Header(NamedTuple):
    """What the header of a window says; the fields that are not here are those that were asked for."""

    pseudonym: str
    data_fingerprint: str
    total: int
    remaining: int
    refused: int
    releases: list[bytes]
    payload_hash: object


def _open_header(header: ConfigRecord, spec: ExtractionSpec, contract: TaskContract, max_samples: int) -> _Header:
    try:
        contract.require_same(TaskContract.from_json(read_text(header, keys.CONTRACT)), mine="here", theirs="there")
    except MismatchError as error:
        raise PacketRejected("contract", str(error)) from error
    try:
        spec.require_same(ExtractionSpec.from_json(read_text(header, keys.SPEC)), mine="here", theirs="there")
    except MismatchError as error:
        raise PacketRejected("extraction", str(error)) from error
    pseudonym, fingerprint = read_hex(header, keys.PSEUDONYM), read_hex(header, keys.DATA_FINGERPRINT)
    total, remaining, refused = (read_number(header, key, 10**9) for key in (keys.TOTAL, keys.REMAINING, keys.REFUSED))
    releases = header.get(keys.RELEASES)
    if not isinstance(releases, bytes) or len(releases) % RELEASE_BYTES:
        raise PacketRejected("releases", f"must be bytes, {RELEASE_BYTES} a sample")
    count = len(releases) // RELEASE_BYTES
    if count > max_samples:
        raise PacketRejected("window", f"{count} samples, at most {max_samples} were asked for")
    if remaining + refused + count > total:
        raise PacketRejected("counts", f"{count} sent, {remaining} remaining, {refused} refused of {total}")
    ids = [releases[i : i + RELEASE_BYTES] for i in range(0, len(releases), RELEASE_BYTES)]
    if len(set(ids)) != count:
        raise PacketRejected("releases", "a release id occurs twice")
    return _Header(pseudonym, fingerprint, total, remaining, refused, ids, header.get(keys.PAYLOAD_HASH))


def most_rows(spec: ExtractionSpec, contract: TaskContract) -> int:
    """Return how many packed rows T a sample has at most."""
    return MAX_TOKENS if contract.per_token else contract.max_length if PIVOTS[spec.pivot].per_token else 1


def _check_values(samples: Sequence[Release], spec: ExtractionSpec, contract: TaskContract) -> None:
    """Decode everything once: activations finite and bounded, targets possible under the declared objective."""
    counts = [sample.tokens * spec.vectors_per_row for sample in samples]
    try:
        vectors = decode_samples(
            [s.activations for s in samples], counts, spec.row_shape[2], CODECS[spec.codec], spec.keep
        )  # [sum of V, d]
    except ValueError as error:
        raise PacketRejected("activations", str(error)) from error
    if float(vectors.abs().max()) > MAX_VALUE:
        raise PacketRejected("activations", f"a value is beyond ±{MAX_VALUE:g}")
    num_values = torch.tensor(counts, dtype=torch.float32) * spec.row_shape[2]
    longest = spec.protection(contract).longest(num_values)
    if longest is not None:
        norms = torch.stack([torch.linalg.vector_norm(part) for part in torch.split(vectors, counts)])
        if bool((norms > longest).any()):
            agreed = f"joint epsilon {spec.joint_epsilon:g}" if spec.joint_epsilon else f"clip norm {spec.clip_norm:g}"
            raise PacketRejected("norm", f"a sample's norm is above what {agreed} allows")
    try:
        targets = decode_targets([s.target for s in samples], spec, contract, [s.tokens for s in samples])
    except ValueError as error:
        raise PacketRejected("targets", str(error)) from error
    if contract.per_token:
        wrong = check_token_targets(targets, spec, contract, [s.tokens for s in samples])
    else:
        wrong = check_targets(targets, contract, mixed=bool(spec.mixing), constant=spec.constant_base)
    if wrong:
        raise PacketRejected("targets", wrong)


def _cut(array: np.ndarray, lengths: Sequence[int]) -> list[bytes]:
    """Cut an array of bytes into pieces of given lengths, which add up to it."""
    raw, pieces, start = array.tobytes(), [], 0
    for length in lengths:
        pieces.append(raw[start : start + length])
        start += length
    return pieces


def read_header(content: RecordDict, max_bytes: int) -> tuple[ConfigRecord, int]:
    """Return the header of a message from a device, and the bytes of its records; raises PacketRejected."""
    if not isinstance(content, RecordDict):
        raise PacketRejected("records", "the message carries no records")
    num_bytes = record_bytes(content)
    if num_bytes > max_bytes:
        raise PacketRejected("size", f"{num_bytes} bytes, at most {max_bytes} were asked for")
    header = read_record(content, keys.HEADER, ConfigRecord)
    version = read_number(header, keys.VERSION, 10**6)
    if version != keys.SCHEMA_VERSION:
        raise PacketRejected("schema-version", f"version {version}, this server reads {keys.SCHEMA_VERSION}")
    return header, num_bytes


def read_record(content: RecordDict, name: str, kind: type[Any]) -> Any:
    """Return a record of a kind; raises PacketRejected where there is none."""
    record = content.get(name)
    if not isinstance(record, kind):
        raise PacketRejected("records", f"{name!r} must be a {kind.__name__}")
    return record


def read_measured(content: RecordDict) -> tuple[float, float]:
    """Return seconds of the forward pass and peak memory in bytes, as a device measured them; raises PacketRejected."""
    metrics, measured = read_record(content, keys.METRICS, MetricRecord), []
    for key in (keys.FORWARD_SECONDS, keys.PEAK_MEMORY):
        value = metrics.get(key)
        if not isinstance(value, int | float) or not 0 <= value < 1e15:
            raise PacketRejected("metrics", f"{key} must be a number of at least 0")
        measured.append(float(value))
    return measured[0], measured[1]


def read_array(record: ArrayRecord, name: str, dtype: type[Any]) -> np.ndarray:
    """Return an array of a type and one dimension, as its bytes really are; raises PacketRejected."""
    if name not in record:
        raise PacketRejected("arrays", f"{name!r} is missing")
    try:
        array = record[name].numpy()
    except Exception as error:  # whatever a damaged .npy raises
        raise PacketRejected("arrays", f"{name!r} cannot be read") from error
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != 1:
        raise PacketRejected("arrays", f"{name!r} must be {np.dtype(dtype).name} of 1 dimension(s)")
    return array


def read_number(record: ConfigRecord, key: str, most: int) -> int:
    """Return a whole number from 0 to `most`; raises PacketRejected."""
    value = record.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise PacketRejected("header", f"{key!r} must be a whole number from 0 to {most}")
    return value


def read_text(record: ConfigRecord, key: str) -> str:
    """Return a text; raises PacketRejected."""
    value = record.get(key)
    if not isinstance(value, str):
        raise PacketRejected("header", f"{key!r} must be text")
    return value


def read_hex(record: ConfigRecord, key: str) -> str:
    """Return 32 hex digits; raises PacketRejected."""
    value = read_text(record, key)
    if not re.fullmatch(r"[0-9a-f]{32}", value):
        raise PacketRejected("header", f"{key!r} must be 32 hex digits")
    return value


def _hash(releases: bytes, *arrays: np.ndarray) -> str:
    digest = hashlib.sha256(releases)
    for array in arrays:
        digest.update(f"|{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
