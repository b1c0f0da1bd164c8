"""What a server that lies cannot get from devices, and devices that lie are named."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from mobillm_flower.errors import MismatchError, MobiLLMError, PacketRejected, ReleaseRefused, SumRefused
from mobillm_flower.privacy.identity import Identity
from mobillm_flower.wire.secure_sums import PHASES, Offer, SecureSumsServer, messages
from mobillm_flower.wire.secure_sums.graph import quorum
from mobillm_flower.wire.secure_sums.masks import SEALED_BYTES
from mobillm_flower.wire.secure_sums.messages import DeviceKeys
from tests.support.secure_group import RUN, SecureGroup


def body(message: bytes) -> bytes:
    return messages.open_message(message)[2]


def request(server: SecureSumsServer, phase: str, content: bytes) -> bytes:
    return messages.pack_message(phase, server.offer.nonce, content)


def signed(group: SecureGroup, server: SecureSumsServer, survivors: list[int], size: int) -> dict[int, bytes]:
    """Ask every device to sign for some survivors, and return what signs."""
    asked, found = request(server, "agreement", messages.pack_set(survivors, size)), {}
    members = sorted(group.names, key=lambda name: group.identities[name].public_key)
    for number, name in enumerate(members):
        try:
            found[number] = body(group.answer(name, asked))
        except MobiLLMError:
            continue
    return found


def test_no_device_ever_gives_shares_of_both_secrets_of_one(tmp_path: Path) -> None:
    """Whatever two sets of survivors the server names, to whomever and in whatever order."""
    sets = [[0, 1, 2, 3, 4], [0, 1, 2, 3], [1, 2, 3, 4]]
    for case, (first, second) in enumerate(itertools.permutations(sets, 2)):
        group = SecureGroup(tmp_path / str(case), 5)
        server = group.add_up(group.server(), until="agreement")
        given: dict[tuple[str, int], set[int]] = {}
        for survivors in (first, second):
            signatures = messages.pack_items(signed(group, server, survivors, 5))
            for name in group.names:
                try:
                    answer = body(group.answer(name, request(server, "unmasking", signatures)))
                except MobiLLMError:
                    continue
                for owner, share in messages.open_items(answer, messages.REVEALED_BYTES, 5).items():
                    given.setdefault((name, owner), set()).add(share[0])
        assert given
        assert all(len(kinds) == 1 for kinds in given.values())


def test_the_server_cannot_split_the_devices_into_two_views(tmp_path: Path) -> None:
    """A part signs for one set and the rest for another: neither has the quorum, and nobody reveals a share."""
    group = SecureGroup(tmp_path, 6)
    server = group.add_up(group.server(), until="agreement")
    members = sorted(group.names, key=lambda name: group.identities[name].public_key)
    views = {name: [0, 1, 2, 3, 4, 5] if i < 3 else [1, 2, 3, 4, 5] for i, name in enumerate(members)}
    signatures = {}
    for i, name in enumerate(members):
        asked = request(server, "agreement", messages.pack_set(views[name], 6))
        signatures[i] = body(group.answer(name, asked))
    for name in members:
        with pytest.raises(ReleaseRefused, match=f"3 devices have signed .* takes {quorum(6)}"):
            group.answer(name, request(server, "unmasking", messages.pack_items(signatures)))


def test_a_device_signs_for_one_set_alone_and_for_no_small_one_or_one_without_it(tmp_path: Path) -> None:
    group = SecureGroup(tmp_path, 5)
    server = group.add_up(group.server(), until="agreement")
    members = sorted(group.names, key=lambda name: group.identities[name].public_key)

    def sign(name: str, survivors: list[int]) -> bytes:
        return group.answer(name, request(server, "agreement", messages.pack_set(survivors, 5)))

    with pytest.raises(ReleaseRefused, match=r"3 devices survived .* at least 4"):
        sign(members[0], [0, 1, 2])
    with pytest.raises(ReleaseRefused, match="itself among them"):
        sign(members[0], [1, 2, 3, 4])
    sign(members[0], [0, 1, 2, 3])
    with pytest.raises(ReleaseRefused, match="other survivors"):
        sign(members[0], [0, 1, 2, 3, 4])
    with pytest.raises(ReleaseRefused, match="before this device has signed"):
        group.answer(members[1], request(server, "unmasking", b""))


def test_two_sums_whose_sets_differ_by_fewer_than_the_threshold_are_refused(tmp_path: Path) -> None:
    group = SecureGroup(tmp_path, 7)
    group.add_up(group.server())
    group.add_up(group.server())  # of the same devices: the same sum again
    for missing in (1, 2):
        server = group.add_up(group.server(group.names[missing:]), until="agreement")
        with pytest.raises(ReleaseRefused, match=f"give away the sum of {missing} device"):
            group.run_phase(server)
    server = group.add_up(group.server(group.names[3:]))
    assert len(server.members) == 4  # three devices less, which is a sum over three
    with pytest.raises(ReleaseRefused, match="give away the sum of"):
        group.add_up(group.server(group.names[2:]))


def test_another_run_counts_where_the_device_says_so(tmp_path: Path) -> None:
    group = SecureGroup(tmp_path, 4)
    group.add_up(group.server())
    server = group.server(group.names[1:], run=RUN + 1)

    def answer(name: str, asked: bytes, across_runs: bool) -> bytes:
        device = group.device(name, across_runs=across_runs, run=RUN + 1)
        return device.answer(asked, lambda _: group.vectors[name])

    while server.phase != "agreement":
        for name, asked in server.requests().items():
            server.receive(name, answer(name, asked, across_runs=True))
        server.close()
    for name, asked in server.requests().items():
        with pytest.raises(ReleaseRefused, match="sum of 1 device"):
            answer(name, asked, across_runs=True)
        answer(name, asked, across_runs=False)


def test_a_sum_that_changed_is_not_added_up_again_with_the_same_devices(tmp_path: Path) -> None:
    group = SecureGroup(tmp_path, 3)
    group.add_up(group.server())
    group.vectors[group.names[0]] += np.uint64(1)
    group.add_up(group.server(purpose="another"))
    with pytest.raises(ReleaseRefused, match="own sum has changed since the same devices"):
        group.add_up(group.server())


def test_a_masked_sum_is_not_made_again_with_other_neighbours_or_another_vector(tmp_path: Path) -> None:
    group = SecureGroup(tmp_path, 5)
    server = group.add_up(group.server(), until="masked sums")
    name = group.names[0]
    asked = server.requests()[name]
    group.answer(name, asked)
    delivered = messages.open_items(body(asked), SEALED_BYTES, 5)
    fewer = messages.pack_items(dict(list(delivered.items())[1:]))
    with pytest.raises(ReleaseRefused, match="two of them would give a mask away"):
        group.answer(name, request(server, "masked sums", fewer))
    group.vectors[name] = group.vectors[name] + np.uint64(1)
    with pytest.raises(ReleaseRefused, match="has changed since it was sent"):
        group.answer(name, asked)


def test_too_few_neighbours_could_not_hide_a_device(tmp_path: Path) -> None:
    group = SecureGroup(tmp_path, 5)
    server = group.add_up(group.server(), until="masked sums")
    name = group.names[0]
    delivered = messages.open_items(body(server.requests()[name]), SEALED_BYTES, 5)
    with pytest.raises(ReleaseRefused, match="shares of 1 neighbours"):
        group.answer(name, request(server, "masked sums", messages.pack_items(dict(list(delivered.items())[:1]))))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("another's keys in place of a neighbour's", "not signed by its device"),
        ("other keys of the device itself", "other keys of this device"),
        ("a second roster", "other members"),
        ("too few", "roster of 2 devices"),
        ("twice", "each once"),
    ],
)
def test_a_roster_with_keys_that_the_server_made_is_refused(change: str, reason: str, tmp_path: Path) -> None:
    group = SecureGroup(tmp_path, 4)
    server = group.add_up(group.server(), until="shares")
    name = min(group.names, key=lambda name: group.identities[name].public_key)
    members = list(messages.Roster.open(server.offer, body(server.requests()[name])).members)
    forged = {"cipher_key": b"\x09" * 32, "mask_key": b"\x09" * 32, "commitment": b"\x09" * 32}
    if change == "another's keys in place of a neighbour's":
        members[1] = DeviceKeys(members[1].identity, **forged, signature=members[1].signature)
    elif change == "other keys of the device itself":
        members[0] = DeviceKeys.sign(group.identities[name], server.offer, **forged)
    elif change == "a second roster":
        group.answer(name, server.requests()[name])
        members = members[:3]
    else:
        members = members[:2] if change == "too few" else [*members[:2], *members[1:]]
    content = b"".join(member.pack() for member in members)
    with pytest.raises(MobiLLMError, match=reason):
        group.answer(name, request(server, "shares", content))


def test_a_device_asks_for_as_many_others_as_it_is_told_whatever_the_server_says(tmp_path: Path) -> None:
    group = SecureGroup(tmp_path, 4)
    server = group.add_up(group.server(), until="shares")
    name = group.names[0]
    with pytest.raises(ReleaseRefused, match="at least 5"):
        group.device(name, minimum=5).answer(server.requests()[name], lambda _: group.vectors[name])


def test_an_offer_is_for_this_run_and_its_own_nonce(tmp_path: Path) -> None:
    group = SecureGroup(tmp_path, 3)
    server = group.server(run=RUN + 1)
    with pytest.raises(MismatchError, match="another run"):
        group.answer(group.names[0], server.requests()[group.names[0]])
    with pytest.raises(MismatchError, match="not open on this device"):
        group.answer(group.names[0], request(server, "unmasking", b""))
    with pytest.raises(MismatchError, match="at least 3"):
        Offer(1, bytes(32), "sums", 5, 64, 2)


@pytest.mark.parametrize("phase", PHASES)
def test_malformed_requests_and_answers_are_refused_in_every_phase(phase: str, tmp_path: Path) -> None:
    group = SecureGroup(tmp_path, 4)
    server = group.add_up(group.server(), until=phase)
    name = group.names[0]
    good = server.requests()[name]
    for bad in (b"", good[:5], good[:-1], good + b"\0", b"\x09" + good[1:]):
        with pytest.raises(MobiLLMError, match=r"secure sum|roster|values|set of members|shares"):
            group.answer(name, bad)
    reply = group.answer(name, good)
    for bad in (b"", reply[:5], reply[:-1], reply + b"\0", bytes([(reply[0] + 1) % 5]) + reply[1:]):
        with pytest.raises(PacketRejected, match="secure-sums"):
            server.receive(name, bad)
    with pytest.raises(PacketRejected, match="was not asked"):
        server.receive("f" * 32, reply)
    server.receive(name, reply)
    with pytest.raises(PacketRejected, match="has answered"):
        server.receive(name, reply)


def test_a_device_cannot_take_part_under_anothers_name(tmp_path: Path) -> None:
    group = SecureGroup(tmp_path, 3)
    server = group.server()
    mine, other = group.names[:2]
    with pytest.raises(PacketRejected, match="not signed by the device"):
        server.receive(other, group.answer(mine, server.requests()[mine]))
    keys = DeviceKeys.sign(
        Identity(b"x" * 32), server.offer, cipher_key=b"a" * 32, mask_key=b"b" * 32, commitment=b"c" * 32
    )
    with pytest.raises(PacketRejected, match="not signed by the device"):
        server.receive(mine, request(server, "keys", keys.pack()))


def test_wrong_shares_are_found_out_and_the_right_ones_used(tmp_path: Path) -> None:
    group = SecureGroup(tmp_path, 6)
    server = group.add_up(group.server(), until="unmasking")
    for i, (name, asked) in enumerate(sorted(server.requests().items())):
        answer = bytearray(group.answer(name, asked))
        if i == 0:
            answer[-1] ^= 1
        server.receive(name, bytes(answer))
    server.close()
    np.testing.assert_array_equal(server.total, group.sum_of(server.members))


def test_shares_that_do_not_fit_name_the_device_and_refuse_the_sum(tmp_path: Path) -> None:
    group = SecureGroup(tmp_path, 4)
    server = group.add_up(group.server(), until="unmasking")
    for name, asked in server.requests().items():
        answer = bytearray(group.answer(name, asked))
        answer[-1] ^= 1
        server.receive(name, bytes(answer))
    with pytest.raises(SumRefused, match="do not fit together"):
        server.close()
    with pytest.raises(SumRefused, match="close the phases first"):
        _ = server.total
