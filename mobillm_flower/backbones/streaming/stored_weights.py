"""Weights that stay in their safetensors files and are read piece by piece.

They are read and not memory-mapped: a mapped file that is cut short ends the process with SIGBUS, a short read is an
error that can be told. The system's page cache serves both alike.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from mobillm_flower.errors import UnsupportedError, WeightsChanged

_PIECE = 4 << 20  # bytes that are converted at a time
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class _Place:
    """Where a tensor's bytes are."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        count = self.dtype.itemsize
        for size in self.shape:
            count *= size
        return count


class StoredWeights:
    """Tensors by name in safetensors files, which must stay as they are.

    Parameters
    ----------
    places : mapping of str to tuple of Path and str
        Of each tensor its file and its name there.

    Raises
    ------
    UnsupportedError
        A file is no safetensors file, or holds a number format that cannot be read.
    WeightsChanged
        A file is shorter than its header says.
    """

    def __init__(self, places: Mapping[str, tuple[Path, str]]) -> None:
        self._states = {file: _state(file) for file, _ in places.values()}
        headers = {file: _header(file) for file in self._states}
        self._places: dict[str, _Place] = {}
        for name, (file, inner) in places.items():
            entry, begin = headers[file][0].get(inner), headers[file][1]
            if entry is None or entry["dtype"] not in _DTYPES:
                held = "is not there" if entry is None else f"is in {entry['dtype']}, which cannot be streamed"
                raise UnsupportedError(f"{file.name}: {inner} {held}")
            place = _Place(file, _DTYPES[entry["dtype"]], tuple(entry["shape"]), begin + entry["data_offsets"][0])
            if place.start + place.nbytes > self._states[file][0]:
                raise WeightsChanged(_cut(file, place.start + place.nbytes, self._states[file][0]))
            self._places[name] = place

    def __contains__(self, name: str) -> bool:
        return name in self._places

    @staticmethod
    def names_in(file: Path) -> list[str]:
        """Return the names of the tensors in a safetensors file."""
        return [name for name in _header(file)[0] if name != "__metadata__"]

    def names(self, prefix: str) -> list[str]:
        """Return the names that begin with a prefix."""
        return [name for name in self._places if name.startswith(prefix)]

    def check(self) -> None:
        """Raise WeightsChanged where a file is no longer the one that was opened."""
        for file, before in self._states.items():
            now = _state(file)
            if now[0] < before[0]:
                raise WeightsChanged(_cut(file, before[0], now[0]))
            if now != before:
                raise WeightsChanged(
                    f"{file} was changed while its layers were read; what was computed in this pass is dropped. Start "
                    "the device anew, and keep model files as they are while it runs"
                )

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self._places[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """Return the number format that a tensor has on disk."""
        return self._places[name].dtype

    def read(self, name: str, out: Tensor) -> None:
        """Read a whole tensor into one of its shape, in its number format or in another.

        Raises
        ------
        WeightsChanged
            The file cannot be read so far.
        """
        place = self._places[name]
        with _opened(place.file) as stream:
            if out.dtype == place.dtype:
                _fill(stream, place.start, out, place.file)
                return
            flat, size = out.view(-1), _PIECE // place.dtype.itemsize
            held = torch.empty(min(size, len(flat)), dtype=place.dtype)
            for first in range(0, len(flat), size):
                part = held[: len(flat) - first]
                _fill(stream, place.start + first * place.dtype.itemsize, part, place.file)
                flat[first : first + len(part)].copy_(part)

    def rows(self, name: str, ids: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return rows [N, ...] of a tensor [V, ...], by their numbers [N], ascending; nothing else is read.

        Raises
        ------
        IndexError
            A number is out of range.
        WeightsChanged
            The file cannot be read so far.
        """
        place = self._places[name]
        count, *rest = place.shape
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < count:
            raise IndexError(f"index out of range in {name}: {int(ids.max())} of {count} rows")
        held = torch.empty((len(ids), *rest), dtype=place.dtype)
        stride = place.nbytes // max(count, 1)
        with _opened(place.file) as stream:
            for row, number in zip(held, ids.tolist(), strict=True):
                _fill(stream, place.start + number * stride, row, place.file)
        return held if dtype is None else held.to(dtype)


def stored_dtype(files: list[Path]) -> torch.dtype:
    """Return the number format of the largest tensor of safetensors files, all of them whole.

    Raises
    ------
    UnsupportedError
        A file is no safetensors file, or the format cannot be read.
    WeightsChanged
        A file is shorter than its header says.
    """
    sizes: dict[str, int] = {}
    for file in files:
        header, begin = _header(file)
        for name, entry in header.items():
            if name != "__metadata__":
                first, last = entry["data_offsets"]
                sizes[entry["dtype"]] = max(sizes.get(entry["dtype"], 0), last - first)
                if begin + last > _state(file)[0]:
                    raise WeightsChanged(_cut(file, begin + last, _state(file)[0]))
    largest = max(sizes, key=lambda name: sizes[name], default="none")
    if largest not in _DTYPES:
        raise UnsupportedError(f"{files[0].name}: weights in {largest} cannot be streamed")
    return _DTYPES[largest]


def _state(file: Path) -> tuple[int, int, int]:
    """Return what changes with a file: its length, the time of its last change, and which file it is."""
    try:
        state = file.stat()
    except OSError as error:
        raise WeightsChanged(
            f"{file} is gone ({type(error).__name__}); its layers are read while the model runs"
        ) from error
    return state.st_size, state.st_mtime_ns, state.st_ino


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """Return what a safetensors file says it holds, and where its data begin."""
    try:
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header: dict[str, Any] = json.loads(stream.read(min(size, 100_000_000)))
    except (OSError, ValueError) as error:
        raise UnsupportedError(f"{file} is no safetensors file ({type(error).__name__})") from error
    return header, 8 + size


def _opened(file: Path) -> BinaryIO:
    try:
        return file.open("rb", buffering=0)
    except OSError as error:
        raise WeightsChanged(f"{file} cannot be read any more ({type(error).__name__})") from error


def _fill(stream: BinaryIO, start: int, tensor: Tensor, file: Path) -> None:
    """Read a tensor's bytes in place."""
    view = memoryview(tensor.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
    stream.seek(start)
    done = 0
    while done < len(view):
        count = stream.readinto(view[done:])  # type: ignore[attr-defined]
        if not count:
            raise WeightsChanged(_cut(file, start + len(view), start + done))
        done += count


def _cut(file: Path, expected: int, size: int) -> str:
    return f"{file} ends after {size:,} bytes where {expected:,} were there or announced; fetch the model anew"
