"""The proof that a description comes from the device whose pseudonym it names.

The server sends a nonce; the device signs it with the run's id, its node's id and every value of the description. So
nobody can say another's pseudonym, or say again in this run, or from another node, what was signed elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict

from mobillm_flower.errors import PacketRejected
from mobillm_flower.privacy.identity import Identity, is_signed, pseudonym_of
from mobillm_flower.wire import keys

_NONCE_BYTES = 32
_PURPOSE = "mobillm-flower description 1"


def make_greeting(node_id: int, *, ttl: float) -> Message:
    """Make the request for a description, with a fresh nonce."""
    request = RecordDict({keys.REQUEST: ConfigRecord({keys.NONCE: secrets.token_bytes(_NONCE_BYTES)})})
    return Message(request, dst_node_id=node_id, message_type=keys.DESCRIBE, ttl=ttl)


def prove(description: RecordDict, identity: Identity, asked: Message) -> RecordDict:
    """Return a description with the device's public key and its signature.

    Parameters
    ----------
    description : RecordDict
        From `pack_description`.
    identity : Identity
        The device's.
    asked : Message
        The server's request; without a nonce in it, the signature is for an empty one.
    """
    statement = _statement(description, asked)
    proof = ConfigRecord({keys.PUBLIC_KEY: identity.public_key, keys.SIGNATURE: identity.sign(statement)})
    return RecordDict({**description, keys.PROOF: proof})


def require_proof(reply: RecordDict, asked: Message) -> None:
    """Check that the description in a reply is signed by the device whose pseudonym it names.

    Raises
    ------
    PacketRejected
        It is not.
    """
    proof, said = reply.get(keys.PROOF), reply.get(keys.DEVICE)
    if not isinstance(proof, ConfigRecord) or not isinstance(said, ConfigRecord):
        raise PacketRejected("identity", "the description is not signed; install this release on the device, too")
    key, signature = proof.get(keys.PUBLIC_KEY), proof.get(keys.SIGNATURE)
    if not isinstance(key, bytes) or not isinstance(signature, bytes):
        raise PacketRejected("identity", "the proof holds no key or no signature")
    if said.get(keys.PSEUDONYM) != pseudonym_of(key):
        raise PacketRejected("identity", "the pseudonym is not that of the key which signed the description")
    if not is_signed(_statement(reply, asked), signature, key):
        raise PacketRejected("identity", "the signature is not one of this description, for this run and this node")


def _statement(description: RecordDict, asked: Message) -> bytes:
    """Return what is signed: one text for each description, nonce, run and node."""
    request, record = asked.content.get(keys.REQUEST), description[keys.DEVICE]
    nonce = request.get(keys.NONCE) if isinstance(request, ConfigRecord) else None
    values: dict[str, Any] = {key: repr(value) for key, value in record.items()}
    said = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    hex_nonce = nonce.hex() if isinstance(nonce, bytes) else ""
    return "|".join((_PURPOSE, hex_nonce, str(asked.metadata.run_id), str(asked.metadata.dst_node_id), said)).encode()
