"""A device's sums: its samples run forward a few at a time, and nothing of one is kept but what it adds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mobillm_flower.backbones import Backbone
from mobillm_flower.backbones.memory import peak_memory_bytes
from mobillm_flower.clients.device import Device
from mobillm_flower.clients.releases import MAX_SAMPLES_AT_ONCE
from mobillm_flower.core.sums import statistic, word_type, wrap
from mobillm_flower.errors import ReleaseRefused
from mobillm_flower.privacy.accounting import Guarantee
from mobillm_flower.privacy.ledger import Release, SampleKeys
from mobillm_flower.tasks import Samples, read_activations
from mobillm_flower.tasks.activations import read_base
from mobillm_flower.tasks.sums import require_task, sums_guarantee, sums_spec
from mobillm_flower.wire.contract import ExtractionSpec, TaskContract
from mobillm_flower.wire.sums import SumsReply, SumsSpec
from mobillm_flower.wire.target_bytes import exact_targets


def make_sums(device: Device, spec: ExtractionSpec, sums: SumsSpec, *, held: frozenset[bytes]) -> SumsReply:
    """Add up a device's samples, once: the ledger counts each, and the same words are sent when they are asked again.

    Left out are the held-out share and samples whose budget is spent.

    Raises
    ------
    MismatchError
        The request adds up otherwise than the device's own settings do.
    ReleaseRefused
        The sums are of fewer samples than `privacy.min-samples`, or were released before; or the device promises
        something, and sums of a part of the samples were.
    """
    contract = device.data.contract
    require_task(contract)
    mine = sums_spec(device.settings, contract, spec, capacity=sums.capacity)
    mine.require_same(sums, mine="on this device", theirs="at the server")
    ledger = device.folder.ledger
    ledger.acknowledge(held)
    shaping = device.shaping(spec) + sums.to_json()
    left_out = set(held_out_samples(device, sums.held_out))
    kept = [i for i in range(len(device.sample_ids)) if i not in left_out]
    promised = _counted(device, sums)
    release = device.folder.release_id(b"".join(sorted(device.sample_ids[i] for i in kept)), shaping)
    kind = word_type(sums.scale.bits)
    waiting = ledger.outbox([release])
    if release not in waiting:
        seconds, values, used = _sum(device, spec, sums, kept, release)
        texts = tuple(dict.fromkeys(text for i in used for text in device.sample_keys[i].texts))
        item = Release(release, len(used), wrap(values, sums.scale.bits).tobytes(), b"")
        charged = SampleKeys(release, texts)
        ledger.record([(charged, item)], promised, whole=device.promises)
        waiting = ledger.outbox([release])
    else:
        seconds = 0.0
    words = np.frombuffer(waiting[release].activations, kind)
    return SumsReply(words, device.folder.pseudonym, release, seconds, peak_memory_bytes())


def held_out_samples(device: Device, share: float) -> list[int]:
    """Return the samples that are not added up: the device's keyed hash of each says which."""
    bound = math.floor(share * 2**32)
    return [i for i, sample in enumerate(device.sample_ids) if int.from_bytes(sample[:4], "big") < bound]


def _counted(device: Device, sums: SumsSpec) -> Guarantee:
    """Return what the ledger counts of a release: sums leave the device without noise, which the server adds."""
    return sums_guarantee(sums if device.trusts_server else replace(sums, epsilon=0.0))


def _sum(
    device: Device, spec: ExtractionSpec, sums: SumsSpec, kept: Sequence[int], release: bytes
) -> tuple[float, NDArray[np.int64], list[int]]:
    """Return seconds of the forward pass, the statistic [W], and the samples in it."""
    ids = ((device.sample_keys[i], release + i.to_bytes(8, "big")) for i in kept)
    may = device.folder.ledger.allowed(ids, _counted(device, sums))
    used = [i for i, allowed in zip(kept, may, strict=True) if allowed]
    if len(used) < sums.min_samples:
        raise ReleaseRefused(
            f"sums of fewer than privacy.min-samples={sums.min_samples} samples are not sent, since they tell of each "
            "one; this device has fewer that may be released"
        )
    if len(used) > sums.capacity:
        raise ReleaseRefused(f"the run's sums have room for {sums.capacity} samples, this device has more")
    contract, seconds = device.data.contract, 0.0
    transform = device.transform(spec)
    values = np.zeros(sums.shape.num_words, np.int64)
    order = sorted(used, key=lambda i: (len(device.data.train.texts[i]), i))
    for start in range(0, len(order), MAX_SAMPLES_AT_ONCE):
        part = device.data.train.take(order[start : start + MAX_SAMPLES_AT_ONCE])
        started = time.perf_counter()
        rows, targets = read_rows(device.backbone, part, contract, spec, transform)
        seconds += time.perf_counter() - started
        values += sample_statistic(rows, targets, sums)
    return seconds, shortened(values, sums), used


def read_rows(
    backbone: Backbone,
    samples: Samples,
    contract: TaskContract,
    spec: ExtractionSpec,
    transform: Callable[[Tensor], Tensor] | None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what is added up of samples: z [B, D] and targets [B, K], float64."""
    extraction = read_activations(backbone, samples, contract, spec, transform)
    base = read_base(extraction, spec, contract)
    rows = torch.stack([sample.flatten() for sample in extraction.activations])
    return rows.double().numpy(), exact_targets(samples.labels, base, contract).double().numpy()


def sample_statistic(rows: NDArray[np.float64], targets: NDArray[np.float64], sums: SumsSpec) -> NDArray[np.int64]:
    """Return the statistic [W] of samples: z [B, D] without the constant, and targets [B, K]."""
    values = statistic(with_intercept(rows, sums), targets / sums.target_bound, sums.scale)
    if sums.epsilon:
        counts, of_rows, of_targets, _, _ = sums.shape.split(values)
        of_rows[:], of_targets[:] = 0, 0
        counts[1:] = 0
        if sums.unit == "device":
            counts[:] = 0
    return values


def with_intercept(rows: NDArray[np.float64], sums: SumsSpec) -> NDArray[np.float64]:
    """Return z [B, D] with the constant that takes the place of Σz and Σt where there is noise."""
    if not sums.intercept:
        return rows
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1.0)
    constant = np.full((len(rows), 1), sums.intercept)
    return np.concatenate([rows * math.sqrt(1 - sums.intercept**2), constant], 1)


def shortened(values: NDArray[np.int64], sums: SumsSpec) -> NDArray[np.int64]:
    """Return the statistic with a norm of at most √2·`device_rows` samples', where a device is what is protected."""
    if not sums.device_rows:
        return values
    _, _, _, triangle, moment = sums.shape.split(values)
    gram = sums.shape.gram(triangle.astype(np.float64)) / sums.scale.radius**2
    length = math.hypot(np.linalg.norm(gram), np.linalg.norm(moment / (sums.scale.radius * sums.scale.levels)))
    factor = min(1.0, math.sqrt(2) * sums.device_rows * (1 - 1e-12) / max(length, 1e-300))
    return values if factor == 1.0 else np.trunc(values * factor).astype(np.int64)
