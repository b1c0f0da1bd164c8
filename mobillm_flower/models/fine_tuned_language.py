"""A language model that is trained: what the baselines' devices do where tokens are predicted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mobillm_flower.backbones.backbone import Backbone
from mobillm_flower.backbones.head import LanguageHead
from mobillm_flower.core import language
from mobillm_flower.errors import UnsupportedError
from mobillm_flower.models.fine_tuned import FineTunedModel
from mobillm_flower.models.language import word_starts
from mobillm_flower.tasks import TOKEN_METRICS, Samples, TokenChunk, TokenScores, chunks_of
from mobillm_flower.tasks.words import token_kinds, word_ranks
from mobillm_flower.wire.contract import TaskContract

_NOT_ASKED = -1


class FineTunedLanguageModel(FineTunedModel):
    """A causal language model with trainable parts, under its own frozen head.

    A sample is read in the chunks that side-tuning reads, and the loss is the cross-entropy of its tokens in the loss,
    in nats. A batch is of chunks. Parameters and errors are those of `FineTunedModel`; a backbone without its head is
    an UnsupportedError, too.
    """

    def __init__(
        self, backbone: Backbone, contract: TaskContract, *, method: str = "lora", rank: int = 8, seed: int = 0
    ) -> None:
        if backbone.head is None:
            raise UnsupportedError(f"{backbone.info.name} was loaded without its language-model head; load it with it")
        self._head: LanguageHead = backbone.head
        super().__init__(backbone, contract, method=method, rank=rank, seed=seed)

    def _add_head(self) -> None:
        """Add nothing: the model's own head is frozen."""

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the last layer's states of padded inputs, [B, T, d_b], before the final norm."""
        taken: list[Tensor] = []

        def take(_module: Any, _arguments: Any, output: Any) -> None:
            taken.append(output[0] if isinstance(output, tuple) else output)

        with self.backbone.stack[-1].register_forward_hook(take):
            self.model(**inputs)
        return taken[0]

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of the tokens in the loss.

        Parameters
        ----------
        scores : Tensor
            States [B, T, d_b] of `forward`.
        labels : Tensor
            [B, T] int64: the token that each state is to predict, −1 where none is asked for.
        """
        asked = labels != _NOT_ASKED
        return language.cross_entropy(self._head.inputs(scores[asked]), labels[asked], self._head)

    def tokens(self, samples: Samples) -> list[dict[str, list[int]]]:
        """Return the tokens of all samples' chunks."""
        return [{"input_ids": chunk.ids} for chunk in self._chunks(samples)]

    def batches(self, samples: Samples, batch_size: int, seed: int) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """Yield padded chunks and labels [B, T] of one epoch in a random order that the seed draws."""
        chunks = self._chunks(samples)
        order = torch.randperm(len(chunks), generator=torch.Generator().manual_seed(seed)).tolist()
        for start in range(0, len(order), batch_size):
            yield self._padded([chunks[i] for i in order[start : start + batch_size]])

    def by_length(self, samples: Samples) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """Yield padded chunks and labels [B, T], shortest first."""
        chunks = self._chunks(samples)
        for places in self.backbone.batches([{"input_ids": chunk.ids} for chunk in chunks]):
            yield self._padded([chunks[i] for i in places])

    def scores(self, samples: Samples) -> Tensor:  # noqa: ARG002 - of the class below
        """Raise UnsupportedError: tokens have no scores by sample; see `token_scores`."""
        raise UnsupportedError("a model of tokens gives no scores of samples; ask for token_scores")

    @torch.inference_mode()
    def token_scores(self, samples: Samples) -> TokenScores:
        """Return how likely the tokens of texts are, and where its words stand among suggestions."""
        self.eval()
        by_sample = chunks_of(self.backbone.tokenizer, samples, self.contract)
        chunks = [chunk for of_sample in by_sample for chunk in of_sample]
        kinds = token_kinds(self.backbone.tokenizer)
        starts = word_starts(self._head, kinds)
        found: list[tuple[Tensor, Tensor, Tensor]] = [(torch.zeros(0),) * 3] * len(chunks)
        for places in self.backbone.batches([{"input_ids": chunk.ids} for chunk in chunks]):
            inputs, labels = self._padded([chunks[i] for i in places])
            states, asked = self(inputs), labels != _NOT_ASKED
            scored = language.token_scores(self._head.inputs(states[asked]), labels[asked], self._head, starts)
            parts = [torch.split(part.cpu(), asked.sum(1).tolist()) for part in scored]
            for row, place in enumerate(places):
                found[place] = (parts[0][row], parts[1][row], parts[2][row])
        words, left = [np.zeros(0, np.int64)], iter(found)
        for of_sample in by_sample:
            labels_of = np.concatenate([chunk.ids[chunk.first :] for chunk in of_sample])
            _, ranks, best = (torch.cat(parts).numpy() for parts in zip(*(next(left) for _ in of_sample), strict=True))
            words.append(word_ranks(labels_of, ranks, best, kinds))
        log_p = torch.cat([log_p for log_p, _, _ in found]) if found else torch.zeros(0)
        return TokenScores(log_p.numpy(), np.concatenate(words))

    def evaluate(self, samples: Samples) -> float:
        """Return the contract's metric on texts."""
        return TOKEN_METRICS[self.contract.metric](self.token_scores(samples))

    def _chunks(self, samples: Samples) -> list[TokenChunk]:
        self.backbone.check_length(self.contract.max_length)
        by_sample = chunks_of(self.backbone.tokenizer, samples, self.contract)
        return [chunk for of_sample in by_sample for chunk in of_sample]

    def _padded(self, chunks: Sequence[TokenChunk]) -> tuple[dict[str, Tensor], Tensor]:
        """Return padded inputs of chunks, and what each of their states is to predict, [B, T]."""
        inputs = self.backbone.pad([{"input_ids": chunk.ids} for chunk in chunks])
        labels = torch.full_like(inputs["input_ids"], _NOT_ASKED)
        for row, chunk in enumerate(chunks):
            asked = slice(chunk.first - 1, len(chunk.ids) - 1)
            labels[row, asked] = torch.tensor(chunk.ids[chunk.first :], device=labels.device)
        return inputs, labels
