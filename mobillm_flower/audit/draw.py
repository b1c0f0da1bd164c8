"""Which samples an audit attacks, and which texts its attacker has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mobillm_flower.audit.uploads import joined
from mobillm_flower.config import Settings
from mobillm_flower.core.side_networks import needs_of
from mobillm_flower.errors import UnsupportedError
from mobillm_flower.tasks import LocalData, Samples, load_local_data
from mobillm_flower.wire.contract import TaskContract

_LEAST = 40  # uploads below which no attack says anything
_ENOUGH_PUBLIC = 300  # training texts that are not attacked; where there are fewer, held-out ones are added
_ATTACKED_SHARE = 2 / 3  # of the training texts, at most; the rest are the attacker's


@dataclass(frozen=True)
class Size:
    """How much an audit looks at.

    Parameters
    ----------
    seeds : int
        Draws of samples.
    uploads, victims, public, sentences, test : int
        Most uploads a cell; of them, most whose text is recovered; most texts of the attacker; most public sentences
        that the sequence decoder learns from beside them; most held-out samples.
    draws : int
        Draws of each check of a mechanism's ε.
    """

    seeds: int
    uploads: int
    victims: int
    public: int
    sentences: int
    test: int
    draws: int


FULL = Size(seeds=3, uploads=1000, victims=250, public=1200, sentences=1000, test=800, draws=1_000_000)
QUICK = Size(seeds=2, uploads=400, victims=100, public=400, sentences=100, test=200, draws=100_000)


@dataclass(frozen=True)
class Draw:
    """One seed's samples.

    Parameters
    ----------
    fleet : dict of int to LocalData
        Device number to the samples whose uploads are attacked; devices without any are left out.
    places : dict of int to ndarray
        Which of the device's own samples they are.
    public : Samples
        Texts that the attacker has: other texts of the same kind. None of them is a victim's.
    test : Samples
        Held out: for the task's metric and as non-members.
    """

    fleet: dict[int, LocalData]
    places: dict[int, NDArray[np.int64]]
    public: Samples
    test: Samples

    @property
    def contract(self) -> TaskContract:
        """The task."""
        return next(iter(self.fleet.values())).contract

    @property
    def attacked(self) -> Samples:
        """The samples of all devices whose uploads are attacked."""
        return joined([data.train for data in self.fleet.values()])


def load_devices(settings: Settings, number: int = 0) -> list[LocalData]:
    """Return what each device holds.

    Parameters
    ----------
    settings : Settings
        Of the data.
    number : int
        How many devices; 0: `data.num-devices`.

    Raises
    ------
    UnsupportedError
        The task is a regression, or language modelling, or the side network is the backbone's upper layers.
    DataError
        The data is not on this machine.
    """
    name = settings.side_network.name
    if needs_of(name).upper_layers:
        raise UnsupportedError(
            f"mobillm audit trains side networks that read a few vectors; side-network.name={name} reads every "
            "token; what it uploads is what side-network.name=additive uploads with activations.pivot=all, "
            "activations.num-blocks=1 and backbone.layers=N, the layer that it goes on from: audit these settings"
        )
    number = number or settings.data.num_devices
    devices = [load_local_data(settings, i, number) for i in range(number)]
    if not devices[0].contract.labels:
        raise UnsupportedError(
            f"mobillm audit attacks classes; task.kind={settings.task.kind} has none: a regression sends the number "
            "itself or how far off the base is, language modelling the tokens themselves or a correction towards them"
        )
    return devices


def draw(devices: Sequence[LocalData], size: Size, *, seed: int) -> Draw:
    """Draw the attacked samples from all devices alike.

    Parameters
    ----------
    devices : sequence of LocalData
        From `load_devices`.
    size : Size
        How many.
    seed : int
        Of the draw.

    Raises
    ------
    UnsupportedError
        There are too few samples.
    """
    generator, fixed = np.random.default_rng(seed), np.random.default_rng(0)
    total = sum(len(device.train) for device in devices)
    share = min(size.uploads / max(1, total), _ATTACKED_SHARE)
    pool = min(1.0, (size.uploads + size.public) / max(1, total))  # the same for each seed: fewer forward passes
    if round(share * total) < _LEAST:
        least = round(_LEAST / _ATTACKED_SHARE)
        raise UnsupportedError(f"{total} training samples are too few to attack; give at least {least}")
    fleet: dict[int, LocalData] = {}
    places: dict[int, NDArray[np.int64]] = {}
    rest: list[Samples] = []
    for number, device in enumerate(devices):
        within = fixed.permutation(len(device.train))[: round(pool * len(device.train))]
        order = generator.permutation(within)
        count = round(share * len(device.train))
        if count:
            places[number] = np.sort(order[:count])
            fleet[number] = LocalData(device.contract, device.train.take(places[number].tolist()), device.test)
        rest.append(device.train.take(order[count:].tolist()))
    others, held_out = joined(rest), joined([device.test for device in devices])
    shuffled = fixed.permutation(len(held_out))
    lacking = max(0, min(size.public, _ENOUGH_PUBLIC) - len(others))
    split = min(len(held_out) // 2, lacking)
    known = [others.take(generator.permutation(len(others)).tolist()), held_out.take(shuffled[:split].tolist())]
    attacked = {text for data in fleet.values() for text in data.train.texts}
    public = joined(known)
    free = [i for i, text in enumerate(public.texts) if text not in attacked]
    return Draw(
        fleet=fleet,
        places=places,
        public=public.take(free[: size.public]),
        test=held_out.take(shuffled[split:][: size.test].tolist()),
    )
