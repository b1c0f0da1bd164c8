"""The messages of a secure sum as bytes, read within bounds; what is malformed is a MismatchError."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from mobillm_flower.errors import MismatchError
from mobillm_flower.privacy.identity import Identity, is_signed, pseudonym_of
from mobillm_flower.wire.secure_sums.graph import neighbours
from mobillm_flower.wire.secure_sums.shamir import SHARE_BYTES

MAX_DEVICES, MAX_WORDS = 4096, 1 << 27
KEY_BYTES, SIGNATURE_BYTES, NONCE_BYTES = 32, 64, 32
PHASES: tuple[str, ...] = ("keys", "shares", "masked sums", "agreement", "unmasking")
"""What a device is asked for, in this order; the first byte of each message is the phase's number."""
_VERSION = b"mobillm-flower secure sums 1"
_PURPOSE_BYTES = 32


@dataclass(frozen=True)
class Offer:
    """A sum that the server proposes to a group.

    Parameters
    ----------
    run : int
        Flower's id of the run.
    nonce : bytes
        32 bytes, of this sum alone.
    purpose : str
        What is added up: at most 32 ASCII characters.
    words, bits : int
        Length of a device's vector, and of its words: 32 or 64.
    minimum : int
        Fewest devices that a sum may be over, at least 3.
    """

    run: int
    nonce: bytes
    purpose: str
    words: int
    bits: int
    minimum: int

    def __post_init__(self) -> None:
        good = len(self.nonce) == NONCE_BYTES and self.bits in (32, 64) and 0 < self.words <= MAX_WORDS
        plain = self.purpose.isascii() and self.purpose.isprintable() and 0 < len(self.purpose) <= _PURPOSE_BYTES
        if not good or not plain or not 3 <= self.minimum <= MAX_DEVICES or not 0 <= self.run < 2**64:
            raise MismatchError(
                f"a secure sum has 1 to {MAX_WORDS} words of 32 or 64 bits, over at least 3 and at most {MAX_DEVICES} "
                f"devices, for a purpose of at most {_PURPOSE_BYTES} characters; this one has {self.words} words of "
                f"{self.bits} bits over at least {self.minimum}"
            )

    def pack(self) -> bytes:
        """Return its bytes."""
        purpose = self.purpose.encode("ascii")
        return (
            struct.pack(">Q32sIBHB", self.run, self.nonce, self.words, self.bits, self.minimum, len(purpose)) + purpose
        )

    @classmethod
    def open(cls, data: bytes) -> Offer:
        """Read it; raises MismatchError."""
        head = struct.Struct(">Q32sIBHB")
        if len(data) < head.size or len(data) != head.size + data[head.size - 1]:
            raise MismatchError(f"the offer of a secure sum has {len(data)} bytes, which is not its length")
        run, nonce, words, bits, minimum, _ = head.unpack(data[: head.size])
        return cls(run, nonce, data[head.size :].decode("ascii", "replace"), words, bits, minimum)

    @cached_property
    def digest(self) -> bytes:
        """Hash of all of it."""
        return hashlib.sha256(_VERSION + b" offer" + self.pack()).digest()


@dataclass(frozen=True)
class DeviceKeys:
    """What a device takes part with: fresh public keys, signed with its identity for this sum.

    Parameters
    ----------
    identity : bytes
        Its Ed25519 public key, whose hash is its pseudonym.
    cipher_key, mask_key : bytes
        X25519 public keys: shares to it are encrypted under the one, pairs' masks follow from the other.
    commitment : bytes
        Hash of the seed of its own mask.
    signature : bytes
        See `sign`.
    """

    identity: bytes
    cipher_key: bytes
    mask_key: bytes
    commitment: bytes
    signature: bytes

    BYTES = 4 * KEY_BYTES + SIGNATURE_BYTES

    @classmethod
    def sign(
        cls, identity: Identity, offer: Offer, *, cipher_key: bytes, mask_key: bytes, commitment: bytes
    ) -> DeviceKeys:
        """Return keys with the identity's signature over them and the whole offer."""
        statement = _keys_statement(offer, cipher_key, mask_key, commitment)
        return cls(identity.public_key, cipher_key, mask_key, commitment, identity.sign(statement))

    @property
    def pseudonym(self) -> str:
        """The name of the device that signed."""
        return pseudonym_of(self.identity)

    def is_signed(self, offer: Offer) -> bool:
        """Whether the identity signed these keys for this sum."""
        statement = _keys_statement(offer, self.cipher_key, self.mask_key, self.commitment)
        return is_signed(statement, self.signature, self.identity)

    def pack(self) -> bytes:
        """Return its 192 bytes."""
        return self.identity + self.cipher_key + self.mask_key + self.commitment + self.signature

    @classmethod
    def open(cls, data: bytes) -> DeviceKeys:
        """Read them; raises MismatchError."""
        if len(data) != cls.BYTES:
            raise MismatchError(f"a device's keys for a secure sum have {len(data)} bytes, they must have {cls.BYTES}")
        identity, cipher_key, mask_key, commitment, signature = struct.unpack("32s32s32s32s64s", data)
        return cls(identity, cipher_key, mask_key, commitment, signature)


@dataclass(frozen=True)
class Roster:
    """Everybody who takes part in a sum, in the order of their identities."""

    offer: Offer
    members: tuple[DeviceKeys, ...]

    def __post_init__(self) -> None:
        identities = [member.identity for member in self.members]
        if not self.offer.minimum <= len(identities) <= MAX_DEVICES or sorted(set(identities)) != identities:
            raise MismatchError(
                f"a roster of {len(identities)} devices: there must be {self.offer.minimum} to {MAX_DEVICES}, each "
                "once, in the order of their identities"
            )

    def pack(self) -> bytes:
        """Return its bytes, without the offer."""
        return b"".join(member.pack() for member in self.members)

    @classmethod
    def open(cls, offer: Offer, data: bytes) -> Roster:
        """Read it; raises MismatchError."""
        size = DeviceKeys.BYTES
        if len(data) % size or len(data) > MAX_DEVICES * size:
            raise MismatchError(f"a roster has {len(data)} bytes, which is no number of devices")
        return cls(offer, tuple(DeviceKeys.open(data[i : i + size]) for i in range(0, len(data), size)))

    @cached_property
    def digest(self) -> bytes:
        """Hash of the offer and of everybody's keys."""
        return hashlib.sha256(_VERSION + b" roster" + self.offer.digest + self.pack()).digest()

    @cached_property
    def neighbours(self) -> list[tuple[int, ...]]:
        """Each member's neighbours, by number."""
        return neighbours(len(self.members), self.digest)

    def number(self, pseudonym: str) -> int | None:
        """Return a device's number, None where it is no member."""
        return self._numbers.get(pseudonym)

    def sealed_for(self, sender: int, receiver: int) -> bytes:
        """Return what the encryption of shares from one to another is bound to."""
        return self.digest + b"shares" + struct.pack(">HH", sender, receiver)

    def agreement(self, survivors: Sequence[int]) -> bytes:
        """Return the statement that a device signs: this is the one set whose sum it helps to open."""
        return _VERSION + b" survivors" + self.digest + pack_set(survivors, len(self.members))

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {member.pseudonym: number for number, member in enumerate(self.members)}


def pack_message(phase: str, nonce: bytes, body: bytes) -> bytes:
    """Return a request or a reply: the phase's number, the sum's nonce, the body."""
    return bytes([PHASES.index(phase)]) + nonce + body


def open_message(data: bytes) -> tuple[str, bytes, bytes]:
    """Return phase, nonce and body; raises MismatchError."""
    if len(data) <= NONCE_BYTES or data[0] >= len(PHASES):
        raise MismatchError(
            "a message of a secure sum names no phase, or is cut short; install the same release on both"
        )
    return PHASES[data[0]], data[1 : NONCE_BYTES + 1], data[NONCE_BYTES + 1 :]


def pack_set(numbers: Sequence[int], num_devices: int) -> bytes:
    """Return a set of members as one bit each."""
    bits = bytearray((num_devices + 7) // 8)
    for number in numbers:
        bits[number // 8] |= 1 << number % 8
    return bytes(bits)


def open_set(data: bytes, num_devices: int) -> tuple[int, ...]:
    """Read a set of members; raises MismatchError."""
    numbers = tuple(i for i in range(8 * len(data)) if data[i // 8] >> i % 8 & 1)
    if len(data) != (num_devices + 7) // 8 or (numbers and numbers[-1] >= num_devices):
        raise MismatchError(f"a set of members is given in {len(data)} bytes, which is no set of {num_devices}")
    return numbers


def pack_items(items: Mapping[int, bytes]) -> bytes:
    """Return one value of fixed length for each of some members."""
    return b"".join(struct.pack(">H", number) + items[number] for number in sorted(items))


def open_items(data: bytes, size: int, num_devices: int) -> dict[int, bytes]:
    """Read values of `size` bytes by member, each once, ascending; raises MismatchError."""
    step = size + 2
    if len(data) % step or len(data) > step * num_devices:
        raise MismatchError(f"values for members come in {len(data)} bytes, which is no number of {step}")
    items = {int.from_bytes(data[i : i + 2], "big"): data[i + 2 : i + step] for i in range(0, len(data), step)}
    if len(items) != len(data) // step or list(items) != sorted(items) or any(i >= num_devices for i in items):
        raise MismatchError(f"values for members must be in their order, each once, of {num_devices} members")
    return items


REVEALED_BYTES = 1 + SHARE_BYTES
SELF_SEED, MASK_KEY = b"\x00", b"\x01"
"""What a revealed share is one of: the seed of a survivor's own mask, or the mask key of a device that dropped out."""


def _keys_statement(offer: Offer, cipher_key: bytes, mask_key: bytes, commitment: bytes) -> bytes:
    return _VERSION + b" keys" + offer.digest + cipher_key + mask_key + commitment
