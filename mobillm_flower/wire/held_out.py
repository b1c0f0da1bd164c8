"""A side network for the samples that were left out of sums, and what comes back: a tally of its predictions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from mobillm_flower.core.sums import Words, lift
from mobillm_flower.core.tally import require_tally, tally_words
from mobillm_flower.errors import MismatchError, PacketRejected
from mobillm_flower.wire import keys
from mobillm_flower.wire.contract import ExtractionSpec, TaskContract
from mobillm_flower.wire.messages import EvaluationRequest, open_evaluation, pack_evaluation, read_request
from mobillm_flower.wire.window import read_array, read_record, record_bytes

BITS = 64
"""Of a word of a tally."""
_BESIDE_WORDS = 1 << 16


def num_words(contract: TaskContract) -> int:
    """Return the words of a task's tally."""
    return tally_words(contract.num_outputs, numbers=contract.is_regression)


def pack_held_out(request: EvaluationRequest, share: float) -> RecordDict:
    """Make the request to predict what sums left out with a side network: a share of a device's samples."""
    content = pack_evaluation(request)
    record = content[keys.REQUEST]
    assert isinstance(record, ConfigRecord)
    record[keys.HELD_OUT] = share
    return content


def open_held_out(
    content: RecordDict, agree: Callable[[TaskContract, ExtractionSpec], None]
) -> tuple[EvaluationRequest, float]:
    """Read side network and share on the device; `agree` and what is raised as of `open_evaluation`."""
    share = read_request(content).get(keys.HELD_OUT)
    if not isinstance(share, float) or not 0 < share < 1:
        raise MismatchError(f"the server's request names no {keys.HELD_OUT!r} between 0 and 1")
    return open_evaluation(content, agree), share


def purpose_of_tally(content: RecordDict) -> str:
    """Return what a secure sum of tallies is for, 32 hex digits: of which task, samples and side network."""
    record, weights = content[keys.REQUEST], content[keys.SIDE_NETWORK]
    assert isinstance(record, ConfigRecord)
    assert isinstance(weights, ArrayRecord)
    said = hashlib.sha256(b"held-out")
    for key in sorted(set(record) - {keys.HELD}):
        said.update(f"{key}={record[key]!r}\n".encode())
    for name, array in sorted(weights.items()):
        said.update(name.encode() + hashlib.sha256(array.data).digest())
    return said.hexdigest()[:32]


def pack_tally(words: Words) -> RecordDict:
    """Make a device's own answer."""
    return RecordDict({keys.SUMS: ArrayRecord({keys.PAYLOAD: Array(words)})})


def open_tally(content: RecordDict, contract: TaskContract, *, most: int) -> Words:
    """Read it, of at most so many samples; raises PacketRejected."""
    if record_bytes(content) > num_words(contract) * BITS // 8 + _BESIDE_WORDS:
        raise PacketRejected("size", "a tally of predictions is larger than was asked for")
    words = read_array(read_record(content, keys.SUMS, ArrayRecord), keys.PAYLOAD, np.uint64)
    if len(words) != num_words(contract):
        raise PacketRejected("words", f"{len(words)} words, {num_words(contract)} were asked for")
    check_tally(words, contract, most=most)
    return words


def check_tally(words: Words, contract: TaskContract, *, most: int) -> None:
    """Refuse what no samples can have, of a device or a group; raises PacketRejected."""
    try:
        require_tally(lift(words), most=most, numbers=contract.is_regression)
    except ValueError as error:
        raise PacketRejected("tally", str(error)) from error
