"""Whether rows of a cache are as they were committed: a digest that orders and identifies, a checksum that is cheap."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from xxhash import xxh3_64_intdigest as _xxh3

from mobillm_flower.privacy.ledger import Release
from mobillm_flower.runs.files import UNREADABLE

_SIGNED = (1 << 63) - 1  # SQLite's integers have a sign


@dataclass(frozen=True)
class Damage:
    """Something that is wrong with a cache, by `ActivationCache.verify`.

    Parameters
    ----------
    problem : str
        What is wrong.
    row : int or None
        Row number in SQLite; None where it is not about one row.
    device : str
        The row's device; empty without a row.
    """

    problem: str
    row: int | None = None
    device: str = ""

    def __str__(self) -> str:
        return self.problem if self.row is None else f"row {self.row} of device {self.device}: {self.problem}"


def digest(backbone: str, sample: Release) -> bytes:
    """Return the SHA-256 of a sample's bytes and of what they are of."""
    head = b"%s:%d:%d:" % (backbone.encode(), sample.tokens, len(sample.activations))
    return hashlib.sha256(head + sample.activations + sample.target).digest()


def checksum(activations: bytes, target: bytes) -> int:
    """Return 63 bits of the XXH3 of a row: a fiftieth of a digest's time.

    It finds damage, as the digest does that lies in the same row; neither is a secret from who changes the file.
    """
    return _xxh3(target, _xxh3(activations)) & _SIGNED


def unlike(
    ids: Sequence[int], rows: Sequence[tuple[bytes, bytes, int | None]], checked: bytearray
) -> list[tuple[int, bool]]:
    """Return which rows, of those not checked yet, are not what their checksum is of, and whether they have one.

    One call for a batch, with nothing called a row but the checksum itself: it is a twentieth of reading and decoding.
    """
    return [
        (id_, committed is not None)
        for id_, (activations, target, committed) in zip(ids, rows, strict=True)
        if not checked[id_] and _xxh3(target, _xxh3(activations)) & _SIGNED != committed
    ]


def find_damage(db: sqlite3.Connection) -> list[Damage]:
    """Check SQLite's own integrity and every row's digest."""
    damage = []
    try:
        damage += _integrity(db)
        # from the index, then row by row: an unreadable page shall not hide the others
        numbers = db.execute("SELECT id, device FROM samples ORDER BY device, release").fetchall()
        for number, device in sorted(numbers):
            if said := problem(db, number):
                damage.append(Damage(said, number, device))
    except UNREADABLE as error:
        damage.append(Damage(f"the rows cannot be listed: {error}"))
    return damage


def problem(db: sqlite3.Connection, number: int) -> str:
    """Return what is wrong with a row; empty where it is whole."""
    query = "SELECT backbone, release, tokens, activations, target, digest FROM samples WHERE id = ?"
    try:
        row = db.execute(query, (number,)).fetchone()
    except UNREADABLE as error:
        return f"it cannot be read: {error}"
    if row is None:
        return "only the index has it"
    backbone, *sample, committed = row
    return "" if digest(backbone, Release(*sample)) == committed else "its bytes are not those that were committed"


def _integrity(db: sqlite3.Connection) -> list[Damage]:
    try:
        return [Damage(str(line)) for (line,) in db.execute("PRAGMA integrity_check") if line != "ok"]
    except UNREADABLE as error:
        return [Damage(f"SQLite's own check cannot go on: {error}")]
