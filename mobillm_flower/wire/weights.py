"""A side network's weights on their way to a device: matrices under a codec, the few other values as they are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from mobillm_flower.core.codecs import CODECS
from mobillm_flower.core.side_networks import SideNetworkConfig
from mobillm_flower.errors import MismatchError


def pack_weights(state: Mapping[str, Tensor], codec: str) -> ArrayRecord:
    """Make the record of a state; matrices of float32 become bytes."""
    arrays = {}
    for name, value in state.items():
        if _is_encoded(value):
            arrays[name] = Array(np.frombuffer(CODECS[codec].encode(value.flatten()), np.uint8))
        else:
            arrays[name] = Array(value.detach().cpu().numpy())
    return ArrayRecord(arrays)


def open_weights(arrays: ArrayRecord, config: SideNetworkConfig, codec: str) -> dict[str, Tensor]:
    """Return the state of a network of that configuration.

    Raises
    ------
    MismatchError
        The record is of another network.
    """
    with torch.device("meta"):
        shapes = config.build().state_dict()
    if set(arrays) != set(shapes):
        raise MismatchError("the server's side network has other weights than its configuration names")
    state = {}
    for name, shape in shapes.items():
        value = torch.from_numpy(arrays[name].numpy().copy())
        if _is_encoded(shape):
            value = CODECS[codec].decode([value.numpy().tobytes()], [shape.numel()]).reshape(shape.shape)
        state[name] = value
    return state


def _is_encoded(value: Tensor) -> bool:
    return value.dim() > 1 and value.dtype == torch.float32
