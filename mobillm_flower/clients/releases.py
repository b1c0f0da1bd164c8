"""Windows of releases: samples run forward, protected, encoded, and what of them is sent next."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from mobillm_flower.backbones.memory import peak_memory_bytes
from mobillm_flower.clients.device import Device
from mobillm_flower.core.codecs import CODECS
from mobillm_flower.core.language import correction
from mobillm_flower.core.pivots import PIVOTS
from mobillm_flower.core.sparse import encode_sample
from mobillm_flower.errors import DataError
from mobillm_flower.privacy.ledger import Release
from mobillm_flower.tasks import Samples, read_activations, read_tokens
from mobillm_flower.tasks.activations import read_base
from mobillm_flower.tasks.extraction import release_guarantee
from mobillm_flower.wire.contract import ExtractionSpec
from mobillm_flower.wire.target_bytes import encode_corrections, encode_targets, encode_token_labels
from mobillm_flower.wire.window import Window

MAX_SAMPLES_AT_ONCE = 64
"""Most samples that a device runs forward at one time, while as many before them are encoded."""


def samples_at_once(spec: ExtractionSpec, *, token_budget: int, max_length: int) -> int:
    """Return samples whose activations are in memory at one time: with every token kept, those of a forward batch."""
    if not PIVOTS[spec.pivot].per_token:
        return MAX_SAMPLES_AT_ONCE
    return min(MAX_SAMPLES_AT_ONCE, max(1, token_budget // max_length))


def make_window(device: Device, spec: ExtractionSpec, *, held: frozenset[bytes], size: int, max_bytes: int) -> Window:
    """Make the next window: what the server does not hold, at most `size` samples and `max_bytes` of payload.

    Bytes that wait in the outbox are sent again as they are. New ones are written to the ledger first.
    """
    ledger, shaping = device.folder.ledger, device.shaping(spec)
    release_ids = [device.folder.release_id(sample, shaping) for sample in device.sample_ids]
    ledger.acknowledge(held)
    gone = ledger.held() - held
    missing = [i for i, release in enumerate(release_ids) if release not in held]
    open_ = [i for i in missing if release_ids[i] not in gone]
    refused = len(missing) - len(open_)
    waiting = ledger.outbox([release_ids[i] for i in open_])
    chosen: list[int] = []
    fresh: list[int] = []
    new = [i for i in open_ if release_ids[i] not in waiting]
    promised = release_guarantee(spec, device.data.contract, delta=device.settings.privacy.delta)
    may = ledger.allowed(((device.sample_keys[i], release_ids[i]) for i in new), promised)
    with contextlib.closing(may):
        for i in open_:
            if len(chosen) == size:
                break
            if release_ids[i] not in waiting:
                if not next(may):
                    refused += 1
                    continue
                fresh.append(i)
            chosen.append(i)
    made, seconds = make_releases(device, spec, fresh, release_ids)
    if made:
        ledger.record([(device.sample_keys[i], release) for i, release in made], promised)
    waiting |= ledger.outbox([release_ids[i] for i in fresh])
    samples: list[Release] = []
    used = 0
    for i in chosen:
        item = waiting[release_ids[i]]
        used += item.num_bytes
        if samples and used > max_bytes:
            break  # stays in the outbox for the next window
        samples.append(item)
    return Window(
        pseudonym=device.folder.pseudonym,
        data_fingerprint=device.data_fingerprint,
        samples=samples,
        total=len(release_ids),
        remaining=len(missing) - refused - len(samples),
        refused=refused,
        forward_seconds=seconds,
        peak_memory_bytes=peak_memory_bytes(),
    )


def make_releases(
    device: Device, spec: ExtractionSpec, indices: Sequence[int], release_ids: Sequence[bytes]
) -> tuple[list[tuple[int, Release]], float]:
    """Run samples forward, protect and encode them.

    A few samples of similar length at a time, and those before them are encoded meanwhile in another thread: no more
    activations than theirs are in memory. Where every token's are kept, one after the other.

    Parameters
    ----------
    device : Device
        Whose samples.
    spec : ExtractionSpec
        What is sampled of the backbone.
    indices : sequence of int
        Which of the samples.
    release_ids : sequence of bytes
        Of all samples.

    Returns
    -------
    tuple
        Numbers of samples with their releases, and the forward pass's seconds.
    """
    train, contract = device.data.train, device.data.contract
    seconds, pairs = 0.0, train.pairs or [""] * len(train)
    order = sorted(indices, key=lambda i: (len(train.texts[i]) + len(pairs[i]), i))
    releases: list[tuple[int, Release]] = []
    encoding: Future[list[tuple[int, Release]]] | None = None
    budget = device.settings.backbone.token_budget
    size = samples_at_once(spec, token_budget=budget, max_length=contract.max_length)
    with ThreadPoolExecutor(1) as worker:
        for start in range(0, len(order), size):
            part = order[start : start + size]
            if contract.per_token:
                activations, targets, spent = _tokens(device, spec, train.take(part))
            else:
                noise_keys = [device.folder.noise_key(release_ids[i]) for i in part]
                activations, targets, spent = _labelled(device, spec, train.take(part), noise_keys)
            seconds += spent
            if encoding is not None:
                releases += encoding.result()
            encoding = worker.submit(_encoded, spec, part, release_ids, activations, targets)
            if PIVOTS[spec.pivot].per_token:  # so many activations are in memory once
                encoding.result()
        if encoding is not None:
            releases += encoding.result()
    return releases, seconds


def _encoded(
    spec: ExtractionSpec,
    part: Sequence[int],
    release_ids: Sequence[bytes],
    activations: Sequence[Tensor],
    targets: Sequence[bytes],
) -> list[tuple[int, Release]]:
    """Return each sample's number and release."""
    releases = []
    for i, sample, target in zip(part, activations, targets, strict=True):
        try:
            blob = encode_sample(sample, CODECS[spec.codec], spec.keep)
        except ValueError as error:
            raise DataError(f"sample {i} cannot be encoded as {spec.codec}: {error}") from error
        releases.append((i, Release(release_ids[i], len(sample), blob, target)))
    return releases


def _tokens(device: Device, spec: ExtractionSpec, samples: Samples) -> tuple[list[Tensor], list[bytes], float]:
    """Return activations and encoded targets of language modelling, and the seconds that they took."""
    head = device.backbone.head
    assert head is not None
    started = time.perf_counter()
    activations, labels = read_tokens(device.backbone, samples, device.data.contract, spec)
    if spec.objective == "label":
        return activations, encode_token_labels(labels), time.perf_counter() - started
    corrections = []
    for sample, tokens in zip(activations, labels, strict=True):
        with torch.no_grad():
            inputs = head.inputs(sample[:, -1, 0])
        step, weight = correction(inputs, tokens.to(head.device), head)
        corrections.append((step.cpu(), weight.cpu()))
    return activations, encode_corrections(corrections, spec), time.perf_counter() - started


def _labelled(
    device: Device, spec: ExtractionSpec, samples: Samples, noise_keys: Sequence[bytes]
) -> tuple[list[Tensor], list[bytes], float]:
    """Return protected activations and encoded targets of labels or numbers, and the forward pass's seconds."""
    contract, mixing, transform = device.data.contract, device.mixing, device.transform(spec)
    started = time.perf_counter()
    extraction = read_activations(device.backbone, samples, contract, spec, transform)
    seconds = time.perf_counter() - started
    mixed = extraction.activations
    mixed = [mixing.activations(sample) for sample in mixed] if mixing else mixed
    protected, labels = spec.protection(contract)(mixed, samples.labels, noise_keys)
    base = read_base(extraction, spec, contract)
    return protected, encode_targets(labels, base, spec, contract, mixing=mixing), seconds
