"""A side network's weights on their way to a device: matrices under a codec, the few other values as they are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from mobillm_flower.core.codecs import CODECS
from mobillm_flower.core.side_networks import SideNetworkConfig, fields_taken
from mobillm_flower.errors import MismatchError
from mobillm_flower.wire.contract import ExtractionSpec, TaskContract


def pack_weights(state: Mapping[str, Tensor], codec: str) -> ArrayRecord:
    """Make the record of a state; matrices of float32 become bytes."""
    arrays = {}
    for name, value in state.items():
        if _is_encoded(value):
            arrays[name] = Array(np.frombuffer(CODECS[codec].encode(value.flatten()), np.uint8))
        else:
            arrays[name] = Array(value.detach().cpu().numpy())
    return ArrayRecord(arrays)


def require_network(config: SideNetworkConfig, contract: TaskContract, spec: ExtractionSpec, *, one_task: bool) -> None:
    """Refuse a side network that is not one of this task and extraction, before anything is made of it.

    Parameters
    ----------
    config : SideNetworkConfig
        As the server sent it.
    contract, spec
        What both sides have agreed on.
    one_task : bool
        Whether all its outputs are the task's.

    Raises
    ------
    MismatchError
        Its backbone types, blocks or outputs are others.
    """
    outputs = spec.width if contract.per_token else contract.num_outputs
    fits = config.types == {spec.backbone: spec.alignment} and config.num_blocks == spec.row_shape[0]
    if not fits or (one_task and config.num_outputs != outputs):
        raise MismatchError("the server's side network is none of this task and extraction")


def open_weights(arrays: ArrayRecord, config: SideNetworkConfig, codec: str) -> dict[str, Tensor]:
    """Return the state of a network of that configuration, which then takes no more room than what came.

    Raises
    ------
    MismatchError
        The record is of another network.
    """
    if "orthogonality" in fields_taken(config.name) and len(config.tasks) * config.num_blocks > len(arrays):
        raise MismatchError("the server's side network has fewer weights than tasks, each of which has its own")
    with torch.device("meta"):
        shapes = config.build().state_dict()
    if set(arrays) != set(shapes):
        raise MismatchError("the server's side network has other weights than its configuration names")
    state = {}
    for name, shape in shapes.items():
        value = torch.from_numpy(arrays[name].numpy().copy())
        if _is_encoded(shape):
            value = CODECS[codec].decode([value.numpy().tobytes()], [shape.numel()]).reshape(shape.shape)
        if (value.shape, value.dtype) != (shape.shape, shape.dtype):
            raise MismatchError("the server's side network has weights of another size than its configuration names")
        state[name] = value
    return state


def _is_encoded(value: Tensor) -> bool:
    return value.dim() > 1 and value.dtype == torch.float32
