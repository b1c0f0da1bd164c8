"""Language modelling: prompts with responses, or plain texts, as tokens of which some are in the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mobillm_flower.backbones import Backbone
from mobillm_flower.config import Settings
from mobillm_flower.config.run_compatibility import check_pair_column
from mobillm_flower.core.language import mark_asked
from mobillm_flower.errors import DataError
from mobillm_flower.tasks.labels import LabelRule
from mobillm_flower.tasks.task import TASKS, Samples, read_texts_of
from mobillm_flower.wire.contract import ExtractionSpec, TaskContract
from mobillm_flower.wire.left_out import REASONS


class LanguageTask:
    """Predict each next token of a response to a prompt, or of a plain text.

    `data.text-column` holds prompts and `data.pair-column` responses, whose tokens are in the loss with the end of text
    that follows them; without `data.pair-column` the texts are plain, and all but the first token are in the loss.
    """

    per_token = True

    def labels(self, column: Sequence[Any], settings: Settings) -> tuple[str, ...]:  # noqa: ARG002 - a task's method
        """Return none: what is predicted are tokens."""
        return ()

    def samples(self, rows: Any, settings: Settings, contract: TaskContract) -> Samples:
        """Read the prompt and response columns, or the text column; a row without them is an error."""
        samples, reasons = self.read(rows, settings, contract, None)
        for i, reason in reasons.items():
            raise DataError(f"row {i} (counted from 0) is one {REASONS[reason]}")
        return samples

    def read(
        self,
        rows: Any,
        settings: Settings,
        contract: TaskContract,
        rule: LabelRule | None,  # noqa: ARG002 - a task's method; no label column is read
    ) -> tuple[Samples, dict[int, str]]:
        """Read the prompt and response columns, or the text column; rows without them cannot be used."""
        check_pair_column(settings, needs_pair=False, needs_response=bool(contract.prompt))
        texts, responses, reasons = read_texts_of(rows, settings)
        return Samples(texts, responses, torch.zeros(len(texts))), reasons

    def predictions(self, scores: Tensor) -> Tensor:
        """Return the most likely token of each row of logits [N, V]."""
        return scores.argmax(1)

    def default_metric(self) -> str:
        """Cross-entropy in nats a token; smaller is better."""
        return "cross-entropy"


TASKS.add("language-modelling", LanguageTask())


@dataclass(frozen=True)
class TokenChunk:
    """Tokens that a model reads at once.

    Parameters
    ----------
    ids : list of int
        At most `task.max-length`.
    first : int
        Those from here on are in the loss; at least 1.
    """

    ids: list[int]
    first: int


def token_chunks(tokenizer: Any, prompt: str | None, text: str, max_length: int) -> list[TokenChunk]:
    """Return a sample's chunks: one where it fits, otherwise such that each token is in the loss once.

    A sample that is longer than `max_length` is read in chunks of `max_length` tokens that advance by half of it, so
    that each token in the loss sees at least half a chunk before it. Samples are never packed together.

    Parameters
    ----------
    tokenizer
        transformers' tokenizer. With a chat template, prompt and response are a user's and an assistant's message;
        otherwise they are tokenized apart, one after the other. The end of text is in the loss, where there is one.
    prompt : str or None
        What is not in the loss; None: a plain text.
    text : str
        The response, or the plain text.
    max_length : int
        Tokens of a chunk.

    Raises
    ------
    DataError
        There is no token that another precedes.
    """
    ids, first = _tokens(tokenizer, prompt, text)
    if len(ids) <= first:
        raise DataError("a sample has no token to predict; remove empty texts from the data")
    chunks = []
    while first < len(ids):
        end = len(ids) if len(ids) <= max_length else min(len(ids), first + max_length // 2)
        start = max(0, end - max_length)
        chunks.append(TokenChunk(ids[start:end], first - start))
        first = end
    return chunks


def num_loss_tokens(tokenizer: Any, samples: Samples, contract: TaskContract) -> list[int]:
    """Return how many tokens of each sample are in the loss; 0 where there is none to predict."""
    counts = []
    for prompt, text in _prompts(samples, contract):
        ids, first = _tokens(tokenizer, prompt, text)
        counts.append(max(0, len(ids) - first))
    return counts


def all_tokens(tokenizer: Any, samples: Samples, contract: TaskContract) -> list[list[int]]:
    """Return all tokens of each sample, in its prompt."""
    return [_tokens(tokenizer, prompt, text)[0] for prompt, text in _prompts(samples, contract)]


def chunks_of(tokenizer: Any, samples: Samples, contract: TaskContract) -> list[list[TokenChunk]]:
    """Return the chunks of each sample, its prompt filled in: see `token_chunks`."""
    return [token_chunks(tokenizer, prompt, text, contract.max_length) for prompt, text in _prompts(samples, contract)]


def _tokens(tokenizer: Any, prompt: str | None, text: str) -> tuple[list[int], int]:
    """Return a sample's tokens and the first that is in the loss."""
    if prompt is not None and getattr(tokenizer, "chat_template", None):
        ids, opening = prompt_tokens(tokenizer, prompt), [{"role": "user", "content": prompt}]
        whole = _chat(tokenizer, [*opening, {"role": "assistant", "content": text}], answer=False)
        same = next((i for i, (a, b) in enumerate(zip(ids, whole, strict=False)) if a != b), min(len(ids), len(whole)))
        return whole, max(1, same)
    before = [] if prompt is None else prompt_tokens(tokenizer, prompt)
    after = tokenizer(text, add_special_tokens=prompt is None, verbose=False)["input_ids"]
    end = tokenizer.eos_token_id
    if end is not None and (not after or after[-1] != end):
        after = [*after, end]
    return [*before, *after], max(1, len(before))


def prompt_tokens(tokenizer: Any, prompt: str) -> list[int]:
    """Return the tokens that a response follows, by the tokenizer's chat template where it has one."""
    if getattr(tokenizer, "chat_template", None):
        return _chat(tokenizer, [{"role": "user", "content": prompt}], answer=True)
    tokens: list[int] = tokenizer(prompt, verbose=False)["input_ids"]
    return tokens


def _chat(tokenizer: Any, messages: list[dict[str, str]], *, answer: bool) -> list[int]:
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=answer, tokenize=False)
    tokens: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return tokens


def read_tokens(
    backbone: Backbone, samples: Samples, contract: TaskContract, spec: ExtractionSpec
) -> tuple[list[Tensor], list[Tensor]]:
    """Run samples forward; return what the side network reads and what it is to predict.

    Returns
    -------
    tuple
        Of each sample the activations [T, M, 1, d_b] float32 at the tokens before those in the loss, and the tokens in
        the loss, [T] int64. With `spec.whole_texts` activations at all tokens but the last of each chunk, and what
        they predict, as `core.language.mark_asked` writes it.

    Raises
    ------
    DataError
        A sample has no token to predict.
    SettingsError
        The chunks are longer than the model's positions.
    """
    backbone.check_length(contract.max_length)
    chunks = chunks_of(backbone.tokenizer, samples, contract)
    flat = [chunk for of_sample in chunks for chunk in of_sample]
    extraction = backbone.extract(
        [{"input_ids": chunk.ids} for chunk in flat],
        layers=spec.layers,
        pivot=spec.pivot,
        kept=[slice(0 if spec.whole_texts else chunk.first - 1, len(chunk.ids) - 1) for chunk in flat],
    )
    pieces, activations, labels = iter(extraction.activations), [], []
    for of_sample in chunks:
        activations.append(torch.cat([next(pieces) for _ in of_sample]))
        labels.append(torch.cat([_predicted(chunk, spec) for chunk in of_sample]))
    return activations, labels


def _predicted(chunk: TokenChunk, spec: ExtractionSpec) -> Tensor:
    ids = torch.tensor(chunk.ids)
    return mark_asked(ids, chunk.first) if spec.whole_texts else ids[chunk.first :]


def _prompts(samples: Samples, contract: TaskContract) -> list[tuple[str | None, str]]:
    if samples.pairs is None:
        return [(None, text) for text in samples.texts]
    prompt = contract.prompt or "{text}"
    return [(prompt.format(text=text), answer) for text, answer in zip(samples.texts, samples.pairs, strict=True)]
