"""Codecs: float32 values to bytes and back, each sample on its own, by bitsandbytes.

A sample's bytes depend on that sample alone. Decoding takes many samples in one kernel call. To add a codec,
register an object with the methods of `Codec`.

MobiLLM (2502.20421) uploads FP4, NF4 or FP8; the double-quantized scales are QLoRA's (2305.14314).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mobillm_flower.core.bitsandbytes import functional as bnb
from mobillm_flower.core.registry import Registry

_BLOCK_4BIT = 64
_MOST_LOST = 1.0  # of a block's scale: then its values have the wrong sign, or are more than doubled
_LEAST = 2.0**-24  # of the largest scale
_BLOCK_8BIT = 256  # also the block of the nested quantization of 4-bit scales


class Codec(Protocol):
    """How float32 values become bytes."""

    def num_bytes(self, count: int) -> int:
        """Return the encoded size in bytes of `count` values."""

    def encode(self, values: Tensor) -> bytes:
        """Encode a flat float32 tensor; raises ValueError where a value is not finite or out of range."""

    def decode(self, blobs: Sequence[bytes], counts: Sequence[int]) -> Tensor:
        """Decode samples of `counts[i]` values into one flat float32 tensor, in order.

        Raises ValueError where a blob has not the length that its count asks for, or decodes to a value that is not
        finite.
        """


CODECS: Registry[Codec] = Registry("codec")
"""Codecs by the name that `activations.codec` gives."""


def _all_finite(values: Tensor) -> bool:
    """Whether no value is infinite or NaN; the sum, one fast pass, mostly tells, unless finite values exceed it."""
    return bool(torch.isfinite(values.sum()) or torch.isfinite(values).all())


def _finite(values: Tensor) -> Tensor:
    if not _all_finite(values):
        raise ValueError("values to encode are not all finite; lower the precision's range or check the backbone")
    return values.detach().to("cpu", torch.float32).contiguous().reshape(-1)


def _in_range(*statistics: Tensor) -> None:
    if not all(bool(torch.isfinite(part).all()) for part in statistics):
        raise ValueError("values are too large to be scaled; use fp32")


def _joined(codec: Codec, blobs: Sequence[bytes], counts: Sequence[int]) -> None:
    for blob, count in zip(blobs, counts, strict=True):
        if len(blob) != codec.num_bytes(count):
            raise ValueError(f"{len(blob)} bytes for {count} values, expected {codec.num_bytes(count)}")


def _checked(values: Tensor) -> Tensor:
    if not _all_finite(values):
        raise ValueError("decoded values are not all finite")
    return values


class FloatCodec:
    """IEEE float32 or float16, little-endian."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._numpy = np.dtype("<f4" if dtype == torch.float32 else "<f2")

    def num_bytes(self, count: int) -> int:
        """Return count times the format's size."""
        return count * self._numpy.itemsize

    def encode(self, values: Tensor) -> bytes:
        """Round to the format; a value beyond its range raises ValueError."""
        with np.errstate(over="ignore"):
            encoded = _finite(values).numpy().astype(self._numpy)
        if not np.isfinite(encoded).all():
            raise ValueError(f"a value is beyond the range of {self._numpy.name}; use fp32, int8 or nf4")
        return encoded.tobytes()

    def decode(self, blobs: Sequence[bytes], counts: Sequence[int]) -> Tensor:
        """Read back exactly what was encoded."""
        _joined(self, blobs, counts)
        values = np.frombuffer(b"".join(blobs), self._numpy).astype(np.float32)
        return _checked(torch.from_numpy(values))


@lru_cache(maxsize=1)
def _dynamic_map() -> Tensor:
    """Bitsandbytes' dynamic 8-bit numbers, finer near zero: activations have few large channels."""
    table: Tensor = bnb.create_dynamic_map()
    return table


def _table_fp8() -> Tensor:
    table: Tensor = bnb.create_fp8_map(signed=True, exponent_bits=4, precision_bits=3, total_bits=8)
    return table


class Blockwise8Codec:
    """8-bit codes from a table, with a float32 scale per block of 256 values.

    Parameters
    ----------
    table : Tensor
        [256] values in [−1, 1]: bitsandbytes' dynamic 8-bit numbers (`int8`) or those of FP8 E4M3 (`fp8`).
    """

    def __init__(self, table: Tensor) -> None:
        self._table = table

    def num_bytes(self, count: int) -> int:
        """Return one byte a value plus four a block."""
        return count + 4 * -(-count // _BLOCK_8BIT)

    def encode(self, values: Tensor) -> bytes:
        """Quantize in blocks: codes, then scales."""
        codes, state = bnb.quantize_blockwise(_finite(values), code=self._table, blocksize=_BLOCK_8BIT)
        _in_range(state.absmax)
        return bytes(codes.numpy().tobytes() + state.absmax.numpy().astype("<f4").tobytes())

    def decode(self, blobs: Sequence[bytes], counts: Sequence[int]) -> Tensor:
        """Dequantize all samples at once; short last blocks are padded for the call and cut again."""
        _joined(self, blobs, counts)
        blocks = [-(-count // _BLOCK_8BIT) for count in counts]
        codes = b"".join(
            blob[:count] + bytes(n * _BLOCK_8BIT - count) for blob, count, n in zip(blobs, counts, blocks, strict=True)
        )
        scales = b"".join(blob[count:] for blob, count in zip(blobs, counts, strict=True))
        values = bnb.dequantize_blockwise(
            torch.frombuffer(bytearray(codes), dtype=torch.uint8),
            absmax=torch.frombuffer(bytearray(scales), dtype=torch.float32),
            code=self._table,
            blocksize=_BLOCK_8BIT,
        )
        return _checked(_unpad(values, counts, [n * _BLOCK_8BIT for n in blocks]))


class Blockwise4Codec:
    """4-bit codes in blocks of 64; the scales are quantized to 8 bits in blocks of 256 (double quantization).

    The layout of n values, padded with zeros to N = 64·⌈n/64⌉: N/2 bytes of codes, N/64 bytes of scale codes,
    ⌈N/64/256⌉ float32 scales of scales, one float32 offset.

    Beside scales that are hundreds of times as large, as those of a language model's first token are, the small ones
    would be lost. Where one is off by more than itself, the logarithms to base 2 of all scales are quantized
    in their place. The scales of scales then have the other sign, since their own is never negative.

    Parameters
    ----------
    quant_type : {"nf4", "fp4"}
        bitsandbytes' name.
    """

    def __init__(self, quant_type: str) -> None:
        self._type = quant_type

    @staticmethod
    def _parts(count: int) -> tuple[int, int]:
        blocks = -(-count // _BLOCK_4BIT)
        return blocks, -(-blocks // _BLOCK_8BIT)

    def num_bytes(self, count: int) -> int:
        """Return codes, scale codes, scales of scales and offset."""
        blocks, nested = self._parts(count)
        return blocks * (_BLOCK_4BIT // 2) + blocks + 4 * nested + 4

    def encode(self, values: Tensor) -> bytes:
        """Quantize with nested statistics."""
        flat = _finite(values)
        blocks, _ = self._parts(flat.numel())
        padded = torch.nn.functional.pad(flat, (0, blocks * _BLOCK_4BIT - flat.numel()))
        codes, state = bnb.quantize_4bit(padded, blocksize=_BLOCK_4BIT, compress_statistics=True, quant_type=self._type)
        _in_range(state.offset, state.state2.absmax)
        scale_codes, nested, offset = state.absmax, state.state2.absmax, float(state.offset)
        scales = padded.view(-1, _BLOCK_4BIT).abs().amax(1)
        each = nested.repeat_interleave(_BLOCK_8BIT)[:blocks]
        lost = (_scales(scale_codes, each, torch.tensor(offset)) - scales).abs() > _MOST_LOST * scales
        if lost[scales > 0].any():
            scale_codes, nested, offset = _in_logarithms(scales)
        return b"".join(
            (
                codes.numpy().tobytes(),
                scale_codes.numpy().tobytes(),
                nested.numpy().astype("<f4").tobytes(),
                np.float32(offset).astype("<f4").tobytes(),
            )
        )

    def decode(self, blobs: Sequence[bytes], counts: Sequence[int]) -> Tensor:
        """Dequantize the scales of each sample, then all codes in one call."""
        _joined(self, blobs, counts)
        parts = [self._parts(count) for count in counts]
        half = _BLOCK_4BIT // 2
        codes = b"".join(blob[: blocks * half] for blob, (blocks, _) in zip(blobs, parts, strict=True))
        scale_codes = b"".join(
            blob[blocks * half : blocks * (half + 1)] for blob, (blocks, _) in zip(blobs, parts, strict=True)
        )
        tails = np.frombuffer(
            b"".join(blob[blocks * (half + 1) :] for blob, (blocks, _) in zip(blobs, parts, strict=True)), "<f4"
        )
        # one scale of scales and one offset for every scale code: [sum of blocks]
        nested, offsets = _spread(tails, parts)
        index = torch.frombuffer(bytearray(scale_codes), dtype=torch.uint8).long()
        absmax = _scales(index, torch.from_numpy(nested), torch.from_numpy(offsets))
        num_blocks = sum(blocks for blocks, _ in parts)
        values = bnb.dequantize_4bit(
            torch.frombuffer(bytearray(codes), dtype=torch.uint8).reshape(-1, 1),
            quant_state=bnb.QuantState(
                absmax=absmax,
                shape=torch.Size([num_blocks, _BLOCK_4BIT]),
                dtype=torch.float32,
                blocksize=_BLOCK_4BIT,
                quant_type=self._type,
                code=bnb.get_4bit_type(self._type, device="cpu"),
            ),
        )
        return _checked(_unpad(values.reshape(-1), counts, [blocks * _BLOCK_4BIT for blocks, _ in parts]))


def _in_logarithms(scales: Tensor) -> tuple[Tensor, Tensor, float]:
    """Quantize blocks' scales by their logarithms: codes, scales of scales with the other sign, and offset.

    The largest keeps its value, and any other is off by at most 6 %, down to 2⁻²⁴ of the largest.
    """
    largest = scales.max()
    logs = torch.where(scales > 0, scales.clamp_min(largest * _LEAST), largest).log2()  # zeros are zeros by any scale
    offset = float(logs.max() + logs.min()) / 2
    codes, state = bnb.quantize_blockwise(logs - offset, code=_dynamic_map(), blocksize=_BLOCK_8BIT)
    nested = -state.absmax
    _in_range(_scales(codes, nested.repeat_interleave(_BLOCK_8BIT)[: len(codes)], torch.tensor(offset)))
    return codes, nested, offset


def _scales(codes: Tensor, nested: Tensor, offsets: Tensor) -> Tensor:
    """Return blocks' scales from their codes, the scale of each code, and what is added; see `Blockwise4Codec`."""
    scales = _dynamic_map()[codes.long()] * nested.abs() + offsets
    return torch.where(torch.signbit(nested), scales.exp2(), scales)


def _spread(tails: np.ndarray, parts: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Repeat each sample's scales of scales (a block of 256) and offset for each of its scale codes."""
    if len({nested for _, nested in parts}) == 1 and parts[0][1] == 1:  # the usual case, without a loop
        repeats = [blocks for blocks, _ in parts]
        table = tails.reshape(-1, 2)
        return np.repeat(table[:, 0], repeats), np.repeat(table[:, 1], repeats)
    nested_all, offsets_all, at = [], [], 0
    for blocks, nested in parts:
        nested_all.append(np.repeat(tails[at : at + nested], _BLOCK_8BIT)[:blocks])
        offsets_all.append(np.repeat(tails[at + nested], blocks))
        at += nested + 1
    return np.concatenate(nested_all), np.concatenate(offsets_all)


def _unpad(values: Tensor, counts: Sequence[int], padded: Sequence[int]) -> Tensor:
    """Cut the padding behind each sample."""
    if list(counts) == list(padded):
        return values
    return torch.cat([part[:count] for part, count in zip(torch.split(values, list(padded)), counts, strict=True)])


CODECS.add("fp32", FloatCodec(torch.float32))
CODECS.add("fp16", FloatCodec(torch.float16))
CODECS.add("int8", Blockwise8Codec(_dynamic_map()))
CODECS.add("fp8", Blockwise8Codec(_table_fp8()))
CODECS.add("nf4", Blockwise4Codec("nf4"))
CODECS.add("fp4", Blockwise4Codec("fp4"))
