"""What the server sees of a device is uniform, and fewer than t shares are independent of the secret."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mobillm_flower.errors import ArgumentError, MismatchError
from mobillm_flower.wire.secure_sums import graph, masks, messages, shamir
from tests.support.secure_group import SecureGroup


def seen_by_the_server(group: SecureGroup) -> np.ndarray:
    """Return the bytes of the masked sums, whose plain vectors are all zero [devices * bytes]."""
    server = group.add_up(group.server(), until="masked sums")
    for name in group.names:
        group.vectors[name] = np.zeros_like(group.vectors[name])
    bodies = [messages.open_message(group.answer(name, request))[2] for name, request in server.requests().items()]
    return np.frombuffer(b"".join(bodies), np.uint8)


def uniformity(octets: np.ndarray) -> float:
    return float(stats.chisquare(np.bincount(octets, minlength=256)).pvalue)


@pytest.mark.parametrize("bits", [32, 64])
def test_masked_sums_are_uniform(bits: int, tmp_path: Path) -> None:
    octets = seen_by_the_server(SecureGroup(tmp_path, 4, words=4000, bits=bits))
    assert uniformity(octets) > 1e-6
    words = octets.view(f"<u{bits // 8}").astype(np.float64) / 2.0**bits
    assert stats.kstest(words, "uniform").pvalue > 1e-6


def test_the_test_of_uniformity_fails_without_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pair_mask", "self_mask"):
        monkeypatch.setattr(masks, name, lambda *_, words, bits, **__: np.zeros(words, masks.word_type(bits)))
    assert uniformity(seen_by_the_server(SecureGroup(tmp_path, 4, words=4000))) < 1e-6


def test_each_of_the_two_kinds_of_masks_hides_a_device_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("pair_mask", "self_mask"):
        with monkeypatch.context() as patch:
            patch.setattr(masks, kind, lambda *_, words, bits, **__: np.zeros(words, masks.word_type(bits)))
            assert uniformity(seen_by_the_server(SecureGroup(tmp_path / kind, 4, words=4000))) > 1e-6


def test_a_masks_words_depend_on_sum_pair_and_whole_secret_and_not_on_who_computes_them() -> None:
    mine, other = b"\x01" * 32, b"\x02" * 32
    options = {"words": 8, "bits": 64}

    def mask(private: bytes, public: bytes, digest: bytes, pair: tuple[int, int]) -> list[int]:
        return [int(w) for w in masks.pair_mask(private, masks.public_of(public), digest=digest, pair=pair, **options)]

    here = mask(mine, other, b"d", (0, 1))
    assert here == mask(other, mine, b"d", (1, 0))
    assert here not in (
        mask(mine, other, b"e", (0, 1)),
        mask(mine, other, b"d", (0, 2)),
        mask(mine, b"\x03" * 32, b"d", (0, 1)),
    )
    assert masks.agreed_key(mine, masks.public_of(other), b"a") != masks.agreed_key(mine, masks.public_of(other), b"b")
    with pytest.raises(MismatchError, match="the same secret with everybody"):
        masks.agreed_key(mine, bytes(32), b"a")


@given(secret=st.binary(min_size=32, max_size=32), threshold=st.integers(1, 6), more=st.integers(0, 3))
def test_any_t_shares_give_the_secret(secret: bytes, threshold: int, more: int) -> None:
    shares = list(enumerate(shamir.split(secret, threshold=threshold, num_shares=threshold + more), start=1))
    assert all(
        shamir.combine(some) == secret for some in itertools.islice(itertools.combinations(shares, threshold), 5)
    )


@given(secret=st.binary(min_size=32, max_size=32), other=st.integers(0, 2**256 - 1), threshold=st.integers(2, 5))
def test_fewer_than_t_shares_fit_every_secret(secret: bytes, other: int, threshold: int) -> None:
    """t - 1 shares and any other secret lie on one polynomial of degree t - 1: they exclude no secret."""
    shares = list(enumerate(shamir.split(secret, threshold=threshold, num_shares=threshold), start=1))[:-1]
    claimed = other.to_bytes(32, "big")
    points = [(0, other), *((x, int.from_bytes(y, "big")) for x, y in shares)]

    def value_at(x: int) -> int:
        total = 0
        for i, y in points:
            term = y
            for j, _ in points:
                if i != j:
                    term = term * (x - j) * pow(i - j, -1, shamir.PRIME) % shamir.PRIME
            total = (total + term) % shamir.PRIME
        return total

    completed = (threshold, value_at(threshold).to_bytes(33, "big"))
    assert shamir.combine([*shares, completed]) == claimed


def test_the_field_is_prime_and_bad_arguments_are_named() -> None:
    assert all(pow(base, shamir.PRIME - 1, shamir.PRIME) == 1 for base in range(2, 40))
    with pytest.raises(ArgumentError, match="secret=31"):
        shamir.split(bytes(31), threshold=2, num_shares=3)
    with pytest.raises(ArgumentError, match="threshold=4"):
        shamir.split(bytes(32), threshold=4, num_shares=3)


@pytest.mark.parametrize("size", [3, 4, 17, 40, 128, 1000])
def test_neighbours_are_mutual_and_few_and_follow_from_the_roster(size: int) -> None:
    near = graph.neighbours(size, b"a")
    assert {len(set(of)) for of in near} == {graph.num_neighbours(size)}
    assert all(i in near[j] and i != j for i in range(size) for j in near[i])
    assert near == graph.neighbours(size, b"a")
    assert (near != graph.neighbours(size, b"b")) == (graph.num_neighbours(size) < size - 1)


def test_neighbours_grow_with_the_logarithm_of_the_group() -> None:
    few = [graph.num_neighbours(size) for size in (128, 512, 2048)]
    assert max(few[1] - few[0], few[2] - few[1]) < 40
    assert few[2] < 100


@given(st.lists(st.frozensets(st.sampled_from("abcdefgh"), min_size=1), min_size=1, max_size=4), st.integers(2, 4))
def test_classes_below_the_least_are_found_exactly_where_sums_can_be_combined_to_few(
    sets: list[frozenset[str]], least: int
) -> None:
    """No combination of sums has coefficients on fewer than `least` devices unless a class is that small."""
    if graph.too_small_classes(sets, least):
        return
    for weights in itertools.product((-1, 0, 1, 2), repeat=len(sets)):
        held = [sum(w for w, one in zip(weights, sets, strict=True) if name in one) for name in "abcdefgh"]
        assert not 0 < sum(bool(w) for w in held) < least
