"""Pivots against loops over samples and tokens, under right and left padding."""

from typing import Any

import pytest
import torch

from mobillm_flower.core.pivots import PIVOTS, Pivot, pivot
from mobillm_flower.core.registry import Registry
from mobillm_flower.errors import SettingsError

LENGTHS = [5, 1, 3, 7]
WIDTH = 6


@pytest.fixture
def padded() -> Any:
    """Hidden states [4, 7, 6] whose padding is large, so that any use of it shows, and their mask."""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(len(LENGTHS), max(LENGTHS), WIDTH, generator=generator)
    mask = torch.tensor([[int(t < n) for t in range(max(LENGTHS))] for n in LENGTHS])
    hidden[mask == 0] = 1e6
    return hidden, mask


def _slow(name: str, hidden: Any) -> Any:
    """Select from one unpadded sample, [n, d] -> [P, d]."""
    n = len(hidden)
    mean = torch.zeros(hidden.shape[1], dtype=torch.float64)
    for t in range(n):
        mean += hidden[t].double() / n
    mean = mean.float()
    vectors = {"last": hidden[n - 1], "first": hidden[0], "mean": mean}
    return torch.stack([vectors[part] for part in name.split("+")])


@pytest.mark.parametrize("name", ["last", "first", "mean", "first+mean", "last+mean"])
def test_each_pivot_is_what_a_loop_over_unpadded_samples_finds(name: str, padded: Any) -> None:
    hidden, mask = padded
    selected = PIVOTS[name].select(hidden, mask)
    assert selected.shape == (len(LENGTHS), PIVOTS[name].num_vectors, WIDTH)
    for sample, length in enumerate(LENGTHS):
        torch.testing.assert_close(selected[sample], _slow(name, hidden[sample, :length]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["last", "first", "mean", "first+mean", "last+mean"])
def test_neither_more_padding_nor_neighbours_change_a_sample(name: str, padded: Any) -> None:
    hidden, mask = padded
    together = PIVOTS[name].select(hidden, mask)
    for sample, length in enumerate(LENGTHS):
        alone = PIVOTS[name].select(hidden[sample : sample + 1, :length], mask[sample : sample + 1, :length])
        torch.testing.assert_close(together[sample], alone[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["last", "first", "mean", "first+mean", "last+mean"])
def test_padding_on_the_left_changes_nothing(name: str, padded: Any) -> None:
    hidden, mask = padded
    left, left_mask = (
        torch.stack([torch.roll(row, max(LENGTHS) - n, 0) for row, n in zip(rows, LENGTHS, strict=True)])
        for rows in (hidden, mask)
    )
    assert left_mask[:, -1].all()
    expected = PIVOTS[name].select(hidden, mask)
    torch.testing.assert_close(PIVOTS[name].select(left, left_mask), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", list(PIVOTS))
def test_the_number_format_is_kept(name: str, padded: Any) -> None:
    hidden, mask = padded
    assert PIVOTS[name].select(hidden.bfloat16(), mask).dtype == torch.bfloat16


def test_all_keeps_every_token(padded: Any) -> None:
    hidden, mask = padded
    assert torch.equal(PIVOTS["all"].select(hidden, mask), hidden)


@pytest.mark.parametrize(
    ("name", "per_token", "vectors"),
    [("last", False, 1), ("first", False, 1), ("mean", False, 1), ("first+mean", False, 2), ("all", True, 1)],
)
def test_what_a_pivot_says_of_itself(name: str, per_token: bool, vectors: int) -> None:
    assert PIVOTS[name].per_token is per_token
    assert PIVOTS[name].vectors_per_token == vectors


def test_a_user_adds_a_pivot(padded: Any) -> None:
    hidden, mask = padded
    pivots: Registry[Pivot] = Registry("pivot")

    @pivots.register("first+last")
    @pivot(num_vectors=2)
    def first_and_last(hidden: Any, mask: Any) -> Any:
        rows = torch.arange(len(hidden))
        return torch.stack([hidden[:, 0], hidden[rows, mask.sum(1) - 1]], 1)

    selected = pivots["first+last"].select(hidden, mask)
    for sample, length in enumerate(LENGTHS):
        assert torch.equal(selected[sample], hidden[sample, [0, length - 1]])
    assert pivots["first+last"].vectors_per_token == 2


def test_an_unknown_pivot_names_the_nearest() -> None:
    with pytest.raises(SettingsError, match="unknown pivot 'frist'; did you mean 'first'"):
        PIVOTS["frist"]
