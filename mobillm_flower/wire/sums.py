"""Sums as one Flower message: what both sides agree on, the request, the answer, and the checks before it is kept.

The payload is one vector of words modulo 2^k (`core.sums.SumShape`), so that it can be masked; everything else in the
message is public. What the words hold is checked by `server.sums`, of one device's or of a group's alike.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from mobillm_flower.core.sums import SPREAD, Scale, SumShape, Words, word_type
from mobillm_flower.errors import MismatchError, PacketRejected
from mobillm_flower.wire import keys
from mobillm_flower.wire.contract import ExtractionSpec, TaskContract, _Agreed
from mobillm_flower.wire.messages import read_held, read_request
from mobillm_flower.wire.window import (
    RELEASE_BYTES,
    read_array,
    read_header,
    read_hex,
    read_measured,
    read_record,
    read_text,
)

MAX_CAPACITY = 1 << 40
_NOISE_DEVIATIONS = 12  # of an entry's noise that fit a word beside the sums
_HEADER_BYTES = 1 << 20


@dataclass(frozen=True)
class SumsSpec(_Agreed):
    """How a device's samples are added up, agreed on by both sides.

    Parameters
    ----------
    width, num_outputs : int
        D and K of the statistic.
    capacity : int
        Most samples of all devices together; with it alone the scale and the word follow.
    min_samples : int
        Fewest samples of which a sum is sent.
    held_out : float
        Share of a device's samples, chosen by its key, that is left out of its sums.
    target_bound : float
        Largest norm of a target, which is divided by it.
    intercept : float
        κ: with noise, z becomes (√(1−κ²)·z, κ), so that what is noised holds the intercept, too; 0: Σz and Σt are sent.
    epsilon, delta, sigma : float
        The promise, and σ of the noise for sensitivity in units of z and target; 0: none.
    unit : str
        What is replaced in a neighbour: "sample" or "device".
    device_rows : int
        With unit "device": samples whose statistic's norm a device's is shortened to.
    """

    _TITLE = "how samples are added up"

    width: int
    num_outputs: int
    capacity: int
    min_samples: int
    held_out: float
    target_bound: float
    intercept: float = 0.0
    epsilon: float = 0.0
    delta: float = 0.0
    sigma: float = 0.0
    unit: str = "sample"
    device_rows: int = 0

    @cached_property
    def shape(self) -> SumShape:
        """Where what lies in the vector."""
        return SumShape(self.width, self.num_outputs)

    @cached_property
    def scale(self) -> Scale:
        """How samples become whole numbers."""
        # an entry's noise has σ·s² = σ·c²·D/36
        return Scale.of(
            self.shape, self.capacity, noise=_NOISE_DEVIATIONS * self.sigma * max(1.0, self.width / SPREAD**2)
        )

    @property
    def row_unit(self) -> float:
        """What 1 of z became."""
        return self.scale.row_unit(self.width)

    @property
    def target_unit(self) -> float:
        """What 1 of a target became, before it is divided by `target_bound`."""
        return self.scale.target_unit(self.num_outputs) / self.target_bound

    @property
    def one_hot(self) -> bool:
        """Whether all targets are onehot(y) − 1/K: of two values, so that each class's own sums follow from theirs."""
        return self.num_outputs > 1 and self.target_bound < 1

    @property
    def num_bytes(self) -> int:
        """Bytes of the vector."""
        return self.shape.num_words * self.scale.bits // 8


@dataclass(frozen=True)
class SumsRequest:
    """What the server asks of a device: see `WindowRequest`."""

    contract: TaskContract
    spec: ExtractionSpec
    sums: SumsSpec
    held: frozenset[bytes]


@dataclass(frozen=True)
class SumsReply:
    """A device's statistic: as it was made, or as it came, of right form; what it holds is not checked yet.

    Parameters
    ----------
    words : ndarray
        [W] uint32 or uint64.
    pseudonym : str
        Who sent it.
    release : bytes
        Its release id.
    forward_seconds, peak_memory_bytes : float
        As the device measured them; the first 0 where the statistic was made before.
    num_bytes : int
        Bytes of the message's records, of one that came.
    """

    words: Words
    pseudonym: str
    release: bytes
    forward_seconds: float
    peak_memory_bytes: float
    num_bytes: int = 0


def pack_sums_request(request: SumsRequest) -> RecordDict:
    """Make the request for a device's sums."""
    record: dict[str, Any] = {
        keys.VERSION: keys.SCHEMA_VERSION,
        keys.CONTRACT: request.contract.to_json(),
        keys.SPEC: request.spec.to_json(),
        keys.SUMS: request.sums.to_json(),
        keys.HELD: b"".join(sorted(request.held)),
    }
    return RecordDict({keys.REQUEST: ConfigRecord(record)})


def open_sums_request(content: RecordDict) -> SumsRequest:
    """Read a request on the device; raises MismatchError where it is malformed."""
    record = read_request(content)
    try:
        sums = SumsSpec.from_json(str(record[keys.SUMS]))
        if not 1 <= sums.capacity <= MAX_CAPACITY:
            raise TypeError("the capacity is out of range")
        return SumsRequest(
            contract=TaskContract.from_json(str(record[keys.CONTRACT])),
            spec=ExtractionSpec.from_json(str(record[keys.SPEC])),
            sums=sums,
            held=read_held(record),
        )
    except (KeyError, TypeError) as error:
        raise MismatchError(f"the server's request lacks a field or has one of another form: {error}") from error


def pack_sums(reply: SumsReply, *, request: SumsRequest) -> RecordDict:
    """Make the answer to what was asked."""
    header: dict[str, Any] = {
        keys.VERSION: keys.SCHEMA_VERSION,
        keys.CONTRACT: request.contract.to_json(),
        keys.SPEC: request.spec.to_json(),
        keys.SUMS: request.sums.to_json(),
        keys.PSEUDONYM: reply.pseudonym,
        keys.RELEASES: reply.release,
        keys.PAYLOAD_HASH: _digest(reply.release, reply.words),
    }
    metrics: dict[str, Any] = {
        keys.FORWARD_SECONDS: reply.forward_seconds,
        keys.PEAK_MEMORY: reply.peak_memory_bytes,
        keys.PAYLOAD_BYTES: int(reply.words.nbytes),
    }
    return RecordDict(
        {
            keys.HEADER: ConfigRecord(header),
            keys.SUMS: ArrayRecord({keys.PAYLOAD: Array(reply.words)}),
            keys.METRICS: MetricRecord(metrics),
        }
    )


def open_sums(content: RecordDict, *, request: SumsRequest) -> SumsReply:
    """Check the form of an answer against what was asked and against the bytes really there.

    Raises
    ------
    PacketRejected
        A rule is broken; the rule is named.
    """
    header, num_bytes = read_header(content, request.sums.num_bytes + _HEADER_BYTES)
    for rule, key, asked in (
        ("contract", keys.CONTRACT, request.contract),
        ("extraction", keys.SPEC, request.spec),
        ("sums", keys.SUMS, request.sums),
    ):
        if read_text(header, key) != asked.to_json():
            raise PacketRejected(rule, f"{key!r} is not what was asked for")
    pseudonym, release = read_hex(header, keys.PSEUDONYM), header.get(keys.RELEASES)
    if not isinstance(release, bytes) or len(release) != RELEASE_BYTES:
        raise PacketRejected("releases", f"must be one release id of {RELEASE_BYTES} bytes")
    kind = word_type(request.sums.scale.bits)
    words = read_array(read_record(content, keys.SUMS, ArrayRecord), keys.PAYLOAD, kind)
    if len(words) != request.sums.shape.num_words:
        raise PacketRejected("words", f"{len(words)} words, {request.sums.shape.num_words} were asked for")
    if header.get(keys.PAYLOAD_HASH) != _digest(release, words):
        raise PacketRejected("payload-hash", "the payload is not what the header was made for")
    return SumsReply(words, pseudonym, release, *read_measured(content), num_bytes)


def _digest(release: bytes, words: Words) -> str:
    return hashlib.sha256(release + np.ascontiguousarray(words).tobytes()).hexdigest()
