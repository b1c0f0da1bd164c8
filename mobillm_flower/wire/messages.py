"""The other messages: describing a device, asking for a window, evaluating a side network."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from mobillm_flower.core.backbone_info import BackboneInfo
from mobillm_flower.core.side_networks import SideNetworkConfig
from mobillm_flower.errors import MismatchError, PacketRejected
from mobillm_flower.runs.plain import is_plain, plain
from mobillm_flower.wire import keys
from mobillm_flower.wire.contract import ExtractionSpec, TaskContract
from mobillm_flower.wire.left_out import open_left_out, pack_left_out
from mobillm_flower.wire.weights import open_weights, pack_weights, require_network
from mobillm_flower.wire.window import RELEASE_BYTES, read_record, record_bytes

_MAX_DEPTH, _MAX_WIDTH, _MAX_VOCABULARY, _MAX_SAMPLES = 1024, 1 << 15, 1 << 21, 10**8  # beyond any model or device
_MAX_DESCRIPTION, _MAX_NAME, _MAX_LABELS = 1 << 20, 500, 1 << 14
MAX_CHOSEN = 300
"""Characters in which a device says which backbone it chose, and why."""


@dataclass(frozen=True)
class DeviceDescription:
    """What a device says of itself before anything is asked of it.

    Parameters
    ----------
    pseudonym : str
        32 hex digits, derived from the device's secret.
    backbone : BackboneInfo
        What it runs.
    contract : TaskContract
        The task as its own settings have it.
    num_train, num_test : int
        Samples it holds.
    chosen : str
        Which of several backbones it chose, and why; empty: its settings name one.
    left_out : mapping of str to int
        Rows that it cannot use, by split and reason; see `wire.left_out`.
    """

    pseudonym: str
    backbone: BackboneInfo
    contract: TaskContract
    num_train: int
    num_test: int
    chosen: str = ""
    left_out: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class WindowRequest:
    """What the server asks of a device.

    Parameters
    ----------
    contract, spec
        What both must agree on.
    round : int
        For the record only.
    window, max_bytes : int
        Most samples and most payload bytes of the answer.
    held : set of bytes
        Release ids of this device that the server holds: held means committed.
    """

    contract: TaskContract
    spec: ExtractionSpec
    round: int
    window: int
    max_bytes: int
    held: frozenset[bytes]


def pack_description(device: DeviceDescription) -> RecordDict:
    """Make the answer to `query.describe`."""
    record: dict[str, Any] = {
        keys.VERSION: keys.SCHEMA_VERSION,
        keys.PSEUDONYM: device.pseudonym,
        keys.BACKBONE: json.dumps(dataclasses.asdict(device.backbone), sort_keys=True),
        keys.CONTRACT: device.contract.to_json(),
        keys.NUM_TRAIN: device.num_train,
        keys.NUM_TEST: device.num_test,
    }
    if device.chosen:
        record[keys.CHOSEN] = device.chosen
    if device.left_out:
        record[keys.LEFT_OUT] = pack_left_out(device.left_out)
    return RecordDict({keys.DEVICE: ConfigRecord(record)})


def open_description(content: RecordDict) -> DeviceDescription:
    """Read a device's description.

    Raises
    ------
    PacketRejected
        A field is missing or of another form.
    """
    record = read_record(content, keys.DEVICE, ConfigRecord)
    if record_bytes(content) > _MAX_DESCRIPTION:
        raise PacketRejected(
            "description", f"it has {record_bytes(content)} bytes, at most {_MAX_DESCRIPTION} are read"
        )
    if record.get(keys.VERSION) != keys.SCHEMA_VERSION:
        raise PacketRejected(
            "schema-version",
            f"version {plain(record.get(keys.VERSION), 40)!r}, this server reads {keys.SCHEMA_VERSION}",
        )
    try:
        values = json.loads(str(record[keys.BACKBONE]))
        backbone = BackboneInfo(**values)
        good = (
            all(
                isinstance(values[f.name], {"int": int, "str": str, "bool": bool}[str(f.type)])
                for f in dataclasses.fields(BackboneInfo)
            )
            and 1 <= backbone.depth <= _MAX_DEPTH
            and 1 <= backbone.width <= _MAX_WIDTH
            and 0 <= backbone.vocabulary <= _MAX_VOCABULARY
            and 0 <= backbone.head_width <= _MAX_WIDTH
        )
        contract = TaskContract.from_json(str(record[keys.CONTRACT]))
        pseudonym, num_train, num_test = (record[k] for k in (keys.PSEUDONYM, keys.NUM_TRAIN, keys.NUM_TEST))
    except (KeyError, TypeError, ValueError, MismatchError, RecursionError) as error:
        raise PacketRejected("description", f"a field is missing or malformed ({type(error).__name__})") from error
    if not good or not re.fullmatch(r"[0-9a-f]{64}", backbone.fingerprint):
        raise PacketRejected(
            "description", "a field of the backbone has another type or size, or its fingerprint is not 64 hex digits"
        )
    texts = [backbone.name, backbone.family, backbone.precision, backbone.base_prediction, backbone.revision]
    texts += [contract.kind, contract.metric, *contract.labels, *contract.label_words]
    if len(contract.labels) > _MAX_LABELS or not all(len(text) <= _MAX_NAME and is_plain(text) for text in texts):
        raise PacketRejected(
            "description",
            f"names and labels must be of at most {_MAX_NAME} characters without control characters, and there must be "
            f"at most {_MAX_LABELS} labels",
        )
    if not isinstance(pseudonym, str) or not re.fullmatch(r"[0-9a-f]{32}", pseudonym):
        raise PacketRejected("description", "the pseudonym is not 32 hex digits")
    if not isinstance(num_train, int) or not isinstance(num_test, int) or min(num_train, num_test) < 0:
        raise PacketRejected("description", "sample counts must be whole numbers of at least 0")
    if max(num_train, num_test) > _MAX_SAMPLES:
        raise PacketRejected("description", f"sample counts must be at most {_MAX_SAMPLES}")
    chosen = record.get(keys.CHOSEN, "")
    if not isinstance(chosen, str) or len(chosen) > MAX_CHOSEN or not is_plain(chosen):
        raise PacketRejected("description", f"{keys.CHOSEN!r} must be one line of at most {MAX_CHOSEN} characters")
    left_out = open_left_out(record.get(keys.LEFT_OUT, "{}"))
    return DeviceDescription(pseudonym, backbone, contract, num_train, num_test, chosen, left_out)


def pack_request(request: WindowRequest) -> RecordDict:
    """Make the request for a window."""
    record: dict[str, Any] = {
        keys.VERSION: keys.SCHEMA_VERSION,
        keys.CONTRACT: request.contract.to_json(),
        keys.SPEC: request.spec.to_json(),
        keys.ROUND: request.round,
        keys.WINDOW: request.window,
        keys.MAX_BYTES: request.max_bytes,
        keys.HELD: b"".join(sorted(request.held)),
    }
    return RecordDict({keys.REQUEST: ConfigRecord(record)})


def open_request(content: RecordDict) -> WindowRequest:
    """Read a request on the device.

    Raises
    ------
    MismatchError
        The server speaks another version, or the request is malformed.
    """
    record = read_request(content)
    try:
        numbers: Any = [record[key] for key in (keys.ROUND, keys.WINDOW, keys.MAX_BYTES)]
        if not all(isinstance(number, int) and number >= 0 for number in numbers):
            raise TypeError("a count is no whole number")
        return WindowRequest(
            contract=TaskContract.from_json(str(record[keys.CONTRACT])),
            spec=ExtractionSpec.from_json(str(record[keys.SPEC])),
            round=numbers[0],
            window=numbers[1],
            max_bytes=numbers[2],
            held=read_held(record),
        )
    except (KeyError, TypeError) as error:
        raise MismatchError(f"the server's request lacks a field or has one of another form: {error}") from error


@dataclass(frozen=True)
class EvaluationRequest:
    """A side network sent down to be evaluated.

    Parameters
    ----------
    contract, spec
        What both must agree on.
    side_config : SideNetworkConfig
        How to build it, this device's backbone type only.
    prediction : dict
        How s(A) and p_b become a prediction, see `mobillm_flower.core.prediction.PredictionRule`.
    state : mapping of str to Tensor
        Its weights.
    held : frozenset of bytes
        Release ids of this device that the server holds, as in `WindowRequest`.
    codec : str
        Under which the weights' matrices travel.
    columns : tuple of int
        First and last but one of the task's columns in the side network's output, where it has learned several tasks;
        a third 1: the accuracy among the classes of all of them is wanted, too. Empty: all are the task's.
    """

    contract: TaskContract
    spec: ExtractionSpec
    side_config: SideNetworkConfig
    prediction: dict[str, Any]
    state: Mapping[str, Tensor]
    held: frozenset[bytes]
    codec: str = "fp32"
    columns: tuple[int, ...] = ()


def pack_evaluation(request: EvaluationRequest) -> RecordDict:
    """Make the request to evaluate a side network on the device's test data."""
    record: dict[str, Any] = {
        keys.VERSION: keys.SCHEMA_VERSION,
        keys.CONTRACT: request.contract.to_json(),
        keys.SPEC: request.spec.to_json(),
        keys.SIDE_CONFIG: json.dumps(request.side_config.to_dict(), sort_keys=True),
        keys.PREDICTION: json.dumps(request.prediction, sort_keys=True),
        keys.HELD: b"".join(sorted(request.held)),
        keys.CODEC: request.codec,
    }
    if request.columns:
        record[keys.COLUMNS] = list(request.columns)
    arrays = pack_weights(request.state, request.codec)
    return RecordDict({keys.REQUEST: ConfigRecord(record), keys.SIDE_NETWORK: arrays})


def open_evaluation(content: RecordDict, agree: Callable[[TaskContract, ExtractionSpec], None]) -> EvaluationRequest:
    """Read an evaluation request on the device.

    Parameters
    ----------
    agree : callable
        Raises where the device does not agree to task and extraction; called before any network is made.

    Raises
    ------
    MismatchError
        The request is malformed, or its side network is of another task or extraction, or another size than came.
    """
    record = read_request(content)
    arrays = content.get(keys.SIDE_NETWORK)
    if not isinstance(arrays, ArrayRecord):
        raise MismatchError(f"the server's request carries no {keys.SIDE_NETWORK!r}")
    with _well_formed():
        contract = TaskContract.from_json(str(record[keys.CONTRACT]))
        spec = ExtractionSpec.from_json(str(record[keys.SPEC]))
        config = SideNetworkConfig.from_dict(json.loads(str(record[keys.SIDE_CONFIG])))
        columns = _read_columns(record, config.num_outputs)
    agree(contract, spec)
    with _well_formed():
        if len(arrays):
            require_network(config, contract, spec, one_task=not columns)
        codec = str(record[keys.CODEC])
        return EvaluationRequest(
            contract=contract,
            spec=spec,
            side_config=config,
            prediction=json.loads(str(record[keys.PREDICTION])),
            state=open_weights(arrays, config, codec) if len(arrays) else {},
            held=read_held(record),
            codec=codec,
            columns=columns,
        )


@contextlib.contextmanager
def _well_formed() -> Iterator[None]:
    """Turn whatever damaged JSON or arrays raise into MismatchError."""
    try:
        yield
    except MismatchError:
        raise
    except Exception as error:
        kind = type(error).__name__
        raise MismatchError(f"the server's request lacks a field or has one of another form ({kind})") from error


def _read_columns(record: ConfigRecord, num_outputs: int) -> tuple[int, ...]:
    """Return which columns a request says are the task's; raises TypeError where it cannot be."""
    columns: Any = record.get(keys.COLUMNS, [])
    if not columns:
        return ()
    start, stop, unknown = columns
    if not 0 <= start < stop <= num_outputs or unknown not in (0, 1):
        raise TypeError("columns are none of the side network's")
    return start, stop, unknown


def pack_metrics(metrics: Mapping[str, float]) -> RecordDict:
    """Make the answer to an evaluation."""
    return RecordDict({keys.METRICS: MetricRecord(dict(metrics))})


def open_metrics(
    content: RecordDict,
    *,
    metric: str,
    num_test: int,
    bounds: tuple[float, float] = (-1e15, 1e15),
    task_unknown: bool = False,
) -> dict[str, float]:
    """Read a device's metrics: the number of samples and, if there are any, the contract's metric.

    Parameters
    ----------
    metric : str
        Name of the contract's metric; no other is taken.
    num_test : int
        Test samples that the device described.
    bounds : tuple of float
        Least and largest value that the metric can have.
    task_unknown : bool
        Whether the accuracy among the classes of all tasks was asked for; a device may leave it out.

    Raises
    ------
    PacketRejected
        They are missing, of other names, not finite numbers, out of bounds, or over another number of samples.
    """
    record = content.get(keys.METRICS)
    if not isinstance(record, MetricRecord) or keys.NUM_EXAMPLES not in record:
        raise PacketRejected("metrics", f"{keys.METRICS!r} must be a MetricRecord with {keys.NUM_EXAMPLES!r}")
    metrics: dict[str, float] = {}
    for name, value in record.items():
        if not isinstance(value, int | float) or not abs(value) < 1e15:
            raise PacketRejected("metrics", f"{name!r} must be a finite number")
        metrics[name] = float(value)
    if metrics[keys.NUM_EXAMPLES] != num_test:
        raise PacketRejected("metrics", f"{keys.NUM_EXAMPLES} is not the number of test samples described, {num_test}")
    among_all = metrics.pop(keys.TASK_UNKNOWN, None) if task_unknown and num_test else None
    if set(metrics) != ({keys.NUM_EXAMPLES, metric} if num_test else {keys.NUM_EXAMPLES}):
        raise PacketRejected("metrics", f"must hold {keys.NUM_EXAMPLES} and {metric}, and nothing else")
    low, high = bounds
    if num_test and not low <= metrics[metric] <= high:
        raise PacketRejected("metrics", f"{metric} is {metrics[metric]:g}, it can be from {low:g} to {high:g}")
    if among_all is None:
        return metrics
    if not 0 <= among_all <= 1:
        raise PacketRejected("metrics", f"{keys.TASK_UNKNOWN} is {among_all:g}, it can be from 0 to 1")
    return {**metrics, keys.TASK_UNKNOWN: among_all}


def pack_refusal(reason: str) -> RecordDict:
    """Make an answer that says why the device will not do what was asked."""
    return RecordDict({keys.REFUSED: ConfigRecord({keys.REASON: reason})})


def refusal(content: RecordDict) -> str | None:
    """Return the reason where an answer is a refusal."""
    record = content.get(keys.REFUSED)
    if isinstance(record, ConfigRecord):
        return plain(record.get(keys.REASON, ""))
    return None


def read_held(record: ConfigRecord) -> frozenset[bytes]:
    """Return the release ids that a request says are held."""
    held = record[keys.HELD]
    if not isinstance(held, bytes) or len(held) % RELEASE_BYTES:
        raise TypeError(f"{keys.HELD!r} is not {RELEASE_BYTES} bytes a sample")
    return frozenset(held[i : i + RELEASE_BYTES] for i in range(0, len(held), RELEASE_BYTES))


def read_request(content: RecordDict) -> ConfigRecord:
    """Return a request's record; raises MismatchError where there is none, or one of another version."""
    record = content.get(keys.REQUEST)
    if not isinstance(record, ConfigRecord):
        raise MismatchError(f"the server's message carries no {keys.REQUEST!r}")
    if record.get(keys.VERSION) != keys.SCHEMA_VERSION:
        raise MismatchError(
            f"the server speaks version {record.get(keys.VERSION)!r}, this device {keys.SCHEMA_VERSION}; install the "
            "same release on both"
        )
    return record
