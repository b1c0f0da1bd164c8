"""The audit of sums: what those of 1, 2, 10, 100 and all samples tell of one, and the noise's ε by its draws."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobillm_flower import __version__
from mobillm_flower.audit.attacks.sums import SumsAttack, check_sums_noise
from mobillm_flower.audit.draw import Size
from mobillm_flower.audit.finding import Measured, combine
from mobillm_flower.audit.uploads import joined, spec_of
from mobillm_flower.backbones import Backbone
from mobillm_flower.clients.summing import read_rows, sample_statistic, with_intercept
from mobillm_flower.config import Settings
from mobillm_flower.errors import UnsupportedError
from mobillm_flower.privacy.discrete_gaussian import discrete_gaussian
from mobillm_flower.server.sums import noise_variances
from mobillm_flower.tasks import LocalData
from mobillm_flower.tasks.extraction import fitted_transform
from mobillm_flower.tasks.sums import room_for, sums_spec
from mobillm_flower.wire.sums import SumsSpec

SUMS = "sums"
"""`kind` of such a result."""
_COUNTS = (1, 2, 10, 100)
_CANDIDATES = 100
_LEAST = 40
_MORE = 4  # times as many samples as of which single uploads would be attacked
Say = Callable[[str], None]


def audit_sums(
    settings: Settings, devices: Sequence[LocalData], backbone: Backbone, size: Size, *, run: bool, say: Say
) -> dict[str, Any]:
    """Attack sums of few and of many samples of all devices, and return the result; no text or label is in it.

    The attacker has everything that is public, and knows texts that it suspects. Half of the samples are in the sums;
    the others show what it reaches without: its baseline is the better of the most frequent label and of the same
    attack on a sum of as many other samples.

    Raises
    ------
    UnsupportedError
        There are too few samples.
    """
    started, contract = time.perf_counter(), devices[0].contract
    samples = joined([device.train for device in devices])
    if len(samples) < _LEAST:
        raise UnsupportedError(f"{len(samples)} training samples are too few to attack; give at least {_LEAST}")
    spec = spec_of(settings, backbone, contract)
    sums = sums_spec(settings, contract, spec, capacity=room_for(len(samples)))
    public = settings.activations.public_text
    transform = fitted_transform(spec, backbone, max_length=contract.max_length, file=public)
    most = min(len(samples), _MORE * size.uploads)
    places = np.sort(np.random.default_rng(0).permutation(len(samples))[:most])
    samples = samples.take(places.tolist())
    rows, targets = read_rows(backbone, samples, contract, spec, transform)
    counts = [count for count in _COUNTS if count < most // 2] + [most // 2]
    kinds = [(count, False) for count in counts] + ([(most // 2, True)] if sums.epsilon else [])
    measured = {kind: list[dict[str, Measured]]() for kind in kinds}
    for seed in range(size.seeds):
        order = np.random.default_rng(seed).permutation(most)
        halves = order[: most // 2], order[most // 2 :]
        for count, noised in kinds:
            of_count = _attack(rows, targets, samples.labels.numpy(), halves, count, sums, noised=noised)
            measured[count, noised].append(of_count)
        say(f"sums of {', '.join(str(count) for count in counts)} samples, seed {seed}")
    cells = [
        {
            "samples": count,
            "noised": noised,
            "refused": count < sums.min_samples,
            "attacks": {name: combine([one[name] for one in of_seeds]).to_dict() for name in of_seeds[0]},
        }
        for (count, noised), of_seeds in measured.items()
    ]
    checks = []
    if sums.epsilon:
        say(f"empirical ε of the noise, {size.draws:,} draws each")
        checks.append(check_sums_noise(sums, draws=size.draws).to_dict())
    result: dict[str, Any] = {
        "format": 1,
        "kind": SUMS,
        "version": __version__,
        "subject": "run" if run else "settings",
        "devices": len(devices),
        "width": sums.width,
        "min_samples": sums.min_samples,
        "secure_sums": settings.privacy.secure_sums,
        "epsilon": sums.epsilon,
        "delta": sums.delta,
        "sums": cells,
        "epsilon_checks": checks,
        "remarks": [],
    }
    result["plain_words"] = [list(pair) for pair in _plain_words(result)]
    result["seconds"] = round(time.perf_counter() - started, 1)
    return result


def _attack(
    rows: NDArray[np.float64],
    targets: NDArray[np.float64],
    labels: NDArray[np.int64],
    halves: tuple[NDArray[np.int64], NDArray[np.int64]],
    count: int,
    sums: SumsSpec,
    *,
    noised: bool,
) -> dict[str, Measured]:
    """Attack the sum of the first samples of one half, with or without the noise of its ε."""
    inside, outside = halves[0][:count], halves[1]
    known = with_intercept(rows, sums)

    def attack(places: NDArray[np.int64]) -> SumsAttack:
        values = sample_statistic(rows[places], targets[places], sums)
        if noised:
            values = values + discrete_gaussian(noise_variances(sums))
        return SumsAttack(values, sums, noised=noised)

    ours, others = attack(inside), attack(outside[:count])
    told, without = (one.labels(known[inside], labels[inside]) for one in (ours, others))
    return {
        "labels of known texts": dataclasses.replace(told, baseline=max(told.baseline, without.value)),
        "which of 100 suspected texts is in it": ours.lookup(known[inside], known[outside[: _CANDIDATES - 1]]),
        "whether a text is in it": ours.membership(known[inside], known[outside]),
    }


def _plain_words(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Return what holds, and what does not, in plain words."""
    yield (
        "Who attacks",
        "A server that follows the protocol, and whoever gets its files: it has the backbone, the map to z and the "
        "rounding, and texts that it suspects. Of a secure sum it has the group's alone.",
    )
    read, safe = list[str](), list[str]()
    for cell in (cell for cell in result["sums"] if not cell["noised"]):
        (read if _above(cell["attacks"]["labels of known texts"]) else safe).append(f"{cell['samples']:,}")
    what = f"Sums of {', '.join(read)} samples give labels of texts that are known to be in them away. " if read else ""
    rest = f"Sums of {', '.join(safe)} samples tell no more of a label than a sum of others. " if safe else ""
    yield (
        "What sums tell",
        f"{what}{rest}The sum of one sample is the sample. With fewer samples than values ({result['width']}) a sum "
        "tells each of them apart; with many more it tells what the side network tells.",
    )
    least = result["min_samples"]
    yield (
        "What holds it back",
        f"A device sends no sums of fewer than privacy.min-samples={least} samples. With privacy.secure-sums the "
        "server gets sums of groups alone, so that what counts is the group's number of samples.",
    )
    if result["epsilon"]:
        (check,) = result["epsilon_checks"]
        noised = result["sums"][-1]
        labels = "still give away" if _above(noised["attacks"]["labels of known texts"]) else "no longer tell"
        verdict = "which leaves the claim standing" if check["holds"] else "ABOVE the claim: this is a bug"
        yield (
            "The guarantee",
            f"Of the side network ε = {result['epsilon']:g} at δ = {result['delta']:g}. The noise's draws show an ε of "
            f"at least {check['lower']:.2f}, {verdict}. With the noise, sums of {noised['samples']:,} samples {labels} "
            "more of a label than a sum of others. The server has the sums without it.",
        )
    else:
        yield (
            "The guarantee",
            "None: there is no noise. privacy.central-epsilon protects whoever's sample is in the total.",
        )


def _above(finding: dict[str, Any]) -> bool:
    return bool(finding["low"] > finding["baseline"])
