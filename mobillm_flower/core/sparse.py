"""Masks of kept values: a bitmap or a Golomb–Rice code of the gaps, whichever is smaller; then the sample's blob.

A mask of density q has entropy H(q) bits a value (0.81 at q = 0.25, 0.47 at 0.1); Rice-coded gaps come within a few
percent of it, where 16-bit indices would cost 4 and 1.6.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mobillm_flower.core.codecs import Codec
from mobillm_flower.core.perturb import largest_mask, num_kept

_BITMAP, _RICE = 0, 1


def rice_parameter(keep: float) -> int:
    """Return the number of low bits b of a Rice code for gaps of density `keep`: 2^b near ln 2 times the mean gap."""
    return max(0, round(math.log2(max(1.0, math.log(2) / keep))))


def encode_mask(mask: Tensor, keep: float) -> bytes:
    """Encode a boolean mask [V, d], read as one line of V·d bits.

    Returns
    -------
    bytes
        One byte naming the form, then the bitmap, or the gaps: unary high parts (ones ended by a zero), padded to a
        byte, then b low bits a gap, padded to a byte.
    """
    flat = mask.reshape(-1).numpy()
    bitmap = np.packbits(flat)
    gaps = np.diff(np.flatnonzero(flat), prepend=-1) - 1
    low_bits = rice_parameter(keep)
    high = gaps >> low_bits
    unary = np.ones(int(high.sum()) + len(gaps), np.uint8)
    unary[np.cumsum(high + 1) - 1] = 0
    low = ((gaps[:, None] >> np.arange(low_bits - 1, -1, -1)) & 1).astype(np.uint8).reshape(-1)
    rice = np.concatenate([np.packbits(unary), np.packbits(low)])
    if len(rice) < len(bitmap):
        return bytes([_RICE]) + rice.tobytes()
    return bytes([_BITMAP]) + bitmap.tobytes()


def decode_mask(blob: bytes, num_vectors: int, width: int, keep: float) -> tuple[Tensor, int]:
    """Decode a mask at the start of `blob`.

    Returns
    -------
    tuple
        The boolean mask [V, d] and the number of bytes it took.

    Raises
    ------
    ValueError
        The bytes are not such a mask, or a vector does not keep exactly k values.
    """
    total, kept = num_vectors * width, num_kept(width, keep)
    if num_vectors < 1:
        raise ValueError("a mask of no vectors")
    if not blob or blob[0] not in (_BITMAP, _RICE):
        raise ValueError("the mask has no known form")
    body = np.frombuffer(blob, np.uint8, offset=1)
    flat = np.zeros(total, bool)
    if blob[0] == _BITMAP:
        size = -(-total // 8)
        if len(body) < size:
            raise ValueError(f"the mask's bitmap has {len(body)} bytes of {size}")
        flat[:] = np.unpackbits(body[:size])[:total].astype(bool)
    else:
        count, low_bits = num_vectors * kept, rice_parameter(keep)
        # the unary part has a zero a gap and at most total/2^b ones
        bits = np.unpackbits(body[: -(-(count + (total >> low_bits) + 1) // 8)])
        ends = np.flatnonzero(bits == 0)[:count]
        if len(ends) < count:
            raise ValueError("the mask's gaps end too early")
        high = np.diff(ends, prepend=-1) - 1
        at = -(-(int(ends[-1]) + 1) // 8)
        low_size = -(-count * low_bits // 8)
        if len(body) < at + low_size:
            raise ValueError("the mask's low bits end too early")
        low = np.unpackbits(body[at : at + low_size])[: count * low_bits].reshape(count, low_bits).astype(np.int64)
        gaps = (high << low_bits) + low @ (1 << np.arange(low_bits - 1, -1, -1, dtype=np.int64))
        places = np.cumsum(gaps + 1) - 1
        if int(places[-1]) >= total:
            raise ValueError("the mask points beyond the sample")
        flat[places] = True
        size = at + low_size
    mask = torch.from_numpy(flat).reshape(num_vectors, width)
    if not bool((mask.sum(1) == kept).all()):
        raise ValueError(f"the mask does not keep {kept} values of every vector")
    return mask, size + 1


def encode_sample(activations: Tensor, codec: Codec, keep: float) -> bytes:
    """Encode one sample: mask (where keep < 1), then values in order.

    Parameters
    ----------
    activations : Tensor
        [T, M, P, d], float32.
    codec : Codec
        How values become bytes.
    keep : float
        Share of each vector that is kept, above 0 and at most 1.
    """
    vectors = activations.reshape(-1, activations.shape[-1])  # [T·M·P, d]
    if keep >= 1:
        return codec.encode(vectors)
    mask = largest_mask(vectors, keep)
    return encode_mask(mask, keep) + codec.encode(vectors[mask])


def decode_samples(blobs: Sequence[bytes], num_vectors: Sequence[int], width: int, codec: Codec, keep: float) -> Tensor:
    """Decode many samples of one backbone into [sum of V, d], float32; values not kept are 0.

    Parameters
    ----------
    blobs : sequence of bytes
        From `encode_sample`.
    num_vectors : sequence of int
        V = T·M·P of each sample.
    width : int
        d.
    codec : Codec
        What the values were encoded with.
    keep : float
        As they were encoded.

    Raises
    ------
    ValueError
        A blob is damaged: wrong length, mask or values.
    """
    if keep >= 1:
        flat = codec.decode(blobs, [count * width for count in num_vectors])
        return flat.reshape(-1, width)
    kept = num_kept(width, keep)
    masks, values = [], []
    for blob, count in zip(blobs, num_vectors, strict=True):
        mask, size = decode_mask(blob, count, width, keep)
        masks.append(mask)
        values.append(blob[size:])
    flat = codec.decode(values, [count * kept for count in num_vectors])
    mask = torch.cat(masks)
    return torch.zeros(mask.shape).masked_scatter_(mask, flat)
