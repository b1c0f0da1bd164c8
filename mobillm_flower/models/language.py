"""A side-tuned language model: what it scores, suggests and writes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mobillm_flower.backbones.attach import Mixer, with_adapters, with_side_output
from mobillm_flower.backbones.head import LanguageHead
from mobillm_flower.core import language
from mobillm_flower.core.language import read_asked
from mobillm_flower.core.side_networks import ActivationBatch, AdaptsBetweenLayers, StepsThroughTokens
from mobillm_flower.errors import DataError, UnsupportedError
from mobillm_flower.tasks.language import prompt_tokens, read_tokens
from mobillm_flower.tasks.metrics import TokenScores
from mobillm_flower.tasks.task import Samples
from mobillm_flower.tasks.words import INSIDE, START, token_kinds, word_ranks

if TYPE_CHECKING:
    from mobillm_flower.models.side_tuned import SideTunedModel

_READ = 64  # texts whose activations are held at a time
_WORD = 8  # tokens of a suggested word at most


def tuned_language_model(model: SideTunedModel) -> Any:
    """See `SideTunedModel.language_model`."""
    network = None if model.side_network is None else copy.deepcopy(model.side_network).to(model.head.device)
    backbone, rule = model.spec.backbone, model.rule
    if model.spec.whole_texts:
        if network is not None and not isinstance(network, AdaptsBetweenLayers):
            raise UnsupportedError(
                f"{type(network).__name__} has no method `between`, so it cannot write token by token"
            )
        between = None if network is None else network.between
        return with_adapters(model.backbone, model.spec.layers[-1], between)

    def tuned(rows: Tensor) -> Tensor:
        side = rows.new_zeros(()) if network is None else network([ActivationBatch(backbone, rows)])
        return rule.scores(side, rows[:, -1])

    stepping: object = network  # mypy takes no nn.Module for one that has the method

    def step(rows: Tensor, before: Tensor | None, seen: Tensor) -> tuple[Tensor, Tensor]:
        assert isinstance(stepping, StepsThroughTokens)
        side, left = stepping.step(ActivationBatch(backbone, rows), before, seen)
        return rule.scores(side, rows[:, -1]), left

    mixer = None
    if isinstance(stepping, StepsThroughTokens):
        mixer = Mixer(step, prompts=bool(model.contract.prompt))
    return with_side_output(model.backbone, model.spec.layers, tuned, mixer)


def generate(model: SideTunedModel, texts: Sequence[str], *, max_new_tokens: int, **options: Any) -> list[str]:
    """See `SideTunedModel.generate`."""
    tokenizer, written = model.tokenizer, model.contract.prompt or "{text}"
    prompts = [_prompt(model, written.format(text=text), max_new_tokens) for text in texts]
    writer = model.language_model
    length = max(map(len, prompts), default=0)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    ids = torch.tensor([[pad] * (length - len(p)) + p for p in prompts], device=writer.device)  # left-padded
    mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts], device=writer.device)
    options = {"max_new_tokens": max_new_tokens, "pad_token_id": pad, "do_sample": False, **options}
    made = writer.generate(input_ids=ids, attention_mask=mask, **options)
    written_texts: list[str] = tokenizer.batch_decode(made[:, length:], skip_special_tokens=True)
    return written_texts


def streamer(tokenizer: Any, say: Callable[[str, bool], None]) -> Any:
    """Return what `generate` takes as its `streamer`: `say` gets the text as it is made, and whether it has ended."""
    from transformers import TextStreamer

    class Said(TextStreamer):  # type: ignore[misc]
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            say(text, stream_end)

    return Said(tokenizer, skip_prompt=True, skip_special_tokens=True)


def _prompt(model: SideTunedModel, text: str, new: int) -> list[int]:
    """Return a prompt's tokens, of plain texts their own; refuses what the model cannot read whole."""
    plain = not model.contract.prompt
    ids: list[int] = (
        model.tokenizer(text, verbose=False)["input_ids"] if plain else prompt_tokens(model.tokenizer, text)
    )
    if not ids:
        raise DataError("there is no text to go on from: the prompt has no token")
    most = model.backbone.positions
    if most and len(ids) + new > most:
        raise DataError(
            f"a prompt has {len(ids)} tokens, and with {new} new ones it is longer than the model's {most} positions; "
            "shorten the text, or ask for fewer new tokens"
        )
    return ids


def token_scores(model: SideTunedModel, samples: Samples) -> TokenScores:
    """See `SideTunedModel.token_scores`."""
    kinds = token_kinds(model.tokenizer)
    log_p, words = [np.zeros(0, np.float32)], [np.zeros(0, np.int64)]
    for start in range(0, len(samples), _READ):
        part = samples.take(range(start, min(len(samples), start + _READ)))
        activations, labels = read_tokens(model.backbone, part, model.contract, model.spec)
        asked, sequences = None, [len(tokens) for tokens in labels]
        if model.spec.whole_texts:
            read = read_asked(torch.cat(labels))
            asked, sequences = read.asked, read.chunks.tolist()
            labels = [read_asked(tokens).labels for tokens in labels]
        inputs = _head_inputs(model, activations, sequences, asked)
        scored = language.token_scores(
            inputs, torch.cat(labels).to(model.head.device), model.head, word_starts(model.head, kinds)
        )
        log_p.append(scored[0].cpu().numpy())
        ranks, best = (torch.split(scores.cpu(), [len(tokens) for tokens in labels]) for scores in scored[1:])
        words += [
            word_ranks(tokens.numpy(), rank.numpy(), first.numpy(), kinds)
            for tokens, rank, first in zip(labels, ranks, best, strict=True)
        ]
    return TokenScores(np.concatenate(log_p), np.concatenate(words))


@torch.inference_mode()
def _head_inputs(
    model: SideTunedModel, activations: Sequence[Tensor], sequences: Sequence[int], asked: Tensor | None = None
) -> Tensor:
    rows = torch.cat(list(activations)).flatten(2)  # [N, M, 1, d_b] -> [N, M, d_b]
    states = model.tuned_states(rows, torch.tensor(sequences))
    return model.head.inputs(states if asked is None else states[asked])


def word_starts(head: LanguageHead, kinds: np.ndarray) -> Tensor:
    """Return which tokens of a head begin a word, [V] bool; `kinds` are of `token_kinds`."""
    starts = torch.zeros(head.vocabulary, dtype=torch.bool)
    count = min(len(kinds), head.vocabulary)
    starts[:count] = torch.from_numpy(kinds[:count] == START)
    return starts


def suggest(model: SideTunedModel, text: str, *, num: int) -> list[tuple[str, float]]:
    """See `SideTunedModel.suggest`."""
    kinds, written = token_kinds(model.tokenizer), model.contract.prompt or "{text}"
    before = _prompt(model, written.format(text=text.rstrip()), _WORD)
    first = 0 if not model.contract.prompt or model.spec.whole_texts else len(before) - 1
    (scores,) = _next(model, [before], first)
    starts = word_starts(model.head, kinds)
    most = scores.masked_fill(~starts, -torch.inf).topk(min(num, int(starts.sum())))
    words = [[token] for token in most.indices.tolist()]
    likely, open_ = most.values.tolist(), list(range(len(words)))
    for _ in range(_WORD - 1):
        if not open_:
            break
        followers = _next(model, [before + words[i] for i in open_], first)
        going_on = []
        for i, row in zip(open_, followers, strict=True):
            token = int(row.argmax())
            if token < len(kinds) and kinds[token] == INSIDE:
                words[i].append(token)
                likely[i] += float(row[token])
                going_on.append(i)
        open_ = going_on
    named = [model.tokenizer.decode(tokens).strip() for tokens in words]
    return [(word, float(np.exp(value))) for word, value in zip(named, likely, strict=True)]


@torch.inference_mode()
def _next(model: SideTunedModel, texts: Sequence[list[int]], first: int) -> Tensor:
    """Return log p of the next token of each text, [B, V]; the side network reads tokens from `first` on."""
    extraction = model.backbone.extract(
        [{"input_ids": ids} for ids in texts],
        layers=model.spec.layers,
        pivot=model.spec.pivot,
        kept=[slice(first, len(ids)) for ids in texts],
    )
    sequences = [len(ids) - first for ids in texts]
    inputs = _head_inputs(model, extraction.activations, sequences)
    ends = torch.tensor(sequences).cumsum(0) - 1
    return model.head.logits(inputs[ends.to(inputs.device)]).log_softmax(1).cpu()
