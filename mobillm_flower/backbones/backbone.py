"""A frozen backbone that runs forward only and keeps nothing but pivots."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mobillm_flower.backbones.engine import Engine
from mobillm_flower.backbones.head import LanguageHead
from mobillm_flower.backbones.label_words import Beginning, LabelWords
from mobillm_flower.backbones.memory import MemoryPlan
from mobillm_flower.backbones.positions import check_positions, num_positions
from mobillm_flower.backbones.tokenizers import require_embedded
from mobillm_flower.core.backbone_info import BackboneInfo
from mobillm_flower.core.pivots import PIVOTS, Pivot
from mobillm_flower.errors import DataError, UnsupportedError

logger = logging.getLogger(__name__)

_PADDED, _WORTH_A_CALL = 1.25, 512  # longest over shortest of a batch; tokens from which a batch is worth its call


@dataclass(frozen=True)
class Extraction:
    """What a forward pass over samples leaves.

    Parameters
    ----------
    activations : list of Tensor
        One sample each, [T, M, P, d_b] float32 on the CPU; T is 1 except with pivot `all`.
    base_logits : Tensor or None
        [B, K] float32, the backbone's own prediction; None where it has none.
    """

    activations: list[Tensor]
    base_logits: Tensor | None


@dataclass(eq=False, repr=False, kw_only=True)
class Backbone:
    """A frozen language model on a device. Made by `load_backbone`.

    Samples are batched by length under a token budget, right-padded, and come back in the order they were given; its
    engine runs the batches forward.

    Parameters
    ----------
    model : nn.Module
        The bare model; frozen and in evaluation mode.
    stack : sequence of nn.Module
        Its layers 1..L.
    stack_name : str
        Where they are in the model.
    tokenizer
        transformers' tokenizer of the model.
    info : BackboneInfo
        What the model is.
    predictor : nn.Module or None
        `model` with a head whose logits, [B, K] or the last token's of [B, T, K], are the base logits.
    label_head : tuple of Tensor or None
        Weight [K, d_b] and bias [K] (or None) that turn the last token's final state into the base logits.
    class_order : tuple of int
        Which of the logits that these two give is each class's; empty: they are in order.
    label_words : LabelWords or None
        Words that the predictor scores by all of their tokens; None: its logits are the base logits.
    decoder_start : int or None
        First token of the decoder where the model is an encoder-decoder: the one token whose states are kept.
    token_budget : int
        Most tokens of a forward batch, padding included.
    device : torch.device
        Where the model is.
    language_model
        transformers' causal model around `model`, where it was loaded with its head.
    head : LanguageHead or None
        That head.
    engine : Engine
        What computes the forward pass.
    plan : MemoryPlan or None
        How it runs within a memory budget, where it has one.
    """

    model: nn.Module
    stack: Sequence[nn.Module]
    stack_name: str
    tokenizer: Any
    info: BackboneInfo
    predictor: nn.Module | None
    label_head: tuple[Tensor, Tensor | None] | None
    decoder_start: int | None
    token_budget: int
    device: torch.device
    engine: Engine
    language_model: Any = None
    head: LanguageHead | None = None
    plan: MemoryPlan | None = None
    class_order: tuple[int, ...] = ()
    label_words: LabelWords | None = None

    def tokenize(
        self, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int
    ) -> list[dict[str, list[int]]]:
        """Tokenize texts, or text pairs, cut to `max_length` tokens, without padding.

        Raises
        ------
        DataError
            A text has no tokens.
        SettingsError
            `max_length` is beyond the model's positions.
        UnsupportedError
            The model has no embedding for a token or token type.
        """
        self.check_length(max_length)
        arguments = [list(texts)] + ([list(pairs)] if pairs is not None else [])
        encoded = self.tokenizer(*arguments, truncation=True, max_length=max_length, padding=False)
        names = [name for name in ("input_ids", "token_type_ids") if name in encoded]
        samples = [{name: list(encoded[name][i]) for name in names} for i in range(len(texts))]
        for i, sample in enumerate(samples):
            if not sample["input_ids"]:
                raise DataError(f"sample {i} has no tokens; remove empty texts from the data")
        require_embedded(samples, self.tokenizer, getattr(self.model, "config", None), self.info.name)
        return samples

    def check_length(self, max_length: int) -> None:
        """Raise SettingsError where `max_length` is beyond the model's positions."""
        longest = len(self.label_words.beginnings[-1]) if self.label_words else 0
        check_positions(self.model, self.info.name, max_length, words=longest)

    def extract(
        self,
        samples: Sequence[dict[str, list[int]]],
        *,
        layers: Sequence[int],
        pivot: str,
        transform: Callable[[Tensor], Tensor] | None = None,
        kept: Sequence[slice] | None = None,
    ) -> Extraction:
        """Run samples forward and keep the pivots of the sampled layers.

        Parameters
        ----------
        samples : sequence of dict
            From `tokenize`.
        layers : sequence of int
            1-based layer numbers, ascending.
        pivot : str
            A name in `PIVOTS`.
        transform : callable, optional
            From `public_transform`: applied to each sample's activations.
        kept : sequence of slice, optional
            With a pivot that keeps every token: which of each sample's tokens.

        Raises
        ------
        UnsupportedError
            The accelerator's memory does not suffice, not even with half the token budget, which is tried once and
            then kept.
        """
        read = partial(self._within_memory, layers=layers, select=PIVOTS[pivot], transform=transform, kept=kept)
        words = self.label_words
        if words is None:
            return read(samples)
        last = partial(self._within_memory, layers=[self.info.depth], select=PIVOTS["last"])
        result = read(samples)
        if result.base_logits is None:
            return result
        after: dict[Beginning, Tensor] = {(): result.base_logits}
        for beginning in words.beginnings[1:]:
            longer = last([{"input_ids": [*sample["input_ids"], *beginning]} for sample in samples])
            assert longer.base_logits is not None
            after[beginning] = longer.base_logits
        return replace(result, base_logits=words.scores(after))

    def _within_memory(self, samples: Sequence[dict[str, list[int]]], **what: Any) -> Extraction:
        """Run samples forward, with half the token budget where the accelerator's memory does not suffice."""
        work = partial(self._extract, samples, **what)
        try:
            return work()
        except torch.OutOfMemoryError:
            whole = self.token_budget
        self._halve_token_budget()
        try:
            return work()
        except torch.OutOfMemoryError:
            raise UnsupportedError(
                f"{self.info.name} ran out of memory on {self.device} with batches of {whole} tokens, and of "
                f"{self.token_budget}; lower backbone.token-budget, choose a smaller backbone or precision, or give "
                "backbone.device=cpu"
            ) from None

    def _halve_token_budget(self) -> None:
        self.token_budget = max(1, self.token_budget // 2)
        logger.warning("out of memory on %s: batches of %d tokens from now on", self.device, self.token_budget)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _extract(
        self,
        samples: Sequence[dict[str, list[int]]],
        *,
        layers: Sequence[int],
        select: Pivot,
        transform: Callable[[Tensor], Tensor] | None = None,
        kept: Sequence[slice] | None = None,
    ) -> Extraction:
        activations: list[Tensor | None] = [None] * len(samples)
        logits: list[Tensor | None] = [None] * len(samples)
        batches = list(self.batches(samples))
        inputs = (self.pad([samples[i] for i in batch]) for batch in batches)
        for batch, (pivots, batch_logits) in zip(batches, self.engine.run(inputs, layers, select), strict=True):
            for row, i in enumerate(batch):
                length = len(samples[i]["input_ids"]) if select.per_token else 1
                # [B, T, M, P, d] -> [T, M, P, d] without the padding; a decoder behind an encoder has one token
                sample = pivots[row, :length][kept[i] if kept else slice(None)].float().cpu()
                activations[i] = transform(sample) if transform else sample
                if batch_logits is not None:
                    logit = batch_logits[row].float()
                    if self.label_words:
                        logit = torch.log_softmax(logit, 0)[self.label_words.distinct]
                    logit = logit.cpu()
                    logits[i] = logit[list(self.class_order)] if self.class_order else logit
        rows = [logit for logit in logits if logit is not None]
        return Extraction([a for a in activations if a is not None], torch.stack(rows) if rows else None)

    def computed_by(self, layers: Sequence[int], pivot: str) -> str:
        """Return the name of the engine that computes these pivots, made ready: part of the release id."""
        return self.engine.prepare(layers, PIVOTS[pivot]).name

    @property
    def positions(self) -> int | None:
        """How many tokens the model can place; None where there is no limit that it states."""
        return num_positions(self.model)

    def padded_batches(self, samples: Sequence[dict[str, list[int]]]) -> Iterator[dict[str, Tensor]]:
        """Yield the model's inputs for samples, shortest first, as `extract` would run them."""
        for batch in self.batches(samples):
            yield self.pad([samples[i] for i in batch])

    def batches(self, samples: Sequence[dict[str, list[int]]]) -> Iterator[list[int]]:
        """Yield places of samples, shortest first, in the batches that run: see `batches_by_length`."""
        return batches_by_length([len(sample["input_ids"]) for sample in samples], self.token_budget)

    def pad(self, batch: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
        """Return the model's inputs [B, T] for tokenized samples, padded on the right, with their attention mask."""
        length = max(len(sample["input_ids"]) for sample in batch)
        pad = getattr(self.model.config, "pad_token_id", None)
        fill = {"input_ids": pad if isinstance(pad, int) and pad >= 0 else 0}
        inputs = {
            name: torch.tensor(
                [sample[name] + [fill.get(name, 0)] * (length - len(sample[name])) for sample in batch],
                device=self.device,
            )
            for name in batch[0]
        }
        inputs["attention_mask"] = torch.tensor(
            [[1] * len(s["input_ids"]) + [0] * (length - len(s["input_ids"])) for s in batch], device=self.device
        )
        if self.decoder_start is not None:  # the encoder reads the sample, the decoder its first token
            inputs["decoder_input_ids"] = torch.full((len(batch), 1), self.decoder_start, device=self.device)
        return inputs


def batches_by_length(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Yield places of samples, shortest first, in batches of at most `token_budget` tokens, one sample at least.

    A batch that is worth its call ends before a sample that would pad its shortest by more than a quarter.
    """
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batch:
            shortest, longest = lengths[batch[0]], lengths[batch[-1]]
            padded = lengths[i] > _PADDED * shortest and longest * len(batch) >= _WORTH_A_CALL
            if padded or lengths[i] * (len(batch) + 1) > token_budget:
                yield batch
                batch = []
        batch.append(i)
    if batch:
        yield batch
