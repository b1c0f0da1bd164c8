"""A message of a secure sum as Flower records: what is summed, and the protocol's own bytes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict

from mobillm_flower.errors import PacketRejected
from mobillm_flower.wire import keys
from mobillm_flower.wire.sums import SumsRequest
from mobillm_flower.wire.window import read_array, read_measured, read_record, record_bytes

_BESIDE_WORDS = 1 << 20  # bytes of an answer beside a vector's, shares of many neighbours among them


@dataclass(frozen=True)
class MaskedReply:
    """A device's answer in one phase.

    Parameters
    ----------
    message : bytes
        The protocol's.
    forward_seconds, peak_memory_bytes : float
        As the device measured them.
    num_bytes : int
        Bytes of the records.
    """

    message: bytes
    forward_seconds: float
    peak_memory_bytes: float
    num_bytes: int


def purpose_of(request: SumsRequest) -> str:
    """Return what a secure sum is for, 32 hex digits: of which task, vectors and rounding."""
    said = "\n".join((request.contract.to_json(), request.spec.to_json(), request.sums.to_json()))
    return hashlib.sha256(said.encode()).hexdigest()[:32]


def with_message(content: RecordDict, message: bytes) -> RecordDict:
    """Return the records of a request with a message of the protocol beside them."""
    return RecordDict({**content, keys.SECURE_SUMS: _record(message)})


def pack_masked(message: bytes, *, forward_seconds: float, peak_memory_bytes: float) -> RecordDict:
    """Make the answer."""
    metrics = MetricRecord({keys.FORWARD_SECONDS: forward_seconds, keys.PEAK_MEMORY: peak_memory_bytes})
    return RecordDict({keys.SECURE_SUMS: _record(message), keys.METRICS: metrics})


def open_masked(content: RecordDict, *, vector_bytes: int) -> MaskedReply:
    """Read an answer in a sum of vectors of so many bytes; the message is not checked yet. Raises PacketRejected."""
    num_bytes, most = record_bytes(content), vector_bytes + _BESIDE_WORDS
    if num_bytes > most:
        raise PacketRejected("size", f"{num_bytes} bytes, at most {most} are taken")
    forward_seconds, peak_memory_bytes = read_measured(content)
    return MaskedReply(open_message(content), forward_seconds, peak_memory_bytes, num_bytes)


def _record(message: bytes) -> ArrayRecord:
    return ArrayRecord({keys.PAYLOAD: Array(np.frombuffer(message, np.uint8))})


def open_message(content: RecordDict) -> bytes:
    """Read the protocol's message; raises PacketRejected where there is none."""
    return read_array(read_record(content, keys.SECURE_SUMS, ArrayRecord), keys.PAYLOAD, np.uint8).tobytes()
