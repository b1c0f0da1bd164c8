"""What the baselines send, in the records that Flower's own FedAvg expects: `arrays`, `metrics`, `config`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from mobillm_flower.errors import MismatchError
from mobillm_flower.wire import keys
from mobillm_flower.wire.contract import TaskContract


def pack_arrays(values: Mapping[str, npt.NDArray[Any]]) -> ArrayRecord:
    """Make an ArrayRecord of numpy arrays by name."""
    return ArrayRecord({name: Array(value) for name, value in values.items()})


def open_arrays(content: RecordDict, name: str = keys.ARRAYS) -> ArrayRecord:
    """Return a message's arrays; raises MismatchError where it carries none."""
    record = content.get(name)
    if not isinstance(record, ArrayRecord):
        raise MismatchError(f"a message carries no {name!r}; do server and devices run the same strategy?")
    return record


def open_array(content: RecordDict, name: str) -> npt.NDArray[Any]:
    """Return one array of a message; raises MismatchError where it is not there."""
    record = open_arrays(content)
    if name not in record:
        raise MismatchError(f"a message carries no array {name!r}; do server and devices run the same strategy?")
    try:
        return record[name].numpy()
    except Exception as error:  # whatever damaged bytes raise
        raise MismatchError(f"array {name!r} of a message cannot be read ({type(error).__name__})") from error


def tensor_array(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """Return a tensor's values; those of bfloat16, which numpy lacks, as their bits."""
    tensor = tensor.detach().cpu()
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def open_tensor(content: RecordDict, name: str) -> torch.Tensor:
    """Return the tensor that `tensor_array` made an array of; raises MismatchError where it is not there."""
    values = torch.from_numpy(open_array(content, name).copy())
    return values.view(torch.bfloat16) if values.dtype == torch.int16 else values


def pack_numbers(numbers: Mapping[str, int | float]) -> MetricRecord:
    """Make a MetricRecord."""
    return MetricRecord(dict(numbers))


def open_numbers(content: RecordDict) -> dict[str, float]:
    """Return a message's metrics as floats; raises MismatchError where it carries none."""
    record = content.get(keys.METRICS)
    if not isinstance(record, MetricRecord):
        raise MismatchError(f"a message carries no {keys.METRICS!r}; do server and devices run the same strategy?")
    return {name: float(value) for name, value in record.items() if isinstance(value, int | float)}


def pack_holdings(contract: TaskContract, *, num_train: int, num_test: int) -> RecordDict:
    """Make the answer of a baseline's device to `query.describe`."""
    record = ConfigRecord({keys.CONTRACT: contract.to_json(), keys.NUM_TRAIN: num_train, keys.NUM_TEST: num_test})
    return RecordDict({keys.DEVICE: record})


def open_holdings(content: RecordDict) -> tuple[TaskContract, int, int]:
    """Return a device's task contract and its numbers of training and test samples.

    Raises
    ------
    MismatchError
        The answer is not that of a baseline's device.
    """
    record = content.get(keys.DEVICE)
    if not isinstance(record, ConfigRecord) or keys.BACKBONE in record:
        raise MismatchError("a device does not answer as a baseline's does; give it the ClientApp of BaselineClient")
    num_train, num_test = record.get(keys.NUM_TRAIN), record.get(keys.NUM_TEST)
    if not (isinstance(num_train, int) and isinstance(num_test, int) and min(num_train, num_test) >= 0):
        raise MismatchError("a device does not say with whole numbers how many samples it has")
    return TaskContract.from_json(str(record.get(keys.CONTRACT))), num_train, num_test


def open_config(content: RecordDict, name: str) -> int:
    """Return a whole number of a message's config, or 0 where it is not there."""
    config = content.get(keys.CONFIG)
    number = config.get(name, 0) if isinstance(config, ConfigRecord) else 0
    return number if isinstance(number, int) else 0
