"""What a server holds under given settings, made by the real device code, beside the truth that the auditor knows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mobillm_flower.backbones import Backbone
from mobillm_flower.backbones.backbone import Extraction
from mobillm_flower.clients.device import Device
from mobillm_flower.clients.releases import make_window
from mobillm_flower.config import Settings
from mobillm_flower.core.perturb import clip_joint
from mobillm_flower.privacy.device_folder import DeviceFolder
from mobillm_flower.privacy.ledger import Limits
from mobillm_flower.runs.folder import RunFolder
from mobillm_flower.server import ActivationCache
from mobillm_flower.server.batches import BatchLoader
from mobillm_flower.tasks import LocalData, Samples, read_activations
from mobillm_flower.tasks.extraction import extraction_spec, fitted_transform
from mobillm_flower.wire.contract import ExtractionSpec, TaskContract
from mobillm_flower.wire.target_bytes import TargetBatch
from mobillm_flower.wire.window import open_window, pack_window

_MOST_BYTES = 1 << 34


class RememberingBackbone(Backbone):
    """A backbone that runs each text forward once: the frozen forward pass is the same whatever protects its result.

    Parameters
    ----------
    backbone : Backbone
        What computes.
    """

    def __init__(self, backbone: Backbone) -> None:
        vars(self).update(vars(backbone))  # it is that backbone in all but `extract`
        self._inner = backbone
        self._known: dict[tuple[object, ...], tuple[Tensor, Tensor | None]] = {}
        self._seconds, self._ran = 0.0, 0

    @property
    def seconds_a_sample(self) -> float:
        """Seconds of the forward pass, over all texts that were run."""
        return self._seconds / max(1, self._ran)

    def extract(
        self,
        samples: Sequence[dict[str, list[int]]],
        *,
        layers: Sequence[int],
        pivot: str,
        transform: Callable[[Tensor], Tensor] | None = None,
        kept: Sequence[slice] | None = None,
    ) -> Extraction:
        """Return what `Backbone.extract` does, computed once a text."""
        if kept is not None:
            return self._inner.extract(samples, layers=layers, pivot=pivot, transform=transform, kept=kept)
        keys = [(tuple(layers), pivot, *((n, tuple(v)) for n, v in sorted(s.items()))) for s in samples]
        fresh = list({key: i for i, key in enumerate(keys) if key not in self._known}.items())
        if fresh:
            started = time.perf_counter()
            extraction = self._inner.extract([samples[i] for _, i in fresh], layers=layers, pivot=pivot)
            self._seconds += time.perf_counter() - started
            self._ran += len(fresh)
            for row, (key, _) in enumerate(fresh):
                own = None if extraction.base_logits is None else extraction.base_logits[row]
                self._known[key] = (extraction.activations[row], own)
        known = [self._known[key] for key in keys]
        activations = [transform(a) if transform else a for a, _ in known]
        logits = [one for _, one in known if one is not None]
        return Extraction(activations, torch.stack(logits) if logits else None)


@dataclass(frozen=True)
class Uploads:
    """What a server decodes, and the truth.

    Parameters
    ----------
    rows : Tensor
        [N, M, F] float32: sampled layers, features of each. With pivot `all` the mean over a sample's tokens.
    targets : TargetBatch
        As decoded.
    samples : Samples
        The truth: texts and labels.
    devices : ndarray
        [N] int64, the device of each.
    bytes_a_sample : float
        Uploaded, headers included.
    device_seconds_a_sample : float
        Everything on the device but the forward pass: perturbing, encoding, the ledger.
    spec : ExtractionSpec
        What was uploaded.
    contract : TaskContract
        The task.
    """

    rows: Tensor
    targets: TargetBatch
    samples: Samples
    devices: NDArray[np.int64]
    bytes_a_sample: float
    device_seconds_a_sample: float
    spec: ExtractionSpec
    contract: TaskContract

    @property
    def is_noisy(self) -> bool:
        """Whether activations carry noise."""
        return bool(self.spec.joint_epsilon or self.spec.sigma)

    @property
    def features(self) -> Tensor:
        """All layers side by side, [N, M·F]."""
        return self.rows.flatten(1)

    def take(self, places: NDArray[np.int64]) -> Uploads:
        """Return the uploads at places, in that order."""
        return replace(
            self,
            rows=self.rows[torch.from_numpy(places)],
            targets=self.targets.take(torch.from_numpy(places)),
            samples=self.samples.take(places.tolist()),
            devices=self.devices[places],
        )


def joined(parts: Sequence[Samples]) -> Samples:
    """Return the samples of several devices one after another."""
    pairs = [part.pairs for part in parts if part.pairs is not None]
    return Samples(
        [text for part in parts for text in part.texts],
        [second for part in pairs for second in part] if pairs else None,
        torch.cat([part.labels for part in parts]),
    )


def spec_of(settings: Settings, backbone: Backbone, contract: TaskContract) -> ExtractionSpec:
    """Return what devices of one backbone upload under settings."""
    blocks = settings.activations.num_blocks
    return extraction_spec(backbone.info, settings, num_blocks=blocks, num_outputs=contract.num_outputs)


@contextmanager
def make_uploads(
    settings: Settings, fleet: Mapping[int, LocalData], backbone: Backbone, folder: Path
) -> Iterator[tuple[Uploads, ActivationCache]]:
    """Let devices release their samples, and commit what they send as a server would.

    Packets are packed, checked and opened by the code that a run uses. The cache is closed at the end.

    Parameters
    ----------
    settings : Settings
        The devices' and the server's.
    fleet : mapping of int to LocalData
        Device number to what it holds; every device has a sample.
    backbone : Backbone
        Of all devices.
    folder : path
        Made here, with devices' folders and the cache in it.
    """
    contract = next(iter(fleet.values())).contract
    spec = spec_of(settings, backbone, contract)
    cache = ActivationCache(RunFolder(folder).make().cache)
    sent_bytes, seconds, owners, order = 0, 0.0, [], []
    try:
        for number, data in fleet.items():
            owned = DeviceFolder(RunFolder(folder).device(number), limits=Limits(settings.privacy.max_releases))
            try:
                device = Device(settings, data, owned, partition=number)
                device.backbone = backbone
                started = time.perf_counter()
                made = make_window(device, spec, held=frozenset(), size=len(data.train), max_bytes=_MOST_BYTES)
                seconds += time.perf_counter() - started - made.forward_seconds
                shaping = device.shaping(spec)
                place = {owned.release_id(sample, shaping): i for i, sample in enumerate(device.sample_ids)}
                packed = pack_window(made, spec=spec, contract=contract)
                window = open_window(
                    packed, spec=spec, contract=contract, max_samples=len(data.train), max_bytes=_MOST_BYTES
                )
                cache.add(owned.pseudonym, window.samples, backbone=spec.backbone, round_=1)
                sent_bytes += window.num_bytes
                owners += [number] * len(window.samples)
                order.append(data.train.take([place[sample.release] for sample in window.samples]))
            finally:
                owned.close()
        rows, targets = decode_all(cache, spec, contract)
        uploads = Uploads(
            rows=rows,
            targets=targets,
            samples=joined(order),
            devices=np.array(owners, np.int64),
            bytes_a_sample=sent_bytes / len(owners),
            device_seconds_a_sample=seconds / len(owners),
            spec=spec,
            contract=contract,
        )
        yield uploads, cache
    finally:
        cache.close()


def clean_rows(
    settings: Settings, spec: ExtractionSpec, contract: TaskContract, samples: Samples, backbone: Backbone
) -> Tensor:
    """Return what uploads of texts would be without noise and rounding, [N, M, F] float32.

    The attacker computes it for any text: backbone, standardisation, projection and clip norm are public.
    """
    transform = fitted_transform(spec, backbone, max_length=contract.max_length, file=settings.activations.public_text)
    extraction = read_activations(backbone, samples, contract, spec, transform)
    rows = [clip_joint(a.float(), spec.clip_norm) if spec.clip_norm else a.float() for a in extraction.activations]
    return torch.stack([row.flatten(2).mean(0) for row in rows])  # [T, M, P, d] -> [M, P·d]


def decode_all(cache: ActivationCache, spec: ExtractionSpec, contract: TaskContract) -> tuple[Tensor, TargetBatch]:
    """Decode one type's rows of a cache as the trainer does, in the order in which they were committed.

    Returns
    -------
    tuple
        [N, M, F] float32, with pivot `all` the mean over tokens; and the targets.
    """
    loader = BatchLoader(cache, {spec.backbone: spec}, contract, memory_bytes=0)
    refs = sorted((row for row in cache.rows() if row.backbone == spec.backbone), key=lambda row: row.id)
    decoded, targets = [], []
    for (batch,), of_part in loader.in_parts(refs):
        rows = batch.rows
        if batch.lengths is not None:
            rows = torch.stack([part.mean(0) for part in torch.split(rows, batch.lengths.tolist())])
        decoded.append(rows)
        targets.append(of_part)
    return torch.cat(decoded), TargetBatch.join(targets)
