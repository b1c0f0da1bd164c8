"""Codecs on any values, and on any bytes: what is encoded comes back, what is damaged raises ValueError alone."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mobillm_flower.core.codecs import CODECS

NAMES = ["fp32", "fp16", "int8", "fp8", "nf4", "fp4"]
EXAMPLES = settings(max_examples=25, deadline=None, database=None, derandomize=True)

counts = st.integers(1, 700)
seeds = st.integers(0, 2**32 - 1)
scales = st.sampled_from([1e-30, 1e-6, 1.0, 1e3])


def _values(count: Any, seed: int, scale: float = 1.0) -> Any:
    return scale * torch.randn(count, generator=torch.Generator().manual_seed(seed))


def _decoded_or_refused(name: str, blobs: Any, sizes: Any) -> Any:
    """Decode; damaged bytes either raise ValueError or give finite values of the promised number."""
    try:
        decoded = CODECS[name].decode(blobs, sizes)
    except ValueError:
        return None
    assert decoded.shape == (sum(sizes),)
    assert decoded.dtype == torch.float32
    assert bool(torch.isfinite(decoded).all())
    return decoded


@pytest.mark.parametrize("name", NAMES)
@EXAMPLES
@given(sizes=st.lists(counts, min_size=1, max_size=5), seed=seeds, scale=scales)
def test_samples_of_any_sizes_decode_together_as_alone(name: str, sizes: Any, seed: int, scale: Any) -> None:
    codec = CODECS[name]
    blobs = [codec.encode(_values(count, seed + i, scale)) for i, count in enumerate(sizes)]
    assert [len(blob) for blob in blobs] == [codec.num_bytes(count) for count in sizes]
    decoded = codec.decode(blobs, sizes)
    alone = [codec.decode([blob], [count]) for blob, count in zip(blobs, sizes, strict=True)]
    assert torch.equal(decoded, torch.cat(alone))


@pytest.mark.parametrize("name", NAMES)
@EXAMPLES
@given(values=st.lists(st.floats(-60000, 60000, width=32), min_size=1, max_size=150))
def test_any_finite_values_come_back_within_their_blocks_range(name: str, values: Any) -> None:
    flat = torch.tensor(values)
    decoded = CODECS[name].decode([CODECS[name].encode(flat)], [len(values)])
    reach = float(flat.abs().max())
    # a quarter of the largest value is beyond every format's error, fp4's and nf4's half gaps of 1/6 among them
    assert bool(((decoded - flat).abs() <= 0.25 * reach + 1e-7).all())


@pytest.mark.parametrize("name", NAMES[2:])
@EXAMPLES
@given(
    sizes=st.lists(st.sampled_from([0.01, 0.3, 1.0, 50.0, 2e4]), min_size=2, max_size=300),
    seed=seeds,
    zeros=st.booleans(),
)
def test_a_small_vector_survives_beside_large_ones(name: str, sizes: Any, seed: int, zeros: bool) -> None:
    """As the embedding of a text beside a language model's first token in a middle layer, 20,000 times as large.

    No vector comes back with an error much larger than itself, whatever is beside it.
    """
    vectors = torch.randn(len(sizes), 256, generator=torch.Generator().manual_seed(seed)) * torch.tensor(sizes)[:, None]
    if zeros:
        vectors[0] = 0
    decoded = CODECS[name].decode([CODECS[name].encode(vectors)], [vectors.numel()]).view_as(vectors)
    squares = vectors.square().sum(1)
    assert bool(((decoded - vectors).square().sum(1) <= 1.1 * squares).all())


@pytest.mark.parametrize("name", NAMES)
@EXAMPLES
@given(values=st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=150))
def test_what_is_encoded_can_be_decoded(name: str, values: Any) -> None:
    codec, flat = CODECS[name], torch.tensor(values)
    try:
        blob = codec.encode(flat)
    except ValueError:
        assert float(flat.abs().max()) > 60000  # only what is large may be out of range
        return
    assert bool(torch.isfinite(codec.decode([blob], [len(values)])).all())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [3e38, 65519.0, 65521.0])
def test_large_values_are_refused_when_encoded_and_not_later(name: str, size: float) -> None:
    codec = CODECS[name]
    for flat in (torch.full((200,), size), torch.cat([torch.full((64,), size), torch.zeros(64), -torch.ones(64)])):
        try:
            blob = codec.encode(flat)
        except ValueError:
            assert name != "fp32"
            assert size > 65519
            continue
        assert bool(torch.isfinite(codec.decode([blob], [flat.numel()])).all())


@pytest.mark.parametrize("name", NAMES)
@EXAMPLES
@given(count=counts, seed=seeds, wrong=st.sampled_from([float("nan"), float("inf"), float("-inf")]))
def test_a_value_that_is_not_finite_is_refused(name: str, count: Any, seed: int, wrong: Any) -> None:
    values = _values(count, seed)
    values[seed % count] = wrong
    with pytest.raises(ValueError, match="values to encode are not all finite"):
        CODECS[name].encode(values)


@pytest.mark.parametrize("name", NAMES)
@EXAMPLES
@given(count=counts, seed=seeds, change=st.integers(-8, 8).filter(bool))
def test_a_blob_of_another_length_is_refused(name: str, count: Any, seed: int, change: Any) -> None:
    codec = CODECS[name]
    blob = codec.encode(_values(count, seed))
    damaged = blob[:change] if change < 0 else blob + bytes(change)
    with pytest.raises(ValueError, match=rf"^{len(damaged)} bytes for {count} values, expected {len(blob)}$"):
        codec.decode([blob, damaged], [count, count])


@pytest.mark.parametrize("name", NAMES)
@EXAMPLES
@given(data=st.data(), count=st.integers(1, 200))
def test_any_bytes_of_the_right_length_decode_to_finite_values_or_are_refused(name: str, data: Any, count: Any) -> None:
    size = CODECS[name].num_bytes(count)
    _decoded_or_refused(name, [data.draw(st.binary(min_size=size, max_size=size))], [count])


@pytest.mark.parametrize("name", NAMES)
@EXAMPLES
@given(count=counts, seed=seeds, places=st.lists(st.tuples(seeds, st.integers(1, 255)), min_size=1, max_size=4))
def test_a_damaged_sample_harms_no_other(name: str, count: Any, seed: int, places: Any) -> None:
    codec = CODECS[name]
    good = codec.encode(_values(count, seed))
    damaged = bytearray(good)
    for place, flip in places:
        damaged[place % len(damaged)] ^= flip
    decoded = _decoded_or_refused(name, [good, bytes(damaged), good], [count] * 3)
    if decoded is not None:
        clean = codec.decode([good], [count])
        assert torch.equal(decoded[:count], clean)
        assert torch.equal(decoded[2 * count :], clean)


@pytest.mark.parametrize(("name", "offset"), [("fp32", -4), ("fp16", -2), ("int8", -4), ("fp8", -4), ("nf4", -4)])
def test_a_number_that_is_not_finite_in_the_bytes_is_refused(name: str, offset: Any) -> None:
    codec, values = CODECS[name], torch.linspace(-1, 1, 128)
    blob = codec.encode(values)
    wrong = b"\x00\x7e" if name == "fp16" else b"\x00\x00\xc0\x7f"  # NaN, little-endian
    with pytest.raises(ValueError, match="decoded values are not all finite"):
        codec.decode([blob[:offset] + wrong], [128])
