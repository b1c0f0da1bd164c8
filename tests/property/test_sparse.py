"""Masks and sparse samples: any shape and keep come back, any damage raises ValueError alone."""

import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mobillm_flower.core.codecs import CODECS
from mobillm_flower.core.perturb import largest_mask, num_kept
from mobillm_flower.core.sparse import decode_mask, decode_samples, encode_mask, encode_sample, rice_parameter

EXAMPLES = settings(max_examples=60, deadline=None, database=None, derandomize=True)
BITMAP, RICE = 0, 1

keeps = st.one_of(st.floats(1e-4, 0.999), st.sampled_from([0.01, 0.05, 0.1, 0.25, 0.5, 0.9]))
vectors = st.integers(1, 9)
widths = st.integers(1, 120)
seeds = st.integers(0, 2**32 - 1)
names = st.sampled_from(["fp32", "fp16", "int8", "fp8", "nf4", "fp4"])


def _randn(*shape: Any, seed: int) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _mask(num_vectors: Any, width: Any, keep: Any, seed: int) -> Any:
    return largest_mask(_randn(num_vectors, width, seed=seed), keep)


def _mask_or_refused(blob: Any, num_vectors: Any, width: Any, keep: Any) -> None:
    try:
        mask, size = decode_mask(blob, num_vectors, width, keep)
    except ValueError:
        return
    assert mask.shape == (num_vectors, width)
    assert mask.sum(1).tolist() == [num_kept(width, keep)] * num_vectors
    assert 0 < size <= len(blob)


@EXAMPLES
@given(num_vectors=vectors, width=widths, keep=keeps, seed=seeds, behind=st.binary(max_size=20))
def test_a_mask_comes_back_and_says_where_it_ends(
    num_vectors: Any, width: Any, keep: Any, seed: int, behind: Any
) -> None:
    mask = _mask(num_vectors, width, keep, seed)
    blob = encode_mask(mask, keep)
    decoded, size = decode_mask(blob + behind, num_vectors, width, keep)
    assert torch.equal(decoded, mask)
    assert size == len(blob)


@EXAMPLES
@given(num_vectors=vectors, width=st.integers(2, 120), keep=keeps, seed=seeds)
def test_kept_values_that_lie_together_come_back(num_vectors: Any, width: Any, keep: Any, seed: int) -> None:
    """The longest gaps: every vector keeps its last values, or its first."""
    mask = torch.zeros(num_vectors, width, dtype=torch.bool)
    kept = num_kept(width, keep)
    for row in range(num_vectors):
        at = slice(width - kept, width) if (seed >> row) % 2 else slice(0, kept)
        mask[row, at] = True
    assert torch.equal(decode_mask(encode_mask(mask, keep), num_vectors, width, keep)[0], mask)


@EXAMPLES
@given(num_vectors=vectors, width=widths, keep=keeps, seed=seeds)
def test_a_mask_is_never_larger_than_its_bitmap(num_vectors: Any, width: Any, keep: Any, seed: int) -> None:
    blob = encode_mask(_mask(num_vectors, width, keep, seed), keep)
    assert len(blob) <= 1 + -(-num_vectors * width // 8)
    assert blob[0] in (BITMAP, RICE)


@pytest.mark.parametrize(("keep", "form"), [(0.02, RICE), (0.1, RICE), (0.25, RICE), (0.5, BITMAP), (0.9, BITMAP)])
def test_the_smaller_form_is_chosen_and_comes_near_the_entropy(keep: float, form: Any) -> None:
    mask = _mask(12, 768, keep, seed=1)
    blob = encode_mask(mask, keep)
    assert blob[0] == form
    if form == RICE:
        share = num_kept(768, keep) / 768
        entropy = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
        assert 8 * len(blob) <= 1.05 * entropy * mask.numel()
    assert torch.equal(decode_mask(blob, 12, 768, keep)[0], mask)


@pytest.mark.parametrize(("keep", "low_bits"), [(0.9, 0), (0.5, 0), (0.25, 1), (0.1, 3), (0.01, 6)])
def test_the_rice_parameter_follows_the_mean_gap(keep: float, low_bits: int) -> None:
    assert rice_parameter(keep) == low_bits


@EXAMPLES
@given(
    num_vectors=vectors,
    width=widths,
    keep=keeps,
    seed=seeds,
    places=st.lists(st.tuples(seeds, st.integers(1, 255)), min_size=1, max_size=4),
)
def test_a_changed_mask_is_refused_or_still_keeps_k_of_every_vector(
    num_vectors: Any, width: Any, keep: Any, seed: int, places: Any
) -> None:
    damaged = bytearray(encode_mask(_mask(num_vectors, width, keep, seed), keep))
    for place, flip in places:
        damaged[place % len(damaged)] ^= flip
    _mask_or_refused(bytes(damaged), num_vectors, width, keep)


@EXAMPLES
@given(
    blob=st.binary(max_size=80),
    form=st.sampled_from([b"", b"\x00", b"\x01"]),
    num_vectors=vectors,
    width=widths,
    keep=keeps,
)
def test_any_bytes_are_a_mask_or_refused(blob: Any, form: Any, num_vectors: Any, width: Any, keep: Any) -> None:
    _mask_or_refused(form + blob, num_vectors, width, keep)


@EXAMPLES
@given(num_vectors=vectors, width=widths, keep=keeps, seed=seeds, cut=st.integers(1, 200))
def test_a_mask_that_is_cut_short_is_refused(num_vectors: Any, width: Any, keep: Any, seed: int, cut: Any) -> None:
    blob = encode_mask(_mask(num_vectors, width, keep, seed), keep)
    with pytest.raises(ValueError, match=r"bitmap has|end too early|no known form"):
        decode_mask(blob[: max(0, len(blob) - cut)], num_vectors, width, keep)


@pytest.mark.parametrize("form", [2, 255])
def test_a_mask_of_an_unknown_form_is_refused(form: int) -> None:
    with pytest.raises(ValueError, match="no known form"):
        decode_mask(bytes([form]) + bytes(10), 2, 8, 0.5)


def test_a_mask_beyond_the_sample_is_refused() -> None:
    mask = torch.zeros(1, 128, dtype=torch.bool)
    mask[0, -1] = True
    blob = encode_mask(mask, 0.005)
    assert blob[0] == RICE
    with pytest.raises(ValueError, match=r"beyond the sample|end too early"):
        decode_mask(blob, 1, 120, 0.005)


@pytest.mark.parametrize("keep", [0.1, 0.5])
def test_a_mask_that_keeps_another_number_is_refused(keep: float) -> None:
    mask = _mask(4, 100, keep, seed=2)
    row = int(mask[0].nonzero()[0])
    mask[0, row], mask[1, int((~mask[1]).nonzero()[0])] = False, True  # the total stays
    with pytest.raises(ValueError, match="does not keep"):
        decode_mask(encode_mask(mask, keep), 4, 100, keep)


@EXAMPLES
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 2), widths),
    keep=st.one_of(keeps, st.just(1.0)),
    name=names,
    seed=seeds,
)
def test_the_largest_values_of_a_sample_come_back_and_the_rest_is_zero(
    shape: Any, keep: Any, name: str, seed: int
) -> None:
    activations, codec = _randn(*shape, seed=seed), CODECS[name]
    width = shape[-1]
    rows = activations.reshape(-1, width)
    mask = largest_mask(rows, keep)
    decoded = decode_samples([encode_sample(activations, codec, keep)], [len(rows)], width, codec, keep)
    assert decoded.shape == rows.shape
    expected = torch.zeros_like(rows)
    expected[mask] = codec.decode([codec.encode(rows[mask])], [int(mask.sum())])
    assert torch.equal(decoded, expected)
    if name == "fp32":
        assert torch.equal(decoded, rows * mask)


@EXAMPLES
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    width=widths,
    keep=st.one_of(keeps, st.just(1.0)),
    name=names,
    seed=seeds,
)
def test_samples_of_unequal_length_decode_together_as_alone(
    sizes: Any, width: Any, keep: Any, name: str, seed: int
) -> None:
    codec = CODECS[name]
    blobs = [encode_sample(_randn(size, 1, 1, width, seed=seed + i), codec, keep) for i, size in enumerate(sizes)]
    together = decode_samples(blobs, sizes, width, codec, keep)
    alone = [decode_samples([blob], [size], width, codec, keep) for blob, size in zip(blobs, sizes, strict=True)]
    assert torch.equal(together, torch.cat(alone))


@EXAMPLES
@given(
    num_vectors=vectors,
    width=widths,
    keep=st.one_of(keeps, st.just(1.0)),
    name=names,
    seed=seeds,
    change=st.integers(-30, 30).filter(bool),
)
def test_a_sample_of_another_length_is_refused(
    num_vectors: Any, width: Any, keep: Any, name: str, seed: int, change: Any
) -> None:
    codec = CODECS[name]
    blob = encode_sample(_randn(num_vectors, 1, 1, width, seed=seed), codec, keep)
    assume(change > 0 or -change <= len(blob))
    damaged = blob[:change] if change < 0 else blob + bytes(change)
    with pytest.raises(ValueError, match=r"bytes for \d+ values, expected|bitmap has|end too early|no known form"):
        decode_samples([damaged], [num_vectors], width, codec, keep)


@EXAMPLES
@given(
    num_vectors=vectors,
    width=widths,
    keep=st.one_of(keeps, st.just(1.0)),
    name=names,
    seed=seeds,
    places=st.lists(st.tuples(seeds, st.integers(1, 255)), min_size=1, max_size=4),
)
def test_a_changed_sample_is_refused_or_decodes_to_finite_values(
    num_vectors: Any, width: Any, keep: Any, name: str, seed: int, places: Any
) -> None:
    codec = CODECS[name]
    damaged = bytearray(encode_sample(_randn(num_vectors, 1, 1, width, seed=seed), codec, keep))
    for place, flip in places:
        damaged[place % len(damaged)] ^= flip
    try:
        decoded = decode_samples([bytes(damaged)], [num_vectors], width, codec, keep)
    except ValueError:
        return
    assert decoded.shape == (num_vectors, width)
    assert bool(torch.isfinite(decoded).all())
    assert int((decoded != 0).sum()) <= num_vectors * num_kept(width, keep)
