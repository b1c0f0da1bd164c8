"""Codecs against bitsandbytes' own round trips, value for value, and against the bounds of their number tables."""

from typing import Any

import bitsandbytes.functional as bnb
import pytest
import torch

from mobillm_flower.core.codecs import CODECS

NAMES = ["fp32", "fp16", "int8", "fp8", "nf4", "fp4"]
FOUR_BIT, EIGHT_BIT = ["nf4", "fp4"], ["int8", "fp8"]
# one value, blocks of 64 and 256 and their neighbours, a usual sample, and more than 256 blocks of 64
COUNTS = [1, 63, 64, 65, 255, 256, 257, 1000, 12 * 768, 64 * 256, 64 * 256 + 1, 64 * 300 + 5]


def _sample(count: Any, seed: int = 0, outlier: float = 8) -> Any:
    """Draw activations: mostly near zero, a few large channels, blocks of unequal size."""
    generator = torch.Generator().manual_seed(1000 * seed + count)
    values = torch.randn(count, generator=generator)
    values[::97] *= outlier
    return values * torch.linspace(0.5, 4, count)


def _round_trip(name: str, values: Any) -> Any:
    return CODECS[name].decode([CODECS[name].encode(values)], [values.numel()])


def _table(name: str) -> Any:
    if name == "int8":
        return bnb.create_dynamic_map(signed=True)
    return bnb.create_fp8_map(signed=True, exponent_bits=4, precision_bits=3, total_bits=8)


def _bitsandbytes(name: str, values: Any) -> Any:
    if name in FOUR_BIT:
        codes, state = bnb.quantize_4bit(values, blocksize=64, compress_statistics=True, quant_type=name)
        return bnb.dequantize_4bit(codes, state).reshape(-1)[: values.numel()]
    codes, state = bnb.quantize_blockwise(values, code=_table(name), blocksize=256)
    return bnb.dequantize_blockwise(codes, state)


def _half_gap(name: str) -> Any:
    """Half of the widest gap of a table on [-1, 1]: the largest rounding error of a value in units of its scale."""
    table = bnb.get_4bit_type(name, device="cpu") if name in FOUR_BIT else _table(name)
    return float(table.float().sort().values.diff().max()) / 2


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", FOUR_BIT + EIGHT_BIT)
def test_a_sample_decodes_to_what_bitsandbytes_gives(name: str, count: Any) -> None:
    values = _sample(count)
    assert torch.equal(_round_trip(name, values), _bitsandbytes(name, values))


@pytest.mark.parametrize("outlier", [300, 30_000])
@pytest.mark.parametrize("name", FOUR_BIT)
def test_scales_beside_much_larger_ones_are_nearer_than_bitsandbytes_gives(name: str, outlier: float) -> None:
    values = _sample(12 * 768, outlier=outlier)
    small = values.view(-1, 64).abs().amax(1) < 20  # blocks without an outlier
    assert 10 < small.sum() < len(small) - 10
    ours, theirs = (
        (decoded - values).view(-1, 64)[small].square().sum() / values.view(-1, 64)[small].square().sum()
        for decoded in (_round_trip(name, values), _bitsandbytes(name, values))
    )
    assert ours < 0.05 < theirs


@pytest.mark.parametrize("name", FOUR_BIT + EIGHT_BIT)
def test_many_samples_in_one_call_decode_to_what_bitsandbytes_gives_for_each(name: str) -> None:
    codec, samples = CODECS[name], [_sample(count, seed=1) for count in COUNTS]
    decoded = codec.decode([codec.encode(values) for values in samples], COUNTS)
    assert torch.equal(decoded, torch.cat([_bitsandbytes(name, values) for values in samples]))


@pytest.mark.parametrize("name", NAMES)
def test_samples_of_equal_size_decode_together_as_alone(name: str) -> None:
    codec, samples = CODECS[name], [_sample(700, seed=seed) for seed in range(5)]
    decoded = codec.decode([codec.encode(values) for values in samples], [700] * 5)
    assert torch.equal(decoded, torch.cat([_round_trip(name, values) for values in samples]))


@pytest.mark.parametrize("name", NAMES)
def test_the_bytes_of_a_sample_do_not_depend_on_what_was_encoded_before(name: str) -> None:
    codec, values = CODECS[name], _sample(1000)
    alone = codec.encode(values)
    for other in (10 * _sample(64), torch.zeros(300), _sample(64 * 256 + 1, seed=2)):
        codec.encode(other)
        codec.decode([codec.encode(other)], [other.numel()])
        assert codec.encode(values) == alone


@pytest.mark.parametrize("name", NAMES)
def test_the_bytes_do_not_depend_on_layout_or_gradient(name: str) -> None:
    codec, values = CODECS[name], _sample(600).reshape(20, 30)
    flat = codec.encode(values.reshape(-1))
    strided = values.t().contiguous().t()
    assert not strided.is_contiguous()
    assert codec.encode(strided) == flat
    assert codec.encode(values.clone().requires_grad_()) == flat


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", NAMES)
def test_the_stated_size_is_the_real_one(name: str, count: Any) -> None:
    assert len(CODECS[name].encode(_sample(count))) == CODECS[name].num_bytes(count)


def test_a_usual_sample_costs_at_most_4_2_bits_a_value() -> None:
    for name in FOUR_BIT:
        assert 8 * len(CODECS[name].encode(_sample(12 * 768))) <= 4.2 * 12 * 768


def test_fp32_is_exact_and_fp16_rounds_to_nearest() -> None:
    values = _sample(1000)
    assert torch.equal(_round_trip("fp32", values), values)
    assert torch.equal(_round_trip("fp16", values), values.half().float())


@pytest.mark.parametrize("name", EIGHT_BIT)
def test_8_bit_errors_stay_within_half_a_gap_of_the_blocks_scale(name: str) -> None:
    values = _sample(256 * 20)
    errors = (_round_trip(name, values) - values).abs().reshape(-1, 256)
    scales = values.reshape(-1, 256).abs().amax(1, keepdim=True)
    assert bool((errors <= scales * _half_gap(name) * 1.0001).all())


@pytest.mark.parametrize("name", FOUR_BIT)
def test_4_bit_errors_stay_within_half_a_gap_and_the_error_of_the_scale(name: str) -> None:
    values = _sample(64 * 256)
    errors = (_round_trip(name, values) - values).abs().reshape(-1, 64)
    scales = values.reshape(-1, 64).abs().amax(1, keepdim=True)
    # a block's scale is itself an 8-bit number, in units of the largest distance from the mean scale
    scale_error = float((scales - scales.mean()).abs().max()) * _half_gap("int8")
    assert bool((errors <= (scales * _half_gap(name) + scale_error) * 1.0001).all())


@pytest.mark.parametrize(
    ("name", "bound"), [("fp32", 0.0), ("fp16", 3e-4), ("int8", 0.013), ("fp8", 0.03), ("nf4", 0.1), ("fp4", 0.13)]
)
def test_the_error_of_normal_values(name: str, bound: float) -> None:
    values = torch.randn(12 * 768, generator=torch.Generator().manual_seed(5))
    assert float((_round_trip(name, values) - values).norm() / values.norm()) <= bound


@pytest.mark.parametrize("name", NAMES)
def test_zeros_stay_zero(name: str) -> None:
    assert float(_round_trip(name, torch.zeros(300)).abs().max()) == 0.0
