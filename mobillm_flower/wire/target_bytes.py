"""A sample's target as bytes: Δy, or the label with or without p_b; of language modelling one target a token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mobillm_flower.core.codecs import CODECS
from mobillm_flower.core.language import CHUNK, read_asked
from mobillm_flower.core.placement import moved
from mobillm_flower.core.targets import SAME, difference, recover, valid_difference
from mobillm_flower.privacy.mixing import MixingKey
from mobillm_flower.wire.contract import ExtractionSpec, TaskContract

_HALF_ERROR = 2.0**-11  # rounding of float16 values up to 1
_MAX_CORRECTION = 1e6  # magnitude of a correction or its curvature that is believed


@dataclass(frozen=True)
class TargetBatch:
    """Decoded targets of B samples, or of language modelling of their N tokens; what was not sent is None.

    Parameters
    ----------
    differences : Tensor or None
        Δy, [B, K] float32 (regression: y − ŷ_b, [B, 1]); of tokens the correction Δu, [N, d_u].
    labels : Tensor or None
        [B] int64, or for regression y, [B, 1] float32; of tokens their numbers, [N] int64, and where
        `ExtractionSpec.whole_texts` which of them are in the loss (see `core.language.read_asked`).
    base : Tensor or None
        p_b, [B, K] float32 (regression: ŷ_b, [B, 1]); of tokens the last hidden state, [N, d_b], which the loader takes
        from the activations.
    weights : Tensor or None
        Of tokens, the curvature of each correction, [N] float32.
    """

    differences: Tensor | None
    labels: Tensor | None
    base: Tensor | None
    weights: Tensor | None = None

    def to(self, device: torch.device) -> TargetBatch:
        """Return it on a device, see `moved`."""
        return TargetBatch(*(None if part is None else moved(part, device) for part in vars(self).values()))

    def take(self, places: Tensor) -> TargetBatch:
        """Return the targets at places [B'] int64, in that order."""
        return TargetBatch(*(None if part is None else part[places] for part in vars(self).values()))

    @classmethod
    def join(cls, batches: Sequence[TargetBatch]) -> TargetBatch:
        """Return targets of one kind one after another."""
        if len(batches) == 1:
            return batches[0]
        columns = zip(*(vars(batch).values() for batch in batches), strict=True)
        return cls(*(None if column[0] is None else torch.cat(column) for column in columns))

    def __len__(self) -> int:
        """B, or N."""
        there = self.labels if self.labels is not None else self.differences
        return 0 if there is None else len(there)


def target_size(spec: ExtractionSpec, contract: TaskContract, tokens: int = 1) -> int:
    """Bytes of a target: K float16 for Δy; uint16 label (and K float16 for p_b); float32 throughout in regression.

    Of language modelling, with `tokens` in the loss: a uint32 a token; or Δu under the activations' codec and a
    float32 a token.
    """
    if contract.per_token:
        corrections = CODECS[spec.codec].num_bytes(tokens * spec.head_width) if spec.objective == "difference" else 0
        return corrections + 4 * tokens
    k, number = contract.num_outputs, 4 if contract.is_regression else 2
    if spec.objective == "difference":
        return k * number
    return number + (k * number if spec.send_base else 0)


def encode_targets(
    labels: Tensor, base: Tensor, spec: ExtractionSpec, contract: TaskContract, *, mixing: MixingKey | None = None
) -> list[bytes]:
    """Encode targets, one a sample.

    Parameters
    ----------
    labels : Tensor
        [B] int64 class numbers, or float32 numbers for regression.
    base : Tensor
        p_b, [B, K] float32; for regression ŷ_b, [B, 1].
    mixing : MixingKey, optional
        Rotates Δy.
    """
    number = "<f4" if contract.is_regression else "<f2"
    if spec.objective == "difference":
        delta = exact_targets(labels, base, contract)
        delta = mixing.targets(delta) if mixing else delta
        return [row.tobytes() for row in delta.numpy().astype(number)]
    first = labels.numpy().astype("<f4" if contract.is_regression else "<u2")
    encoded = [value.tobytes() for value in first]
    if spec.send_base:
        encoded = [head + row.tobytes() for head, row in zip(encoded, base.numpy().astype(number), strict=True)]
    return encoded


def exact_targets(labels: Tensor, base: Tensor, contract: TaskContract) -> Tensor:
    """Return Δy [B, K] float32 of labels [B] and p_b [B, K]; of regression y − ŷ_b."""
    return labels.reshape(-1, 1).float() - base if contract.is_regression else difference(labels, base)


def encode_token_labels(labels: Sequence[Tensor]) -> list[bytes]:
    """Encode the tokens of each sample, [T] int64, as `read_tokens` returns them."""
    return [sample.numpy().astype("<u4").tobytes() for sample in labels]


def encode_corrections(corrections: Sequence[tuple[Tensor, Tensor]], spec: ExtractionSpec) -> list[bytes]:
    """Encode each sample's (Δu [T, d_u], w [T]), from `mobillm_flower.core.language.correction`."""
    codec = CODECS[spec.codec]
    return [codec.encode(steps) + weights.numpy().astype("<f4").tobytes() for steps, weights in corrections]


def decode_targets(
    blobs: Sequence[bytes], spec: ExtractionSpec, contract: TaskContract, tokens: Sequence[int] = ()
) -> TargetBatch:
    """Decode targets of correct size; see `check_targets` for bounds.

    Parameters
    ----------
    blobs, spec, contract
        One target a sample, and what was agreed on.
    tokens : sequence of int
        T of each sample; needed for language modelling.

    Raises
    ------
    ValueError
        A correction cannot be decoded.
    """
    if contract.per_token:
        return _decode_tokens(blobs, spec, tokens)
    k = contract.num_outputs
    number = "<f4" if contract.is_regression else "<f2"
    joined = np.frombuffer(b"".join(blobs), np.uint8).reshape(len(blobs), -1)
    if spec.objective == "difference":
        return TargetBatch(_floats(joined, number, k), None, None)
    size = 4 if contract.is_regression else 2
    head = np.ascontiguousarray(joined[:, :size])
    if contract.is_regression:
        labels = torch.from_numpy(head.view("<f4").astype(np.float32))  # [B, 1]
    else:
        labels = torch.from_numpy(head.view("<u2").astype(np.int64)).squeeze(1)  # [B]
    base = _floats(np.ascontiguousarray(joined[:, size:]), number, k) if spec.send_base else None
    return TargetBatch(None, labels, base)


def _decode_tokens(blobs: Sequence[bytes], spec: ExtractionSpec, tokens: Sequence[int]) -> TargetBatch:
    if spec.objective == "label":
        numbers = np.frombuffer(b"".join(blobs), "<u4").astype(np.int64)
        return TargetBatch(None, torch.from_numpy(numbers), None)
    corrections = [blob[: -4 * count] for blob, count in zip(blobs, tokens, strict=True)]
    curvatures = [blob[-4 * count :] for blob, count in zip(blobs, tokens, strict=True)]
    steps = CODECS[spec.codec].decode(corrections, [count * spec.head_width for count in tokens])
    weights = torch.from_numpy(np.frombuffer(b"".join(curvatures), "<f4").astype(np.float32))
    return TargetBatch(steps.reshape(-1, spec.head_width), None, None, weights)


def check_token_targets(
    targets: TargetBatch, spec: ExtractionSpec, contract: TaskContract, tokens: Sequence[int]
) -> str:
    """Return what is wrong with decoded targets of language modelling, of samples of so many packed rows, or ""."""
    vocabulary, labels = spec.vocabulary, targets.labels
    if spec.whole_texts and labels is not None:
        starts = torch.tensor([0, *tokens[:-1]]).cumsum(0)
        if not bool((labels[starts] >= CHUNK).all()):
            return "a sample's first token does not begin a chunk"
        read = read_asked(labels)
        if int(read.chunks.max()) >= contract.max_length:
            return f"a chunk has {int(read.chunks.max()) + 1} tokens, and {contract.max_length} are the most"
        if not all(part.any() for part in torch.split(read.asked, list(tokens))):
            return "a sample has no token in the loss"
        labels = read.labels
    if labels is not None and bool((labels >= vocabulary).any()):
        return f"a token is not below {vocabulary}"
    for name, part in (("correction", targets.differences), ("curvature", targets.weights)):
        if part is not None and not bool((part.abs() <= _MAX_CORRECTION).all()):  # not of NaN either
            return f"a {name} is beyond ±{_MAX_CORRECTION:g}"
    if targets.weights is not None and bool((targets.weights < 0).any()):
        return "a curvature is negative"
    return ""


def check_targets(targets: TargetBatch, contract: TaskContract, *, mixed: bool = False, constant: bool = False) -> str:
    """Return what is wrong with decoded targets ("" where nothing is), by the bounds of the declared objective.

    Δy of a classification is onehot(y) − p_b for some p_b; of a regression at most the label range's width where the
    base prediction is inside it. p_b is a distribution. A label is a class, or inside the range. Of a rotated Δy
    (`mixed`) only the length is known: at most √2. Where p_b is 1/K for all samples (`constant`), Δy and p_b are what
    follows from that, and of a rotated Δy the length.
    """
    low, high = contract.label_range or (0.0, 1.0)
    for name, part in (("difference", targets.differences), ("label", targets.labels), ("base", targets.base)):
        if part is not None and not bool(torch.isfinite(part.float()).all()):
            return f"a {name} is not finite"
    if contract.is_regression:
        reach = max(abs(low), abs(high), high - low)
        if targets.differences is not None and bool((targets.differences.abs() > reach * (1 + 1e-6)).any()):
            return f"a difference is beyond ±{reach:g}, the reach of label range {low:g} to {high:g}"
        if targets.labels is not None and bool(((targets.labels < low) | (targets.labels > high)).any()):
            return f"a label is outside {low:g} to {high:g}"
        return ""
    share = 1 / contract.num_outputs
    if mixed and targets.differences is not None:
        longest = float(torch.linalg.vector_norm(targets.differences, dim=1).max())
        most, slack = (1 - share if constant else 2.0) ** 0.5, _HALF_ERROR * contract.num_outputs**0.5
        return "" if longest <= most + slack else f"a rotated difference is longer than {most:.3g}"
    if targets.differences is not None and not valid_difference(targets.differences, _HALF_ERROR):
        return "a difference is not onehot(y) − p_b for any distribution p_b"
    if constant:
        base = targets.base if targets.differences is None else recover(targets.differences)[1]
        if base is not None and bool(((base - share).abs() > SAME).any()):
            return f"p_b is not 1/{contract.num_outputs}, and this backbone predicts nothing else"
    if targets.labels is not None and bool((targets.labels >= contract.num_outputs).any()):
        return f"a label is not below {contract.num_outputs}"
    if targets.base is not None:
        slack = _HALF_ERROR * contract.num_outputs
        if bool((targets.base < 0).any()) or bool(((targets.base.sum(1) - 1).abs() > slack).any()):
            return "a base prediction is not a distribution"
    return ""


def _floats(rows: np.ndarray, number: str, k: int) -> Tensor:
    return torch.from_numpy(rows.reshape(-1).view(number).reshape(-1, k).astype(np.float32))
