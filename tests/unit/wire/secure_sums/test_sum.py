"""A secure sum is the sum mod 2^k of those that sent a masked sum, whoever drops out and when; or it is refused."""

from __future__ import annotations

import stat
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobillm_flower.errors import SumRefused
from mobillm_flower.wire.secure_sums import PHASES
from mobillm_flower.wire.secure_sums.graph import quorum, threshold
from tests.support.secure_group import SecureGroup


@given(
    size=st.integers(3, 9),
    words=st.integers(1, 40),
    bits=st.sampled_from([32, 64]),
    seed=st.integers(0, 1000),
    drops=st.lists(st.tuples(st.sampled_from(PHASES), st.integers(0, 8)), max_size=4),
)
@settings(max_examples=15, deadline=None)
def test_any_sizes_and_dropouts_give_the_sum_of_the_survivors_or_a_refusal(
    size: int, words: int, bits: int, seed: int, drops: list[tuple[str, int]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        group = SecureGroup(Path(folder), size, words=words, bits=bits, seed=seed)
        dropped: dict[str, frozenset[str]] = {}
        for phase, i in drops:
            dropped[phase] = dropped.get(phase, frozenset()) | {group.names[i % size]}
        server = group.server()
        taking_part = size - len(dropped.get("keys", ()))
        last = size - len({i % size for _, i in drops})
        agreeing = size - len({i % size for phase, i in drops if phase != "unmasking"})
        enough = agreeing >= max(3, quorum(taking_part)) and last >= threshold(taking_part - 1)
        try:
            group.add_up(server, dropped)
        except SumRefused:
            assert not enough
        else:
            assert enough
            early = frozenset().union(*(dropped.get(phase, frozenset()) for phase in PHASES[:3]))
            assert set(server.members) == set(group.names) - early
            np.testing.assert_array_equal(server.total, group.sum_of(server.members))


@pytest.mark.parametrize("phase", PHASES)
def test_of_four_devices_one_may_drop_out_in_any_phase_and_two_may_not(phase: str, tmp_path: Path) -> None:
    group = SecureGroup(tmp_path, 4)
    server = group.add_up(group.server(), {phase: frozenset(group.names[:1])})
    np.testing.assert_array_equal(server.total, group.sum_of(server.members))
    other = SecureGroup(tmp_path / "two", 4)
    with pytest.raises(SumRefused, match=r"^2 (devices|shares)"):
        other.add_up(other.server(), {phase: frozenset(other.names[:2])})


def test_large_groups_mask_with_few_neighbours_and_lose_a_tenth_in_each_phase(tmp_path: Path) -> None:
    group = SecureGroup(tmp_path, 40, words=3, bits=32)
    dropped = {"masked sums": frozenset(group.names[:4]), "unmasking": frozenset(group.names[20:24])}
    server = group.add_up(group.server(), dropped)
    assert len(server.members) == 36
    np.testing.assert_array_equal(server.total, group.sum_of(server.members))


def test_the_state_is_the_owners_alone_and_secrets_are_gone_when_they_are_used(tmp_path: Path) -> None:
    group = SecureGroup(tmp_path, 3)
    server = group.server()
    files = lambda: list((tmp_path / group.names[0] / "secure-sums").glob("*.open.json"))  # noqa: E731
    group.add_up(server, until="agreement")
    (file,) = files()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    secret = file.read_text("utf-8")
    for key in ("seed", "mask_key", "cipher_key"):
        assert f'"{key}": ""' not in secret
    group.add_up(server, until="unmasking")
    for key in ("seed", "mask_key", "cipher_key"):
        assert f'"{key}": ""' in files()[0].read_text("utf-8")
    group.add_up(server)
    assert '"shares": {}' in files()[0].read_text("utf-8")
    group.device(group.names[0]).forget()
    assert not files()


def test_a_request_that_comes_again_gets_the_same_answer(tmp_path: Path) -> None:
    group = SecureGroup(tmp_path, 4)
    server = group.server()
    while server.phase:
        name = group.names[0]
        request = server.requests()[name]
        assert group.answer(name, request) == group.answer(name, request)
        group.run_phase(server)
    np.testing.assert_array_equal(server.total, group.sum_of(server.members))
