"""Layer sampling: every depth and block count, against the formulas and their promises."""

from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest

from mobillm_flower.core.layers import sample_layers
from mobillm_flower.errors import ArgumentError

DEPTHS = range(1, 65)


def _block_sizes(ends: Any) -> Any:
    return [end - start for start, end in pairwise((0, *ends))]


@pytest.mark.parametrize("scheme", ["uniform", "top-heavy"])
def test_any_depth_gives_distinct_ascending_layers_that_end_with_the_last(scheme: str) -> None:
    for depth in DEPTHS:
        for num_blocks in range(1, depth + 1):
            chosen = sample_layers(depth, num_blocks, scheme=scheme)
            assert len(chosen) == num_blocks
            assert chosen[0] >= 1
            assert chosen[-1] == depth
            assert all(size >= 1 for size in _block_sizes(chosen)), (depth, num_blocks, chosen)


def test_uniform_rounds_the_block_ends_half_up() -> None:
    for depth in DEPTHS:
        for num_blocks in range(1, depth + 1):
            ends = [Fraction(i * depth, num_blocks) for i in range(1, num_blocks + 1)]
            assert sample_layers(depth, num_blocks) == tuple(int((end + Fraction(1, 2)) // 1) for end in ends)


def test_uniform_blocks_differ_by_at_most_one_layer() -> None:
    for depth in DEPTHS:
        for num_blocks in range(1, depth + 1):
            sizes = _block_sizes(sample_layers(depth, num_blocks))
            assert max(sizes) - min(sizes) <= 1


def test_top_heavy_blocks_shrink_towards_the_output() -> None:
    for depth in DEPTHS:
        for num_blocks in range(1, depth + 1):
            sizes = _block_sizes(sample_layers(depth, num_blocks, scheme="top-heavy"))
            # rounding to whole layers may undo a shrinking step by one layer, never by more
            assert all(later <= earlier + 1 for earlier, later in pairwise(sizes))
            assert sizes[-1] <= sizes[0]


def test_top_heavy_is_never_lower_in_the_stack_than_uniform() -> None:
    for depth in DEPTHS:
        for num_blocks in range(1, depth + 1):
            top, even = sample_layers(depth, num_blocks, scheme="top-heavy"), sample_layers(depth, num_blocks)
            assert all(a >= b for a, b in zip(top, even, strict=True))


@pytest.mark.parametrize(
    ("depth", "num_blocks", "scheme", "expected"),
    [
        (12, 4, "uniform", (3, 6, 9, 12)),
        (12, 4, "top-heavy", (5, 9, 11, 12)),
        (6, 4, "uniform", (2, 3, 5, 6)),
        (24, 1, "top-heavy", (24,)),
        (6, 6, "top-heavy", (1, 2, 3, 4, 5, 6)),
        (6, 0, "upper", (0, 3, 4, 5, 6)),
        (5, 0, "upper", (0, 2, 3, 4, 5)),
        (1, 0, "upper", (0, 1)),
        (6, 2, "upper", (0, 6)),
        (6, 1, "upper", (6,)),
    ],
)
def test_known_choices(depth: int, num_blocks: int, scheme: str, expected: Any) -> None:
    assert sample_layers(depth, num_blocks, scheme=scheme) == expected


@pytest.mark.parametrize("scheme", ["uniform", "top-heavy"])
def test_zero_blocks_means_one_block_a_layer(scheme: str) -> None:
    assert sample_layers(7, 0, scheme=scheme) == tuple(range(1, 8))


def test_of_deep_backbones_zero_blocks_means_ten() -> None:
    assert [len(sample_layers(depth, 0)) for depth in (11, 12, 13, 30)] == [11, 12, 10, 10]
    assert sample_layers(30, 0) == tuple(range(3, 31, 3))


@pytest.mark.parametrize("scheme", ["uniform", "top-heavy"])
@pytest.mark.parametrize("num_blocks", [-1, 13])
def test_more_blocks_than_layers_are_refused(scheme: str, num_blocks: Any) -> None:
    with pytest.raises(ArgumentError, match=rf"num_blocks={num_blocks} cannot be had: .* has at most 12"):
        sample_layers(12, num_blocks, scheme=scheme)


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(ArgumentError, match="'bottom-heavy' must be uniform, top-heavy, upper or spread"):
        sample_layers(12, 4, scheme="bottom-heavy")


@pytest.mark.parametrize("num_blocks", [0, 3])
def test_an_explicit_list_overrides_the_scheme(num_blocks: int) -> None:
    assert sample_layers(12, num_blocks, scheme="top-heavy", layers=[1, 4, 12]) == (1, 4, 12)
    assert sample_layers(12, num_blocks, layers=[0, 4, 12]) == (0, 4, 12)


@pytest.mark.parametrize("layers", [[4, 1, 12], [4, 4, 12], [-1, 12], [1, 4], [1, 12, 13]])
def test_an_explicit_list_must_ascend_and_end_with_the_last_layer(layers: Any) -> None:
    with pytest.raises(ArgumentError, match=r"must ascend from 0 .* last layer 12"):
        sample_layers(12, 0, layers=layers)


def test_an_explicit_list_must_agree_with_the_block_count() -> None:
    with pytest.raises(ArgumentError, match="names 2 layers, but 3 blocks"):
        sample_layers(12, 3, layers=[6, 12])


def test_spread_layers_are_the_embeddings_and_the_ends_of_uniform_blocks() -> None:
    for depth in DEPTHS:
        for num_blocks in range(2, depth + 2):
            spread = sample_layers(depth, num_blocks, scheme="spread")
            assert spread == (0, *sample_layers(depth, num_blocks - 1))
