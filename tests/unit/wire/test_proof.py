"""A description is signed for one run, one node and one nonce; whoever says another's pseudonym is found out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from mobillm_flower.errors import PacketRejected
from mobillm_flower.privacy.identity import Identity, is_signed, pseudonym_of
from mobillm_flower.wire import keys
from mobillm_flower.wire.proof import make_greeting, prove, require_proof

MINE, OTHERS = Identity(b"m" * 32), Identity(b"o" * 32)


def greeting(node: int = 7, run: int = 1) -> Message:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run, 1, 1
    return make_greeting(node, ttl=10.0)


def described(pseudonym: str = MINE.pseudonym) -> RecordDict:
    return RecordDict({keys.DEVICE: ConfigRecord({keys.PSEUDONYM: pseudonym, keys.NUM_TRAIN: 5})})


def test_a_pseudonym_is_its_public_keys_hash_and_follows_from_the_secret() -> None:
    assert MINE.pseudonym == pseudonym_of(MINE.public_key) == Identity(b"m" * 32).pseudonym
    assert len(MINE.pseudonym) == 32
    assert is_signed(b"a", MINE.sign(b"a"), MINE.public_key)
    assert not is_signed(b"b", MINE.sign(b"a"), MINE.public_key)
    assert not is_signed(b"a", MINE.sign(b"a"), OTHERS.public_key)
    assert not is_signed(b"a", b"short", b"short")


def test_a_signed_description_is_taken() -> None:
    asked = greeting()
    require_proof(prove(described(), MINE, asked), asked)


def changed(content: RecordDict, record: str, **values: object) -> RecordDict:
    return RecordDict({**content, record: ConfigRecord({**content[record], **values})})  # type: ignore[dict-item]


FORGERIES: dict[str, tuple[Callable[[Message], RecordDict], str]] = {
    "another's pseudonym": (lambda asked: prove(described(OTHERS.pseudonym), MINE, asked), "not that of the key"),
    "with the other's key": (
        lambda asked: changed(
            prove(described(OTHERS.pseudonym), MINE, asked), keys.PROOF, **{keys.PUBLIC_KEY: OTHERS.public_key}
        ),
        "signature",
    ),
    "signed for another greeting": (lambda _: prove(described(), MINE, greeting()), "signature"),
    "signed for another node": (
        lambda asked: prove(described(), MINE, Message(asked.content, dst_node_id=8, message_type=keys.DESCRIBE)),
        "signature",
    ),
    "signed and then changed": (
        lambda asked: changed(prove(described(), MINE, asked), keys.DEVICE, **{keys.NUM_TRAIN: 6}),
        "signature",
    ),
    "not signed": (lambda _: described(), "not signed"),
    "no key": (
        lambda asked: changed(prove(described(), MINE, asked), keys.PROOF, **{keys.PUBLIC_KEY: 5}),
        "no key or no signature",
    ),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_description_is_rejected(name: str) -> None:
    forge, reason = FORGERIES[name]
    asked = greeting()
    with pytest.raises(PacketRejected, match=f"identity: .*{reason}"):
        require_proof(forge(asked), asked)


def test_what_was_signed_in_one_run_is_nothing_in_another() -> None:
    asked = greeting(run=1)
    said = prove(described(), MINE, asked)
    TaskIdentity.run_id = 2
    with pytest.raises(PacketRejected, match="for this run"):
        require_proof(said, Message(asked.content, dst_node_id=7, message_type=keys.DESCRIBE))
