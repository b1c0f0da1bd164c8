"""A device's side of a secure sum: five answers, each of which it gives once, or again as it was."""

from __future__ import annotations

import hashlib
import secrets
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mobillm_flower.errors import MismatchError, ReleaseRefused
from mobillm_flower.privacy.identity import Identity, is_signed
from mobillm_flower.wire.secure_sums import masks, messages
from mobillm_flower.wire.secure_sums.graph import quorum, threshold, too_small_classes
from mobillm_flower.wire.secure_sums.masks import SEALED_BYTES
from mobillm_flower.wire.secure_sums.messages import SIGNATURE_BYTES, DeviceKeys, Offer, Roster
from mobillm_flower.wire.secure_sums.shamir import SHARE_BYTES, split
from mobillm_flower.wire.secure_sums.state import MAX_AGREED, AgreedSum, OpenSum, SumsFolder

Vector = Callable[[Offer], NDArray[np.unsignedinteger]]
"""What the device adds to a sum that is offered: `words` unsigned integers of `bits` bits, the same each time."""


class SecureSumsDevice:
    """Answers the server's requests of a secure sum; what it must remember lies in the device's folder.

    It never reveals shares of both secrets of a device, and agrees to one set of survivors in a sum. It agrees to no
    set from whose sum, with those it has agreed to before, a sum over fewer than `minimum` devices follows.

    Parameters
    ----------
    folder : Path
        The device's.
    identity : Identity
        Signs its keys and the set it agrees to.
    run : int
        Flower's id of the run it answers; an offer for another one is refused.
    minimum : int
        Fewest devices of a sum that the device itself agrees to; the server may ask for more.
    across_runs : bool
        Whether sums of other runs count too.

    Notes
    -----
    Bonawitz et al. 2017, with few neighbours (Bell et al. 2020, ePrint 2020/704) and a round in which the devices sign
    who survived.
    """

    def __init__(
        self, folder: Path, identity: Identity, *, run: int, minimum: int = 3, across_runs: bool = False
    ) -> None:
        self._folder, self._identity, self._run = SumsFolder(folder), identity, run
        self._minimum, self._across_runs = minimum, across_runs

    def answer(self, request: bytes, vector: Vector) -> bytes:
        """Answer a request.

        Parameters
        ----------
        request : bytes
            The server's.
        vector : callable
            Called in the phase `masked sums` alone.

        Raises
        ------
        MismatchError
            The request is malformed, or not one of a sum that is open.
        ReleaseRefused
            The answer would give away more than the sum of a large enough group.
        """
        phase, nonce, body = messages.open_message(request)
        with self._folder.locked():
            if phase == "keys":
                return messages.pack_message(phase, nonce, self._keys(nonce, body))
            state = self._folder.read(nonce)
            if state is None:
                raise MismatchError(
                    "the server asks about a secure sum that is not open on this device; begin a new one"
                )
            offer = Offer.open(bytes.fromhex(state.offer))
            if phase == "shares":
                answered = self._share(offer, state, body)
            else:
                if not state.roster:
                    raise MismatchError(f"the server asks for {phase} before it has named who takes part")
                roster = Roster.open(offer, bytes.fromhex(state.roster))
                if phase == "masked sums":
                    answered = self._mask(roster, state, body, vector)
                elif phase == "agreement":
                    answered = self._agree(roster, state, body)
                else:
                    answered = self._reveal(roster, state, body)
            self._folder.write(nonce, state)  # before anything is sent
            return messages.pack_message(phase, nonce, answered)

    def forget(self) -> None:
        """Delete the secrets of sums that are over; the sets that were agreed to are kept."""
        if self._folder.path.exists():
            with self._folder.locked():
                self._folder.forget_open()

    def _keys(self, nonce: bytes, body: bytes) -> bytes:
        offer = Offer.open(body)
        if offer.run != self._run or offer.nonce != nonce:
            raise MismatchError(
                "the offer of a secure sum is for another run or another sum than the message it came in"
            )
        state = self._folder.read(nonce)
        if state is None:
            state = OpenSum(
                offer=body.hex(),
                cipher_key=secrets.token_hex(32),
                mask_key=secrets.token_hex(32),
                seed=secrets.token_hex(32),
            )
            self._folder.begin(nonce, state)
        elif state.offer != body.hex() or state.roster:
            raise MismatchError("this secure sum is open with another offer, or past its keys; begin a new one")
        return DeviceKeys.sign(
            self._identity,
            offer,
            cipher_key=masks.public_of(bytes.fromhex(state.cipher_key)),
            mask_key=masks.public_of(bytes.fromhex(state.mask_key)),
            commitment=masks.commitment_of(bytes.fromhex(state.seed)),
        ).pack()

    def _share(self, offer: Offer, state: OpenSum, body: bytes) -> bytes:
        """Check who takes part, and give each neighbour, encrypted, its shares of the two secrets."""
        if state.roster:
            if state.roster != body.hex():
                raise ReleaseRefused("the server names other members of a secure sum than before; begin a new one")
            return bytes.fromhex(state.sealed)
        roster = Roster.open(offer, body)
        least = max(self._minimum, offer.minimum)
        if len(roster.members) < least:
            raise ReleaseRefused(
                f"{len(roster.members)} devices take part in a secure sum, this one gives its own to at least {least}"
            )
        me = self._me(roster)
        mine = roster.members[me]
        cipher_key, mask_key, seed = (bytes.fromhex(key) for key in (state.cipher_key, state.mask_key, state.seed))
        expected = (masks.public_of(cipher_key), masks.public_of(mask_key), masks.commitment_of(seed))
        if (mine.cipher_key, mine.mask_key, mine.commitment) != expected:
            raise ReleaseRefused("the server gives other keys of this device to the others than it has")
        near = roster.neighbours[me]
        if not all(roster.members[other].is_signed(offer) for other in near):
            raise ReleaseRefused("a neighbour's keys in a secure sum are not signed by its device")
        holders = sorted((*near, me))
        needed = threshold(len(near))
        shares = [split(secret, threshold=needed, num_shares=len(holders)) for secret in (seed, mask_key)]
        sealed: dict[int, bytes] = {}
        for holder, *pair in zip(holders, *shares, strict=True):
            if holder == me:
                state.shares[str(me)] = b"".join(pair).hex()
                continue
            key = _sealing_key(cipher_key, roster, me, holder, me)
            bound = roster.sealed_for(me, holder)
            sealed[holder] = masks.seal(b"".join(pair), key, nonce=secrets.token_bytes(12), bound_to=bound)
        state.roster, state.sealed = body.hex(), messages.pack_items(sealed).hex()
        return bytes.fromhex(state.sealed)

    def _mask(self, roster: Roster, state: OpenSum, body: bytes, vector: Vector) -> bytes:
        """Take in the shares of others, and give the device's vector under its own mask and one for each of them.

        Shares that cannot be decrypted are left out: their owner is masked with all the same, so that masks cancel.
        """
        offer, me = roster.offer, self._me(roster)
        near = roster.neighbours[me]
        delivered = messages.open_items(body, SEALED_BYTES, len(roster.members))
        digest = hashlib.sha256(body).hexdigest()
        if state.survivors or state.delivered not in ("", digest):
            raise ReleaseRefused(
                "the server asks for a masked sum again, with other neighbours or after it was agreed on; two of them "
                "would give a mask away"
            )
        if not set(delivered) <= set(near) or len(delivered) + 1 < threshold(len(near)):
            raise ReleaseRefused(
                f"shares of {len(delivered)} neighbours come, of {len(near)} that this device has; fewer than "
                f"{threshold(len(near)) - 1} of them, or others, could not hide its sum"
            )
        cipher_key, mask_key, seed = (bytes.fromhex(key) for key in (state.cipher_key, state.mask_key, state.seed))
        numbers = vector(offer)
        if numbers.shape != (offer.words,) or numbers.dtype.kind != "u" or numbers.dtype.itemsize * 8 != offer.bits:
            raise MismatchError(
                f"the secure sum has {offer.words} words of {offer.bits} bits, this device has {numbers.shape} of "
                f"{numbers.dtype}"
            )
        total = numbers.astype(masks.word_type(offer.bits))
        fingerprint = hashlib.sha256(total.tobytes()).hexdigest()
        if state.vector not in ("", fingerprint):
            raise ReleaseRefused("this device's own sum has changed since it was sent; begin a new secure sum")
        for sender, sealed in delivered.items():
            key = _sealing_key(cipher_key, roster, sender, me, me)
            shares = masks.unseal(sealed, key, bound_to=roster.sealed_for(sender, me))
            if shares is not None and len(shares) == 2 * SHARE_BYTES:
                state.shares[str(sender)] = shares.hex()
        total += masks.self_mask(seed, digest=roster.digest, words=offer.words, bits=offer.bits)
        for other in delivered:
            public = roster.members[other].mask_key
            mask = masks.pair_mask(
                mask_key, public, digest=roster.digest, pair=(me, other), words=offer.words, bits=offer.bits
            )
            total = total + mask if me < other else total - mask
        state.delivered, state.vector = digest, fingerprint
        return total.tobytes()

    def _agree(self, roster: Roster, state: OpenSum, body: bytes) -> bytes:
        """Sign the set of survivors, the first that is large enough; afterwards no other."""
        if not state.vector:
            raise MismatchError("the server names survivors of a secure sum before this device has sent its masked sum")
        survivors = messages.open_set(body, len(roster.members))
        if not state.survivors:
            self._require_harmless(roster, survivors, state)
            state.survivors = body.hex()
            state.cipher_key = state.mask_key = state.seed = state.sealed = ""  # the server has the masked sum
        elif state.survivors != body.hex():
            raise ReleaseRefused(
                "the server names other survivors of a secure sum than those that this device signed for"
            )
        return self._identity.sign(roster.agreement(survivors))

    def _reveal(self, roster: Roster, state: OpenSum, body: bytes) -> bytes:
        """Give, for each neighbour, one share: of its seed if it survived, of its mask key if it dropped out."""
        if not state.survivors:
            raise ReleaseRefused("the server asks for shares before this device has signed for a set of survivors")
        if state.revealed:
            return bytes.fromhex(state.revealed)
        survivors = messages.open_set(bytes.fromhex(state.survivors), len(roster.members))
        statement = roster.agreement(survivors)
        signatures = messages.open_items(body, SIGNATURE_BYTES, len(roster.members))
        signed = sum(
            number in survivors and is_signed(statement, signature, roster.members[number].identity)
            for number, signature in signatures.items()
        )
        if signed < quorum(len(roster.members)):
            raise ReleaseRefused(
                f"{signed} devices have signed for the survivors of a secure sum, of {len(roster.members)} members it "
                f"takes {quorum(len(roster.members))}"
            )
        revealed = {}
        for owner, pair in state.shares.items():
            seed, mask_key = pair[: 2 * SHARE_BYTES], pair[2 * SHARE_BYTES :]
            survived = int(owner) in survivors
            chosen = bytes.fromhex(seed if survived else mask_key)
            revealed[int(owner)] = (messages.SELF_SEED if survived else messages.MASK_KEY) + chosen
        state.revealed, state.shares = messages.pack_items(revealed).hex(), {}
        return bytes.fromhex(state.revealed)

    def _require_harmless(self, roster: Roster, survivors: tuple[int, ...], state: OpenSum) -> None:
        me, least = self._me(roster), max(self._minimum, roster.offer.minimum, quorum(len(roster.members)))
        near = {*roster.neighbours[me], me} & set(survivors)
        if me not in survivors or len(survivors) < least or len(near) < threshold(len(roster.neighbours[me])):
            raise ReleaseRefused(
                f"{len(survivors)} devices survived in a secure sum, {len(near)} of them this one and its neighbours; "
                f"it agrees to at least {least}, itself among them, and {threshold(len(roster.neighbours[me]))} near it"
            )
        offer = roster.offer
        names = frozenset(roster.members[number].pseudonym for number in survivors)
        known = [one for one in self._folder.agreed() if self._across_runs or one.run == offer.run]
        smallest = max(self._minimum, offer.minimum)
        if size := too_small_classes([*(frozenset(one.devices) for one in known), names], smallest):
            raise ReleaseRefused(
                f"this sum and those that this device has agreed to before would give away the sum of {size} "
                f"device(s), fewer than {smallest}; add up the same devices, or leave out or add at least {smallest}"
            )
        same = [one for one in known if frozenset(one.devices) == names and one.purpose == offer.purpose]
        if any(one.vector != state.vector for one in same):
            raise ReleaseRefused(
                "this device's own sum has changed since the same devices were added up; the difference would give the "
                "change away"
            )
        if not same:
            if len(known) >= MAX_AGREED:
                raise ReleaseRefused(f"this device has agreed to {MAX_AGREED} sums, the most that it remembers")
            self._folder.agree(AgreedSum(offer.run, offer.purpose, tuple(sorted(names)), state.vector))

    def _me(self, roster: Roster) -> int:
        me = roster.number(self._identity.pseudonym)
        if me is None:
            raise MismatchError("this device is not among the members of the secure sum it is asked about")
        return me


def _sealing_key(private: bytes, roster: Roster, sender: int, receiver: int, me: int) -> bytes:
    """Return the key for shares from one member to another, one of which is this device."""
    other = roster.members[receiver if me == sender else sender]
    purpose = b"shares" + roster.digest + struct.pack(">HH", sender, receiver)
    return masks.agreed_key(private, other.cipher_key, purpose)
