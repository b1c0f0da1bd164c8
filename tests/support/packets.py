"""Valid specs, contracts and windows of random activations: packets without a backbone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from flwr.app import Array

from mobillm_flower.core.codecs import CODECS
from mobillm_flower.core.perturb import perturb
from mobillm_flower.core.sparse import encode_sample
from mobillm_flower.privacy.ledger import Release
from mobillm_flower.wire import keys
from mobillm_flower.wire.contract import ExtractionSpec, TaskContract
from mobillm_flower.wire.target_bytes import encode_targets
from mobillm_flower.wire.window import Window, open_window, pack_window

PSEUDONYM = "0123456789abcdef" * 2
DATA_FINGERPRINT = "fedcba9876543210" * 2


def make_contract(**changes: Any) -> TaskContract:
    """A classification into three labels; pass `label_range` for a regression."""
    values: dict[str, Any] = {
        "kind": "classification",
        "labels": ("alarm", "music", "weather"),
        "prompt": "",
        "label_words": (),
        "max_length": 6,
        "label_range": (),
        "metric": "accuracy",
    }
    if changes.get("label_range"):
        values |= {"kind": "regression", "labels": (), "metric": "spearman"}
    return TaskContract(**{**values, **changes})


def make_spec(**changes: Any) -> ExtractionSpec:
    """Two layers of width 8, one vector each, float32, prediction difference."""
    values: dict[str, Any] = {
        "backbone": "ab" * 32,
        "width": 8,
        "num_vectors": 1,
        "layers": (2, 4),
        "pivot": "last",
        "codec": "fp32",
        "standardise": "",
        "clip_norm": 0.0,
        "sigma": 0.0,
        "keep": 1.0,
        "objective": "difference",
        "send_base": False,
    }
    return ExtractionSpec(**{**values, **changes})


def random_activations(count: int, spec: ExtractionSpec, contract: TaskContract, seed: int = 0) -> list[torch.Tensor]:
    """What an honest device encodes: `count` tensors [T, M, P, d], clipped and noised as the spec says."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        tokens = int(torch.randint(1, contract.max_length + 1, (), generator=generator)) if spec.pivot == "all" else 1
        shape = (tokens, len(spec.layers), spec.num_vectors, spec.width)
        values, noise = (torch.randn(shape, generator=generator) for _ in range(2))
        made.append(perturb(values, clip_norm=spec.clip_norm, sigma=spec.sigma, noise=noise))
    return made


def random_targets(count: int, contract: TaskContract, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels [B] and base predictions [B, K] of an honest device."""
    generator = torch.Generator().manual_seed(seed)
    if contract.is_regression:
        low, high = contract.label_range
        labels, base = (low + (high - low) * torch.rand(count, n, generator=generator) for n in (1, 1))
        return labels.squeeze(1), base
    labels = torch.randint(contract.num_outputs, (count,), generator=generator)
    return labels, (3 * torch.randn(count, contract.num_outputs, generator=generator)).softmax(1)


def random_samples(count: int, spec: ExtractionSpec, contract: TaskContract, seed: int = 0) -> list[Release]:
    """Encoded samples with distinct release ids."""
    activations = random_activations(count, spec, contract, seed)
    targets = encode_targets(*random_targets(count, contract, seed), spec, contract) if count else []
    return [
        Release(
            hashlib.sha256(f"{seed}:{i}".encode()).digest()[:16],
            len(values),
            encode_sample(values, CODECS[spec.codec], spec.keep),
            target,
        )
        for i, (values, target) in enumerate(zip(activations, targets, strict=True))
    ]


@dataclass
class Packet:
    """A packed window with what the server asked for; change `content`, then `open` it."""

    content: Any  # a RecordDict, whose records a test damages in ways that its types forbid
    spec: ExtractionSpec
    contract: TaskContract
    max_samples: int = 16
    max_bytes: int = 2**20

    def open(self) -> Window:
        return open_window(
            self.content,
            spec=self.spec,
            contract=self.contract,
            max_samples=self.max_samples,
            max_bytes=self.max_bytes,
        )

    def array(self, name: str, record: str = keys.ACTIVATIONS) -> np.ndarray:
        values: np.ndarray = self.content[record][name].numpy()
        return values

    def set_array(self, name: str, values: np.ndarray, record: str = keys.ACTIVATIONS) -> None:
        self.content[record][name] = Array(values)

    def rehash(self) -> None:
        """Make the header's hash fit the arrays again, as a sender who lies on purpose does."""
        releases = self.content[keys.HEADER][keys.RELEASES]
        self.content[keys.HEADER][keys.PAYLOAD_HASH] = payload_hash(
            releases,
            *(self.array(name) for name in (keys.PAYLOAD, keys.LENGTHS, keys.TOKENS)),
            self.array(keys.PAYLOAD, keys.TARGETS),
        )


def payload_hash(releases: bytes, *arrays: np.ndarray) -> str:
    """The payload hash as the packet's reference describes it: ids, then shape and bytes of each array."""
    digest = hashlib.sha256(releases)
    for array in arrays:
        digest.update(f"|{array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def make_packet(
    count: int = 3,
    *,
    spec: ExtractionSpec | None = None,
    contract: TaskContract | None = None,
    samples: list[Release] | None = None,
    seed: int = 0,
) -> Packet:
    """A valid packet of `count` random samples, or of the given ones."""
    spec, contract = spec or make_spec(), contract or make_contract()
    samples = random_samples(count, spec, contract, seed) if samples is None else samples
    window = Window(
        pseudonym=PSEUDONYM,
        data_fingerprint=DATA_FINGERPRINT,
        samples=samples,
        total=len(samples) + 7,
        remaining=4,
        refused=2,
        forward_seconds=0.25,
        peak_memory_bytes=1e8,
    )
    return Packet(pack_window(window, spec=spec, contract=contract), spec, contract)


def with_activations(values: torch.Tensor, *, spec: ExtractionSpec | None = None) -> Packet:
    """A packet of one sample that carries exactly these float32 values [T, M, P, d]."""
    spec, contract = spec or make_spec(), make_contract()
    sample = random_samples(1, spec, contract)[0]
    blob = values.numpy().astype("<f4").tobytes()
    return make_packet(spec=spec, contract=contract, samples=[replace(sample, activations=blob)])


def with_target(target: bytes, *, spec: ExtractionSpec, contract: TaskContract) -> Packet:
    """A packet of one sample whose target is these bytes."""
    sample = random_samples(1, spec, contract)[0]
    return make_packet(spec=spec, contract=contract, samples=[replace(sample, target=target)])
