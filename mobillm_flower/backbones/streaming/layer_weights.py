"""Weights of layers, and rows of the token table, as the model's own code reads them from files."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

from mobillm_flower.backbones.streaming.stored_weights import StoredWeights

_ALIGNED = 64  # bytes at which a tensor begins


class StoredLayers:
    """Layers as they are in files.

    Attributes
    ----------
    nbytes : int
        Room that the largest layer takes.

    Parameters
    ----------
    weights : StoredWeights
        Under the names that they have in the model.
    stack_name : str
        Where the layers are in the model.
    num_layers : int
        L.
    dtype : torch.dtype
        Of their floating point numbers while they run.
    """

    def __init__(self, weights: StoredWeights, stack_name: str, num_layers: int, dtype: torch.dtype) -> None:
        self._weights, self._dtype = weights, dtype
        self._prefixes = [f"{stack_name}.{number}." for number in range(num_layers)]
        self.nbytes = max(sum(size for *_, size in self._parts(number)) for number in range(num_layers))

    def check(self) -> None:
        """Raise WeightsChanged where the files are no longer those that the model was loaded from."""
        self._weights.check()

    def layer(self, number: int, room: Tensor) -> dict[str, Tensor]:
        """Read layer `number` (from 0) into bytes [nbytes]; returns its parameters by their names in the layer."""
        parameters, start = {}, 0
        for name, dtype, size in self._parts(number):
            shape = self._weights.shape(name)
            held = room[start : start + prod(shape) * dtype.itemsize].view(dtype).view(shape)
            self._weights.read(name, held)
            parameters[name.removeprefix(self._prefixes[number])] = held
            start += size
        return parameters

    def _parts(self, number: int) -> list[tuple[str, torch.dtype, int]]:
        """Return a layer's tensors: their names, formats while they run, and the room that they take."""
        parts = []
        for name in self._weights.names(self._prefixes[number]):
            dtype = self._weights.dtype(name)
            dtype = self._dtype if dtype.is_floating_point else dtype
            size = prod(self._weights.shape(name)) * dtype.itemsize
            parts.append((name, dtype, -(-size // _ALIGNED) * _ALIGNED))
        return parts


class EmbeddingRows:
    """Lets an embedding look its rows up in the file, so that its table is never in memory.

    Parameters
    ----------
    embedding : nn.Embedding
        Without weights; its own code runs on the few rows that a call needs.
    weights : StoredWeights
        Where the table is.
    name : str
        Its name there.
    dtype : torch.dtype
        Of the rows.
    """

    def __init__(self, embedding: nn.Embedding, weights: StoredWeights, name: str, dtype: torch.dtype) -> None:
        self._embedding, self._weights, self._name, self._dtype = embedding, weights, name, dtype
        self._forward = embedding.forward
        embedding.padding_idx = None  # of gradients alone, and a number in the whole table
        embedding.forward = self.look_up  # type: ignore[method-assign, assignment]

    def look_up(self, ids: Tensor) -> Tensor:
        """Return vectors [..., d] of token numbers [...]."""
        needed, places = torch.unique(ids, return_inverse=True)
        empty = self._embedding.weight
        rows = self._weights.rows(self._name, needed, self._dtype)
        self._embedding.weight = nn.Parameter(rows, requires_grad=False)
        try:
            return self._forward(places)
        finally:
            self._embedding.weight = empty
