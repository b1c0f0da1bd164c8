"""Who masks with whom in a group: few neighbours each, and how many of them it takes to open a secret."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from math import comb

COLLUDING, DROPPED = 0.15, 0.20
"""Shares of a large group that may work with the server, and that may stop answering."""
_SECURE, _DONE = 2.0**-40, 2.0**-20  # most probability that a secret can be opened too early; that a sum fails
_ALL_UP_TO = 32  # devices in a group in which each masks with all others


@lru_cache(maxsize=64)
def num_neighbours(num_devices: int) -> int:
    """Return k, the number of neighbours of each device: O(log n) in large groups, all others in small ones.

    The least even k for which three things hold with 15 % of the devices colluding and 20 % dropped, by the exact
    hypergeometric distribution (Bell et al. 2020, ePrint 2020/704, section 3): no device has `threshold` colluding
    neighbours, but with probability 2⁻⁴⁰; each keeps `threshold` answering ones, but with 2⁻²⁰; the honest ones that
    answer stay connected, but with 2⁻⁴⁰.
    """
    others = num_devices - 1
    if num_devices <= _ALL_UP_TO:
        return others
    colluding, dropped = round(COLLUDING * others), round(DROPPED * others)
    for k in range(2, others, 2):
        t = threshold(k)
        apart = num_devices**2 * (COLLUDING + DROPPED) ** k / 2  # two gaps of k/2 in the ring
        if (
            apart <= _SECURE
            and num_devices * _at_least(t, others, colluding, k) <= _SECURE
            and num_devices * _at_least(k - t + 1, others, dropped, k) <= _DONE
        ):
            return k
    return others


def threshold(neighbours: int) -> int:
    """Return t, how many of a device and its neighbours open one of its secrets: the majority."""
    return (neighbours + 1) // 2 + 1


def quorum(num_devices: int) -> int:
    """Return how many of a group must sign for one set of survivors: more than two thirds.

    Two sets that so many sign have a third of the group in common. Unless all of these collude, somebody signed both.
    """
    return 2 * num_devices // 3 + 1


def neighbours(num_devices: int, digest: bytes) -> list[tuple[int, ...]]:
    """Return each device's neighbours, by number: a ring in random order, k/2 next to it on each side (a Harary graph).

    Parameters
    ----------
    num_devices : int
        Devices of the group.
    digest : bytes
        Of the roster, which holds the server's nonce and every device's fresh keys: nobody knows the order before.

    Returns
    -------
    list of tuple of int
        Ascending; symmetric.
    """
    k = num_neighbours(num_devices)
    if k >= num_devices - 1:
        return [tuple(j for j in range(num_devices) if j != i) for i in range(num_devices)]
    places = sorted(range(num_devices), key=lambda i: hashlib.sha256(b"place" + digest + i.to_bytes(4, "big")).digest())
    of = [()] * num_devices  # type: list[tuple[int, ...]]
    for place, device in enumerate(places):
        near = (places[(place + step) % num_devices] for step in range(-(k // 2), k // 2 + 1) if step)
        of[device] = tuple(sorted(near))
    return of


def too_small_classes(sets: Sequence[frozenset[str]], least: int) -> int:
    """Return the size of the smallest class of devices that were in the same of several sums, if below `least`, or 0.

    Whatever is added to or subtracted from one another, a combination of the sums holds a class whole or not at all:
    with no class below `least`, no combination is about fewer devices.
    """
    members: dict[tuple[bool, ...], int] = {}
    for device in frozenset().union(*sets):
        pattern = tuple(device in one for one in sets)
        members[pattern] = members.get(pattern, 0) + 1
    smallest = min(members.values(), default=least)
    return smallest if smallest < least else 0


def _at_least(successes: int, population: int, marked: int, draws: int) -> float:
    """Return P(X ≥ successes) of the hypergeometric distribution."""
    ways = sum(comb(marked, x) * comb(population - marked, draws - x) for x in range(successes, min(marked, draws) + 1))
    return ways / comb(population, draws)
