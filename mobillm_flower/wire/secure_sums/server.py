"""The server's side of a secure sum: it passes messages on, adds up, and takes the masks off."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Collection, Iterator

import numpy as np
from numpy.typing import NDArray

from mobillm_flower.errors import MismatchError, PacketRejected, SumRefused
from mobillm_flower.privacy.identity import is_signed
from mobillm_flower.wire.secure_sums import masks, messages
from mobillm_flower.wire.secure_sums.graph import quorum, threshold
from mobillm_flower.wire.secure_sums.masks import SEALED_BYTES
from mobillm_flower.wire.secure_sums.messages import NONCE_BYTES, PHASES, REVEALED_BYTES, DeviceKeys, Offer, Roster
from mobillm_flower.wire.secure_sums.shamir import PRIME, combine

_TRIES = 64  # choices of shares that are tried where some of them are wrong


class SecureSumsServer:
    """A secure sum over a group of devices, phase after phase.

    In each phase send every device its request, take in what comes back, and close the phase: who has not answered by
    then has dropped out. After the last phase `total` is the sum.

    Parameters
    ----------
    devices : collection of str
        Pseudonyms of those who are asked.
    run, purpose, words, bits, minimum
        See `Offer`.

    Attributes
    ----------
    phase : str
        The one that is open, among `PHASES`; empty when the sum is known.
    members : tuple of str
        Pseudonyms of those over whom the sum is; known after the phase `masked sums`.

    Examples
    --------
    >>> server = SecureSumsServer(["a" * 32, "b" * 32, "c" * 32], run=1, purpose="sums", words=5, bits=64, minimum=3)
    >>> server.phase, len(server.requests())
    ('keys', 3)
    """

    def __init__(
        self, devices: Collection[str], *, run: int, purpose: str, words: int, bits: int, minimum: int
    ) -> None:
        self.offer = Offer(run, secrets.token_bytes(NONCE_BYTES), purpose, words, bits, minimum)
        self.phase: str = PHASES[0]
        self.members: tuple[str, ...] = ()
        self._invited = frozenset(devices)
        self._keys: dict[str, DeviceKeys] = {}
        self._sealed: dict[int, dict[int, bytes]] = {}
        self._added: set[int] = set()
        self._signatures: dict[int, bytes] = {}
        self._revealed: dict[int, dict[int, bytes]] = {}
        self._sum = np.zeros(words, masks.word_type(bits))
        self._require(len(self._invited), minimum, "are asked")

    @property
    def total(self) -> NDArray[np.unsignedinteger]:
        """The sum mod 2^bits [words]; raises SumRefused before the last phase is closed."""
        if self.phase:
            raise SumRefused(f"the secure sum is in its phase {self.phase!r}; close the phases first")
        return self._sum

    def requests(self) -> dict[str, bytes]:
        """Return what is asked in this phase, by pseudonym."""
        return {device: self._pack(body) for device, body in sorted(self._bodies())}

    def receive(self, device: str, reply: bytes) -> None:
        """Take in a device's answer, once.

        Raises
        ------
        PacketRejected
            It is malformed, not asked for, or not of this phase; nothing of it is kept.
        """
        try:
            phase, nonce, body = messages.open_message(reply)
            if phase != self.phase or nonce != self.offer.nonce:
                raise MismatchError(f"the answer is of another sum, or of the phase {phase!r}, not {self.phase!r}")
            if device not in self._asked:
                raise MismatchError("a device answers that was not asked, or that has answered")
            self._take(device, body)
        except MismatchError as error:
            raise PacketRejected("secure-sums", str(error)) from error

    def close(self) -> None:
        """End the phase.

        Raises
        ------
        SumRefused
            Too few devices are left, or the masks of one cannot be taken off.
        """
        if self.phase == "keys":
            self._require(len(self._keys), self.offer.minimum, "answered")
            members = sorted(self._keys.values(), key=lambda keys: keys.identity)
            self._roster = Roster(self.offer, tuple(members))
        else:
            least = max(self.offer.minimum, quorum(len(self._roster.members)))
            if self.phase == "shares":
                self._require(len(self._sealed), least, "gave shares")
            elif self.phase == "masked sums":
                self._require(len(self._added), least, "sent a masked sum")
                self._survivors = tuple(sorted(self._added))
                self.members = tuple(self._roster.members[number].pseudonym for number in self._survivors)
            elif self.phase == "agreement":
                self._require(len(self._signatures), least, "agreed on the survivors")
            else:
                self._unmask()
        after = PHASES.index(self.phase) + 1
        self.phase = PHASES[after] if after < len(PHASES) else ""

    @property
    def _asked(self) -> set[str]:
        if self.phase == "keys":
            return set(self._invited - set(self._keys))
        if not self.phase:
            return set()
        before, answered = {
            "shares": (range(len(self._roster.members)), self._sealed),
            "masked sums": (self._sealed, self._added),
            "agreement": (self._added, self._signatures),
            "unmasking": (self._signatures, self._revealed),
        }[self.phase]
        return {self._roster.members[number].pseudonym for number in set(before) - set(answered)}

    def _bodies(self) -> Iterator[tuple[str, bytes]]:
        if self.phase == "masked sums":
            for device in self._asked:
                number = self._number(device)
                near = (sender for sender in self._roster.neighbours[number] if sender in self._sealed)
                yield device, messages.pack_items({sender: self._sealed[sender][number] for sender in near})
            return
        if self.phase == "keys":
            body = self.offer.pack()
        elif self.phase == "shares":
            body = self._roster.pack()
        elif self.phase == "agreement":
            body = messages.pack_set(self._survivors, len(self._roster.members))
        else:
            body = messages.pack_items(self._signatures)
        yield from ((device, body) for device in self._asked)

    def _take(self, device: str, body: bytes) -> None:
        if self.phase == "keys":
            keys = DeviceKeys.open(body)
            if keys.pseudonym != device or not keys.is_signed(self.offer):
                raise MismatchError("keys for a secure sum are not signed by the device they come from")
            self._keys[device] = keys
            return
        number, size = self._number(device), len(self._roster.members)
        near = self._roster.neighbours[number]
        if self.phase == "shares":
            sealed = messages.open_items(body, SEALED_BYTES, size)
            if tuple(sealed) != near:
                raise MismatchError(
                    f"shares come for {len(sealed)} devices, there must be one for each of {len(near)} neighbours"
                )
            self._sealed[number] = sealed
        elif self.phase == "masked sums":
            if len(body) != self._sum.nbytes:
                raise MismatchError(f"a masked sum has {len(body)} bytes, it must have {self._sum.nbytes}")
            self._sum += np.frombuffer(body, self._sum.dtype)
            self._added.add(number)
        elif self.phase == "agreement":
            if not is_signed(self._roster.agreement(self._survivors), body, self._roster.members[number].identity):
                raise MismatchError("the signature is not one of this device, for these survivors")
            self._signatures[number] = body
        else:
            revealed = messages.open_items(body, REVEALED_BYTES, size)
            for owner, share in revealed.items():
                kind = messages.SELF_SEED if owner in self._added else messages.MASK_KEY
                expected = owner in self._sealed and owner in (*near, number) and share[:1] == kind
                if not expected or int.from_bytes(share[1:], "big") >= PRIME:
                    raise MismatchError("a share is revealed that was not asked for, or of the other secret")
            self._revealed[number] = {owner: share[1:] for owner, share in revealed.items()}

    def _unmask(self) -> None:
        """Take off the survivors' own masks, and the pairs' masks of those that dropped out after giving shares."""
        offer, roster = self.offer, self._roster
        for owner in self._sealed:
            secret = self._secret(owner)
            if owner in self._added:
                self._sum -= masks.self_mask(secret, digest=roster.digest, words=offer.words, bits=offer.bits)
                continue
            for other in roster.neighbours[owner]:
                if other in self._added:
                    public = roster.members[other].mask_key
                    mask = masks.pair_mask(
                        secret, public, digest=roster.digest, pair=(owner, other), words=offer.words, bits=offer.bits
                    )
                    self._sum = self._sum - mask if other < owner else self._sum + mask

    def _secret(self, owner: int) -> bytes:
        """Return the secret of a member that shares of it open, as far as it is the one that was committed to."""
        near, keys = self._roster.neighbours[owner], self._roster.members[owner]
        holders = sorted((*near, owner))
        shares = [
            (point, self._revealed[holder][owner])
            for point, holder in enumerate(holders, start=1)
            if owner in self._revealed.get(holder, {})
        ]
        needed = threshold(len(near))
        if len(shares) < needed:
            raise SumRefused(
                f"{len(shares)} shares of the secret of device {keys.pseudonym[:8]} came, it takes {needed}: too many "
                "devices stopped answering"
            )
        for chosen in itertools.islice(itertools.combinations(shares, needed), _TRIES):
            secret = combine(chosen)
            if secret is None:
                continue
            if owner in self._added and masks.commitment_of(secret) == keys.commitment:
                return secret
            if owner not in self._added and masks.public_of(secret) == keys.mask_key:
                return secret
        raise SumRefused(
            f"the shares of the secret of device {keys.pseudonym[:8]} do not fit together: it or those that hold them "
            "lie; leave it out, or its group"
        )

    def _number(self, device: str) -> int:
        number = self._roster.number(device)
        assert number is not None
        return number

    def _pack(self, body: bytes) -> bytes:
        return messages.pack_message(self.phase, self.offer.nonce, body)

    def _require(self, count: int, least: int, what: str) -> None:
        if count < least:
            raise SumRefused(
                f"{count} devices {what} in the phase {self.phase!r} of a secure sum, it takes {least}; let more "
                "devices take part"
            )
