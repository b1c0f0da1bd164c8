"""Which samples a step takes: drawn from (seed, phase, number) over rows in the order of their digests."""

from __future__ import annotations

import hashlib
import math

import numpy as np

from mobillm_flower.server.rows import Rows

_EPOCH, _OVERLAP, _FRESH = range(3)  # phases of `draw_order`; `influence` has another


def split_validation(
    rows: Rows, share: float, seed: int, *, secret: str = "", device_cap: int = 0
) -> tuple[Rows, Rows]:
    """Split rows into training and validation by a keyed hash of their digests.

    A row's side never changes as the cache grows, and does not depend on who sent it.

    Parameters
    ----------
    rows : Rows
        All that are held.
    share : float
        Of validation.
    seed, secret : int, str
        The key: a secret in hex, or where that is empty the seed, which devices know. With it, one that sends many
        candidates could foresee which of its samples choose the best state.
    device_cap : int
        Most training samples of one device in an epoch (0: all); of validation it has no larger share. What is beyond
        that is on neither side.
    """
    bound = int(share * 2**64)
    key = bytes.fromhex(secret) or seed.to_bytes(8, "big", signed=True)

    def is_held_back(digest: bytes) -> bool:
        return int.from_bytes(hashlib.blake2b(digest, digest_size=8, key=key).digest(), "big") < bound

    held_back = rows.by_digest(("validation", bound, key), is_held_back)  # as the cache grows, of its new rows alone
    train, validation = rows.take(~held_back), rows.take(held_back)
    if device_cap:
        most = math.ceil(device_cap * share / (1 - share))
        validation = validation.take(occurrence(validation.column("device")) < most)
    return train, validation


def draw_order(count: int, *, seed: int, phase: int, number: int) -> np.ndarray:
    """Return a permutation of 0..count−1 that depends on its arguments alone.

    Parameters
    ----------
    phase : int
        What is drawn: an order of an epoch, of a round's steps, of its newest rows.
    number : int
        Which epoch, or which draw of which round.
    """
    generator = np.random.Generator(np.random.PCG64([abs(seed), int(seed < 0), phase, number]))
    return generator.permutation(count)


def epoch_order(rows: Rows, *, seed: int, epoch: int, device_cap: int = 0, balance_types: bool = False) -> np.ndarray:
    """Return the places in `rows` that an epoch takes, in order.

    Parameters
    ----------
    rows : Rows
        The training rows.
    device_cap : int
        Most samples of one device in an epoch (0: all); which ones is drawn anew each epoch.
    balance_types : bool
        Give each backbone type the same number of places, in turns, as many in all as there would be without: a
        smaller type's samples are repeated, some of a larger one's are left out for an epoch.
    """
    order = draw_order(len(rows), seed=seed, phase=_EPOCH, number=epoch)
    if device_cap:
        order = order[occurrence(rows.column("device")[order]) < device_cap]
    if balance_types and len(order):
        types = rows.column("backbone")[order]
        # by name, since the numbers depend on who came first
        present = sorted(set(types.tolist()), key=lambda number: rows.names("backbone")[number])
        places = -(-len(order) // len(present))
        columns = [np.resize(order[types == number], places) for number in present]  # repeats from its beginning
        order = np.stack(columns, axis=1).reshape(-1)
    return order


def round_batches(rows: Rows, *, round_: int, steps: int, batch_size: int, fresh_share: float, seed: int) -> list[Rows]:
    """Return the batches of the steps that overlap with a round: permutations one after another, cut into batches.

    Parameters
    ----------
    rows : Rows
        The training rows that were committed before the round; without any there is no batch.
    round_ : int
        The round.
    steps, batch_size : int
        Number of batches, and rows of each.
    fresh_share : float
        Share of each batch that comes from the rows that the round before brought, where it brought some.
    """
    if not rows:
        return []
    everything, newest = np.arange(len(rows)), np.flatnonzero(rows.column("round") == round_ - 1)
    num_fresh = round(fresh_share * batch_size) if len(newest) else 0

    def draw(places: np.ndarray, size: int, phase: int) -> list[np.ndarray]:
        drawn = [places[:0]]
        for turn in range(-(-size * steps // max(1, len(places)))):
            drawn.append(places[draw_order(len(places), seed=seed, phase=phase, number=round_ * 1_000_003 + turn)])
        order = np.concatenate(drawn)
        return [order[k * size : (k + 1) * size] for k in range(steps)]

    pairs = zip(draw(newest, num_fresh, _FRESH), draw(everything, batch_size - num_fresh, _OVERLAP), strict=True)
    return [rows.take(np.concatenate(pair)) for pair in pairs]


def occurrence(values: np.ndarray) -> np.ndarray:
    """Return, for each place, how often its value occurred before."""
    by_value = np.argsort(values, kind="stable")
    _, starts, counts = np.unique(values[by_value], return_index=True, return_counts=True)
    before = np.empty(len(values), np.int64)
    before[by_value] = np.arange(len(values)) - np.repeat(starts, counts)
    return before
