"""Sums on the server: checked, added, solved. They are rows of the cache, one a device or one a group of devices."""

from __future__ import annotations

import hashlib
import json
import math
import secrets
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from mobillm_flower.core.placement import CPU
from mobillm_flower.core.side_networks import FitsInClosedForm
from mobillm_flower.core.side_networks.class_scores import discriminant_of_ridge
from mobillm_flower.core.side_networks.closed_form import ClosedFormSideNetwork
from mobillm_flower.core.side_networks.ridge import Sums
from mobillm_flower.core.sums import Words, add_words, lift, word_type
from mobillm_flower.core.targets import base_prediction, difference
from mobillm_flower.errors import CacheError, PacketRejected
from mobillm_flower.privacy.discrete_gaussian import discrete_gaussian
from mobillm_flower.privacy.ledger import Release
from mobillm_flower.privacy.noise import derive
from mobillm_flower.server.cache import ActivationCache
from mobillm_flower.server.fitting import Measured
from mobillm_flower.wire.sums import SumsSpec

_NOISE_KEY, _NOISED = "noise-key", "noised-totals"
_TOLERANCE = 1e-9  # of the trace, by which an eigenvalue may be below 0
OF_THE_NOISE = 0.5
"""λ over the noise's spectral norm σ·√(2D); chosen on AG News and SMS spam, see benchmarks/studies/sums.py."""


def check_sums(words: Words, sums: SumsSpec, *, most: int, devices: int = 1) -> int:
    """Check what one device's or one group's statistic can be; returns its number of samples, 0 where it is not sent.

    A masked liar can send any sum of this kind: what is checked bounds how far it moves the solution, no more.

    Parameters
    ----------
    words : ndarray
        [W], modulo 2^bits.
    sums : SumsSpec
        What was asked for.
    most : int
        Samples that they have at most.
    devices : int
        How many devices' sums these are.

    Raises
    ------
    PacketRejected
        A rule is broken; the rule is named.
    """
    scale, private = sums.scale, bool(sums.epsilon)
    counts, rows, targets, triangle, moment = (part.astype(np.float64) for part in sums.shape.split(lift(words)))
    samples = int(counts[0])
    if private and sums.unit == "device":
        if counts.any():
            raise PacketRejected("counts", "numbers of samples are not sent where a device is protected")
    elif not sums.min_samples <= samples <= most:
        raise PacketRejected("counts", f"sums of {samples} samples; from {sums.min_samples} to {most} are taken")
    largest = float(samples or most)
    if not 0 <= counts[1] <= largest or not 0 <= counts[2] <= largest * scale.levels**2:
        raise PacketRejected("counts", "more vectors are clipped, or targets are longer, than samples can be")
    if private and (rows.any() or targets.any() or counts[2]):
        raise PacketRejected("sums", "sums of vectors and targets are not sent beside noise")
    _check_norm(sums, triangle, moment, devices=devices)
    gram = sums.shape.gram(triangle)
    diagonal = gram.diagonal()
    trace = float(diagonal.sum())
    if not 0 <= float(diagonal.min()) <= float(diagonal.max()) <= largest * scale.levels**2:
        raise PacketRejected("gram", "a sum of squares is out of range")
    if trace > largest * scale.radius**2 * (1 + _TOLERANCE):
        raise PacketRejected("trace", "the trace of the sums is above the number of samples")
    if sums.one_hot and not private:
        classes = class_sums(words, sums)
        if classes is None:
            raise PacketRejected("targets", "no labels have such sums of targets, or of vectors times targets")
        own, other = _target_values(sums)
        if counts[2] != samples * (own**2 + (sums.num_outputs - 1) * other**2):
            raise PacketRejected("targets", "the sum of the targets' squares is not that of so many labels")
        gram = np.block([[np.diag(classes[0]), classes[1].T], [classes[1], gram]])
    elif not private:
        gram = np.block([[np.array([[float(samples)]]), rows[None]], [rows[:, None], gram]])
    _, failed = torch.linalg.cholesky_ex(
        torch.from_numpy(gram + np.eye(len(gram)) * (1e-3 + _TOLERANCE * trace))  # entries are whole numbers
    )
    if int(failed):
        raise PacketRejected("gram", "the matrix of sums is not positive semi-definite")
    square = counts[2] if not private else largest * scale.levels**2
    if float(np.square(targets).sum()) > largest * square * (1 + _TOLERANCE):
        raise PacketRejected("targets", "the sum of targets is longer than their squares allow")
    if bool((np.square(moment).sum(1) > diagonal * square * (1 + _TOLERANCE) + 1e-3).any()):
        raise PacketRejected("moment", "products of vectors and targets are larger than their squares allow")
    return samples


def _check_norm(sums: SumsSpec, triangle: NDArray[np.float64], moment: NDArray[np.float64], *, devices: int) -> None:
    """Refuse sums longer than those of so many devices can be that each shorten theirs to √2·`device_rows`."""
    if not sums.device_rows:
        return
    longest = math.sqrt(2) * sums.device_rows * devices * (1 + _TOLERANCE)
    scale = sums.scale
    gram = np.linalg.norm(sums.shape.gram(triangle)) / scale.radius**2
    norm = math.hypot(gram, np.linalg.norm(moment) / (scale.radius * scale.levels))
    if norm > longest:
        raise PacketRejected(
            "norm",
            f"the sums of {devices} device(s) have a norm of {norm:.4g}, with privacy.device-rows={sums.device_rows} "
            f"at most {longest:.4g}",
        )


def class_sums(words: Words, sums: SumsSpec) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Return n_k [K] and Σz of each class [D, K] of targets onehot(y) − 1/K; None where no labels have such sums.

    Rounded, a target has one value at its class and one at all others, so that both follow without a remainder.
    """
    own, other = _target_values(sums)
    counts, rows, targets, _, moment = sums.shape.split(lift(words))
    samples, left = np.divmod(targets - other * counts[0], own - other)
    of_classes, remainder = np.divmod(moment - other * rows[:, None], own - other)
    if left.any() or remainder.any() or int(samples.min()) < 0 or int(samples.sum()) != int(counts[0]):
        return None
    return samples, of_classes


def _target_values(sums: SumsSpec) -> tuple[int, int]:
    """Return what onehot(y) − 1/K becomes as whole numbers: at its class, and at all others."""
    base = base_prediction(None, 1, sums.num_outputs)
    target = difference(torch.zeros(1, dtype=torch.long), base).double().numpy()
    own, other = sums.scale.targets(target / sums.target_bound)[0, :2].astype(np.int64)
    return int(own), int(other)


def hold(
    cache: ActivationCache, words: Words, *, pseudonym: str, release: bytes, samples: int, backbone: str, round_: int
) -> int:
    """Commit checked sums of a device, or of a group under a pseudonym of its own; returns 1 if they are new."""
    row = Release(release, samples, words.tobytes(), b"")
    return cache.add(pseudonym, [row], backbone=backbone, round_=round_)


def total(cache: ActivationCache, backbone: str, sums: SumsSpec) -> Words | None:
    """Return the sum of all that is held of a backbone type; None where nothing is."""
    rows = cache.rows()
    if backbone not in rows.names("backbone"):
        return None
    chosen = rows.take(rows.column("backbone") == rows.names("backbone").index(backbone))
    kind = word_type(sums.scale.bits)
    return (
        add_words(np.frombuffer(held, kind) for held, _ in cache.read(chosen.column("id").tolist()))
        if len(chosen)
        else None
    )


def solve_sums(
    network: FitsInClosedForm, cache: ActivationCache, *, sums: Mapping[str, SumsSpec], scale: float
) -> Measured:
    """Set each type's head to the solution of its sums; the loss is the ridge regression's by cross-validation.

    The classes of one task are told apart by a linear discriminant where p_b is constant; see `discriminant_of_ridge`.

    Parameters
    ----------
    network : ClosedFormSideNetwork
        Linear, of vectors that are taken as they are.
    cache : ActivationCache
        Its rows are sums.
    sums : mapping of str to SumsSpec
        By backbone type.
    scale : float
        c of s(A) = c·(Wᵀz + b).
    """
    assert isinstance(network, ClosedFormSideNetwork)
    losses, samples, parts = 0.0, 0, 0
    for name, spec in sums.items():
        words = total(cache, name, spec)
        if words is None:
            continue
        if spec.epsilon:
            weight, bias, loss, count = _noised(words, spec, cache, name)
        else:
            weight, bias, loss, count = solve_exact(words, spec, discriminant=not network.tasks)
        of_tasks = network.sums_of(name, CPU) if network.tasks else None
        if of_tasks is not None:
            of_tasks.add_sums(_exact(words, spec))
        network.set_solution(name, weight, bias, scale, of_tasks)
        parts += 1
        if loss is not None:
            losses, samples = losses + loss * count, samples + count
    return Measured(parts, losses / samples if samples else None, None)


def solve_exact(
    words: Words, spec: SumsSpec, *, discriminant: bool = True
) -> tuple[torch.Tensor, torch.Tensor, float | None, int]:
    """Solve with λ by generalized cross-validation of the ridge regression: W [D, K], b [K], its loss, n.

    With `discriminant`, W and b are those of a linear discriminant where targets are onehot(y) − 1/K.
    """
    sums = _exact(words, spec)
    solved = sums.choose()
    weight, bias = solved.weight, solved.bias
    if discriminant and spec.one_hot and (classes := class_sums(words, spec)) is not None:
        counts = torch.from_numpy(classes[0])
        scores = discriminant_of_ridge(
            solved.explained,
            weight.T @ weight,
            counts,
            counts,
            penalty=solved.penalty,
            freedom=solved.freedom(),
        )
        level = sums.targets / sums.weight
        weight, bias = weight @ scores.turn, (bias - level) @ scores.turn + scores.bias
        weight, bias = scores.factor * weight, scores.factor * bias
    return weight, bias, solved.error / sums.count, sums.count


def _exact(words: Words, spec: SumsSpec) -> Sums:
    row, target = spec.row_unit, spec.target_unit
    counts, rows, targets, triangle, moment = (part.astype(np.float64) for part in spec.shape.split(lift(words)))
    sums = Sums(spec.width, spec.num_outputs, CPU)
    sums.count, sums.weight = int(counts[0]), torch.tensor(counts[0])
    sums.square = torch.tensor(counts[2] / target**2)
    sums.rows, sums.targets = torch.from_numpy(rows / row), torch.from_numpy(targets / target)
    sums.gram = torch.from_numpy(spec.shape.gram(triangle) / row**2)
    sums.moment = torch.from_numpy(moment / (row * target))
    return sums


def _noised(
    words: Words, spec: SumsSpec, cache: ActivationCache, backbone: str
) -> tuple[torch.Tensor, torch.Tensor, float | None, int]:
    """Add noise and solve; the same sums have the same noise, of a key of the run: another look is no other draw."""
    key = cache.read_meta(_NOISE_KEY, bytes.fromhex, default=b"")
    if not key:
        key = secrets.token_bytes(32)
        cache.set_meta(_NOISE_KEY, key.hex())
    of_these = hashlib.sha256(words.tobytes()).hexdigest()
    known = _noised_totals(cache)
    if of_these not in known.setdefault(backbone, []):
        known[backbone].append(of_these)
        cache.set_meta(_NOISED, json.dumps(known))
    drawn = discrete_gaussian(noise_variances(spec), key=derive(key, of_these))
    weight, bias = solve_noised(lift(words) + drawn, spec)
    return weight, bias, None, 0


def num_noised_totals(cache: ActivationCache) -> int:
    """Return how many totals of a backbone type were noised and solved, at most; the ε of all of them add up."""
    return max(map(len, _noised_totals(cache).values()), default=0)


def _noised_totals(cache: ActivationCache) -> dict[str, list[str]]:
    return cache.read_meta(_NOISED, lambda text: dict(json.loads(text)), default={})


def solve_noised(
    values: NDArray[np.int64], spec: SumsSpec, *, of_the_noise: float = OF_THE_NOISE
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut negative eigenvalues of noised sums and solve with λ from the noise alone (AdaSSP, Wang 2018, 1803.02596).

    Parameters
    ----------
    values : ndarray
        [W], the noise in it.
    spec : SumsSpec
        What they are.
    of_the_noise : float
        λ over the spectral norm of the Gram matrix's noise.

    Returns
    -------
    tuple
        W [D, K] and b [K] for z without the constant.
    """
    _, _, _, triangle, moment = spec.shape.split(values.astype(np.float64))
    row, target = spec.row_unit, spec.target_unit
    gram = torch.from_numpy(spec.shape.gram(triangle) / row**2)
    eigenvalues, vectors = torch.linalg.eigh(gram)
    penalty = of_the_noise * gram_noise(spec)
    inverse = vectors / (eigenvalues.clamp_min(0) + penalty) @ vectors.T
    whole = inverse @ torch.from_numpy(moment / (row * target))
    return whole[:-1] * math.sqrt(1 - spec.intercept**2), whole[-1] * spec.intercept


def noise_variances(spec: SumsSpec) -> NDArray[np.float64]:
    """Return the variance of each word's noise, [W]; 0 where a word is not sent or is public.

    The sensitivity is that of (Σzzᵀ, Σztᵀ) in the Frobenius norm, which counts what stands off the diagonal twice; so
    half the variance there is enough.
    """
    variances = np.zeros(spec.shape.num_words)
    _, _, _, triangle, moment = spec.shape.split(variances)
    of_gram = (spec.sigma * spec.scale.radius**2) ** 2
    triangle[:] = of_gram / 2
    places = np.cumsum([0, *range(spec.width, 1, -1)])
    triangle[places] = of_gram
    moment[:] = (spec.sigma * spec.scale.radius * spec.scale.levels) ** 2
    return variances


def gram_noise(spec: SumsSpec) -> float:
    """Return the spectral norm of the noise on Σzzᵀ, about σ·√(2D), in units of z²."""
    return spec.sigma * math.sqrt(2 * spec.width) * (spec.scale.radius / spec.scale.row_unit(spec.width)) ** 2


def require_room(cache: ActivationCache, sums: Mapping[str, SumsSpec], samples: int) -> None:
    """Refuse samples beyond what a sum has room for; raises CacheError."""
    held = int(cache.rows().column("tokens").sum())
    most = min(spec.capacity for spec in sums.values())
    if held + samples > most:
        raise CacheError(f"{held} samples are held, and the run's sums have room for {most}; start another run")
