"""Samples as tokens: in the task's prompt, of which nothing is cut, and without those that have no token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from mobillm_flower.backbones.backbone import Backbone
from mobillm_flower.config import Settings
from mobillm_flower.errors import SettingsError
from mobillm_flower.tasks.data import LocalData, check_left_out
from mobillm_flower.tasks.extraction import compares
from mobillm_flower.tasks.language import all_tokens, num_loss_tokens
from mobillm_flower.tasks.rows import LeftOut
from mobillm_flower.tasks.task import Samples, render
from mobillm_flower.wire.contract import TaskContract
from mobillm_flower.wire.left_out import NO_TOKENS

Tokens = list[dict[str, list[int]]]
_PLACE = "TheTextOfTheMessage"


def tokenize(backbone: Backbone, samples: Samples, contract: TaskContract) -> Tokens:
    """Tokenize samples in the task's prompt, at most `contract.max_length` tokens each.

    Where prompt and text are too long together, the end of the text is cut (of two texts, the longer's): what follows
    it in the prompt, up to where a label word would stand, is always read.

    Raises
    ------
    DataError
        A text has no tokens.
    SettingsError
        The prompt alone is too long, or the model has fewer positions than `max_length`.
    """
    contract = as_read(backbone.tokenizer, contract)
    texts, pairs = render(samples, contract)
    tokens = backbone.tokenize(texts, pairs, contract.max_length)
    if not contract.prompt or _ends_with_its_text(contract.prompt):
        return tokens
    for i, sample in enumerate(tokens):
        if len(sample["input_ids"]) == contract.max_length:  # perhaps more, before it was cut
            fitted = render(_fitted(backbone, samples.take([i]), contract), contract)[0]
            if fitted[0] != texts[i]:
                (tokens[i],) = backbone.tokenize(fitted, None, contract.max_length)
    return tokens


def as_read(tokenizer: Any, contract: TaskContract) -> TaskContract:
    """Return a contract whose prompt is what this model reads: with its chat template around it, where that is asked.

    A model without a template reads the prompt as it is. A token that the tokenizer puts before every text is left to
    it.
    """
    if not contract.chat_template or not getattr(tokenizer, "chat_template", None):
        return replace(contract, chat_template=False)
    message = [{"role": "user", "content": _PLACE}]
    before, _, after = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False).partition(
        _PLACE
    )
    begin = getattr(tokenizer, "bos_token", None)
    if begin and tokenizer("", verbose=False)["input_ids"][:1] == [tokenizer.bos_token_id]:
        before = before.removeprefix(begin)
    before, after = (part.replace("{", "{{").replace("}", "}}") for part in (before, after))
    return replace(contract, prompt=f"{before}{contract.prompt}{after}", chat_template=False)


def check_prompt(tokenizer: Any, contract: TaskContract) -> None:
    """Refuse a prompt that leaves no room for a text; raises SettingsError."""
    contract = as_read(tokenizer, contract)
    if contract.prompt and not contract.per_token:
        alone = _length(tokenizer, contract.prompt.format(text="", text_pair=""))
        if alone >= contract.max_length:
            raise SettingsError(
                f"task.prompt has {alone} tokens by itself, and task.max-length={contract.max_length} leaves no room "
                "for a text; shorten the one, or raise the other"
            )


def uncut_tokens(tokenizer: Any, samples: Samples, contract: TaskContract) -> list[list[int]]:
    """Return the tokens of samples in the task's prompt, however many they are: what is beyond `max_length` is cut.

    Of language modelling nothing is cut: a longer sample is read in several windows.
    """
    if contract.per_token:
        return all_tokens(tokenizer, samples, contract)
    texts, pairs = render(samples, as_read(tokenizer, contract))
    encoded: list[list[int]] = tokenizer(texts, pairs, verbose=False)["input_ids"]
    return encoded


def with_tokens(data: LocalData, backbone: Backbone, settings: Settings) -> LocalData:
    """Return what a device holds without samples of which its tokenizer reads no token; these are counted as left out.

    Raises
    ------
    DataError
        No train sample is left, or `data.bad-rows=refuse` and there are such samples.
    SettingsError
        The prompt leaves no room for a text.
    """
    check_prompt(backbone.tokenizer, data.contract)
    apart = compares(backbone.info, settings)
    bad = {name: _empty(backbone, part, data.contract, apart) for name, part in _splits(data)}
    if not any(bad.values()):
        return data
    rows = {f"{name} {NO_TOKENS}": [part.row(i) for i in bad[name]] for name, part in _splits(data)}
    left_out = LeftOut({**data.left_out.rows, **rows})
    train, test = ([i for i in range(len(part)) if i not in set(bad[name])] for name, part in _splits(data))
    check_left_out(left_out, settings, kept=len(train))
    return replace(
        data,
        train=data.train.take(train),
        test=data.test.take(test),
        train_rows=tuple(data.train_rows[i] for i in train) if data.train_rows else (),
        test_rows=tuple(data.test_rows[i] for i in test) if data.test_rows else (),
        left_out=left_out,
    )


def _splits(data: LocalData) -> list[tuple[str, Samples]]:
    return [("train", data.train), ("test", data.test)]


def _empty(backbone: Backbone, samples: Samples, contract: TaskContract, apart: bool) -> list[int]:
    """Return which samples have no token; `apart`: each text of a pair is read by itself."""
    tokenizer = backbone.tokenizer
    if contract.per_token:
        return [i for i, count in enumerate(num_loss_tokens(tokenizer, samples, contract)) if not count]
    if not len(samples) or tokenizer("", verbose=False)["input_ids"]:
        return []  # begins or ends each text with a token of its own
    texts, pairs = render(samples, as_read(tokenizer, contract))
    first = _has_tokens(backbone, texts)
    if pairs is None:
        return [i for i, has in enumerate(first) if not has]
    second = _has_tokens(backbone, pairs)
    enough: Callable[[bool, bool], bool] = (lambda a, b: a and b) if apart else (lambda a, b: a or b)
    return [i for i, both in enumerate(zip(first, second, strict=True)) if not enough(*both)]


def _has_tokens(backbone: Backbone, texts: Sequence[str]) -> list[bool]:
    encoded = backbone.tokenizer(list(texts), truncation=True, max_length=8, verbose=False)
    return [bool(ids) for ids in encoded["input_ids"]]


def _ends_with_its_text(prompt: str) -> bool:
    return prompt.endswith("{text}") and "{text_pair}" not in prompt


def _length(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, verbose=False)["input_ids"])


def _fitted(backbone: Backbone, sample: Samples, contract: TaskContract) -> Samples:
    """Return a sample whose texts are cut so that they fit into the prompt: to as many characters as do."""
    longest = max(len(text) for text in (*sample.texts, *(sample.pairs or [])))

    def cut(size: int) -> Samples:
        pairs = None if sample.pairs is None else [text[:size] for text in sample.pairs]
        return replace(sample, texts=[text[:size] for text in sample.texts], pairs=pairs)

    def fits(size: int) -> bool:
        return _length(backbone.tokenizer, render(cut(size), contract)[0][0]) <= contract.max_length

    if not fits(0):
        check_prompt(backbone.tokenizer, contract)
    low, high = 0, min(longest, contract.max_length)
    while high < longest and fits(high):
        low, high = high, min(longest, 2 * high)
    if high == longest and fits(longest):
        return sample
    while high - low > 1:  # cut to `low` it fits, to `high` it does not
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return cut(low)
