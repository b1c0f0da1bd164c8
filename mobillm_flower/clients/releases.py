"""Releases of samples: run forward, protected, encoded."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from mobillm_flower.backbones import Backbone
from mobillm_flower.core.codecs import CODECS
from mobillm_flower.core.language import correction
from mobillm_flower.core.pivots import PIVOTS
from mobillm_flower.core.sparse import encode_sample
from mobillm_flower.core.targets import base_prediction
from mobillm_flower.errors import DataError
from mobillm_flower.privacy.device_folder import DeviceFolder
from mobillm_flower.privacy.ledger import Release
from mobillm_flower.privacy.mixing import MixingKey
from mobillm_flower.tasks import Samples, read_activations, read_tokens
from mobillm_flower.tasks.extraction import fitted_transform
from mobillm_flower.wire.contract import ExtractionSpec, TaskContract
from mobillm_flower.wire.target_bytes import encode_corrections, encode_targets, encode_token_labels

MAX_SAMPLES_AT_ONCE = 64
"""Most samples that a device runs forward at one time, while as many before them are encoded."""


def samples_at_once(spec: ExtractionSpec, *, token_budget: int, max_length: int) -> int:
    """Return samples whose activations are in memory at one time: with every token kept, those of a forward batch."""
    if not PIVOTS[spec.pivot].per_token:
        return MAX_SAMPLES_AT_ONCE
    return min(MAX_SAMPLES_AT_ONCE, max(1, token_budget // max_length))


class ReleaseMaker:
    """Makes releases of samples under one extraction.

    Parameters
    ----------
    backbone : Backbone
        Runs the samples forward.
    contract, spec
        The task, and what is sampled of the backbone.
    folder : DeviceFolder
        Keys of the noise; what is fitted on public text is kept there.
    token_budget : int
        Tokens of a forward batch.
    public_text : str
        See `public_text`.
    mixing : MixingKey or None
        The fleet's secret rotation.
    """

    def __init__(
        self,
        backbone: Backbone,
        contract: TaskContract,
        spec: ExtractionSpec,
        *,
        folder: DeviceFolder,
        token_budget: int,
        public_text: str = "",
        mixing: MixingKey | None = None,
    ) -> None:
        self.backbone, self.contract, self.spec, self.folder = backbone, contract, spec, folder
        self.token_budget, self.public_text, self.mixing = token_budget, public_text, mixing

    def make(
        self, train: Samples, indices: Sequence[int], release_ids: Sequence[bytes]
    ) -> tuple[list[tuple[int, Release]], float]:
        """Run samples forward, protect and encode them.

        A few samples of similar length at a time, and those before them are encoded meanwhile in another thread: no
        more activations than theirs are in memory. Where every token's are kept, one after the other.

        Parameters
        ----------
        train : Samples
            All samples of the device.
        indices : sequence of int
            Which of them.
        release_ids : sequence of bytes
            Of all samples.

        Returns
        -------
        tuple
            Numbers of samples with their releases, and the forward pass's seconds.
        """
        seconds, pairs = 0.0, train.pairs or [""] * len(train)
        order = sorted(indices, key=lambda i: (len(train.texts[i]) + len(pairs[i]), i))
        releases: list[tuple[int, Release]] = []
        encoding: Future[list[tuple[int, Release]]] | None = None
        size = samples_at_once(self.spec, token_budget=self.token_budget, max_length=self.contract.max_length)
        with ThreadPoolExecutor(1) as worker:
            for start in range(0, len(order), size):
                part = order[start : start + size]
                if self.contract.per_token:
                    activations, targets, spent = self._tokens(train.take(part))
                else:
                    noise_keys = [self.folder.noise_key(release_ids[i]) for i in part]
                    activations, targets, spent = self._labelled(train.take(part), noise_keys)
                seconds += spent
                if encoding is not None:
                    releases += encoding.result()
                encoding = worker.submit(self._encoded, part, release_ids, activations, targets)
                if PIVOTS[self.spec.pivot].per_token:  # so many activations are in memory once
                    encoding.result()
            if encoding is not None:
                releases += encoding.result()
        return releases, seconds

    def _encoded(
        self,
        part: Sequence[int],
        release_ids: Sequence[bytes],
        activations: Sequence[Tensor],
        targets: Sequence[bytes],
    ) -> list[tuple[int, Release]]:
        """Return each sample's number and release."""
        releases = []
        for i, sample, target in zip(part, activations, targets, strict=True):
            try:
                blob = encode_sample(sample, CODECS[self.spec.codec], self.spec.keep)
            except ValueError as error:
                raise DataError(f"sample {i} cannot be encoded as {self.spec.codec}: {error}") from error
            releases.append((i, Release(release_ids[i], len(sample), blob, target)))
        return releases

    def _tokens(self, samples: Samples) -> tuple[list[Tensor], list[bytes], float]:
        """Return activations and encoded targets of language modelling, and the seconds that they took."""
        head = self.backbone.head
        assert head is not None
        started = time.perf_counter()
        activations, labels = read_tokens(self.backbone, samples, self.contract, self.spec)
        if self.spec.objective == "label":
            return activations, encode_token_labels(labels), time.perf_counter() - started
        corrections = []
        for sample, tokens in zip(activations, labels, strict=True):
            with torch.no_grad():
                inputs = head.inputs(sample[:, -1, 0])
            step, weight = correction(inputs, tokens.to(head.device), head)
            corrections.append((step.cpu(), weight.cpu()))
        return activations, encode_corrections(corrections, self.spec), time.perf_counter() - started

    def _labelled(self, samples: Samples, noise_keys: Sequence[bytes]) -> tuple[list[Tensor], list[bytes], float]:
        """Return protected activations and encoded targets of labels or numbers, and the forward pass's seconds."""
        contract, spec = self.contract, self.spec
        transform = fitted_transform(
            spec,
            self.backbone,
            max_length=contract.max_length,
            file=self.public_text,
            remembered_in=self.folder.path,
        )
        started = time.perf_counter()
        extraction = read_activations(self.backbone, samples, contract, spec, transform)
        seconds = time.perf_counter() - started
        logits = None if spec.constant_base else extraction.base_logits
        base = base_prediction(logits, len(samples), contract.num_outputs, label_range=contract.label_range)
        mixed = extraction.activations
        mixed = [self.mixing.activations(sample) for sample in mixed] if self.mixing else mixed
        protected, labels = spec.protection(contract)(mixed, samples.labels, noise_keys)
        return protected, encode_targets(labels, base, spec, contract, mixing=self.mixing), seconds
