"""Tasks: rows of a data set to samples, and scores to predictions and metrics.

To add one, register an object with the methods of `Task`; classification, text pairs and regression are here.
A task with a true attribute `per_token` predicts tokens, see `mobillm_flower.tasks.language`.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mobillm_flower.config import Settings
from mobillm_flower.config.compatibility import check_labels, check_pair_column
from mobillm_flower.core.registry import Registry
from mobillm_flower.errors import DataError, SettingsError
from mobillm_flower.tasks.metrics import METRICS, TOKEN_METRICS
from mobillm_flower.wire.contract import TaskContract


@dataclass(frozen=True)
class Samples:
    """Samples of a task on one device.

    Parameters
    ----------
    texts : list of str
        First or only text.
    pairs : list of str or None
        Second text of a pair.
    labels : Tensor
        [B] int64 class numbers, or float32 numbers for regression; zeros for language modelling, whose second texts are
        the responses.
    """

    texts: list[str]
    pairs: list[str] | None
    labels: Tensor

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Sequence[int]) -> Samples:
        """Return the samples at `indices`, in that order."""
        return Samples(
            [self.texts[i] for i in indices],
            None if self.pairs is None else [self.pairs[i] for i in indices],
            self.labels[list(indices)],
        )

    def content(self, index: int) -> dict[str, Any]:
        """Return what identifies one sample, for the device's keyed hashes."""
        return {
            "text": self.texts[index],
            "pair": None if self.pairs is None else self.pairs[index],
            "label": self.labels[index].item(),
        }


class Task(Protocol):
    """What the device and the model need of a task."""

    def labels(self, column: Sequence[Any], settings: Settings) -> tuple[str, ...]:
        """Return the class names, from the settings or else from a column of all data; empty for regression."""

    def samples(self, rows: Any, settings: Settings, contract: TaskContract) -> Samples:
        """Turn a `datasets.Dataset` into samples; raises DataError where a row cannot be used."""

    def predictions(self, scores: Tensor) -> Tensor:
        """Turn scores [B, K] into predictions [B]."""

    def default_metric(self) -> str:
        """Name of the metric that is reported first."""


TASKS: Registry[Task] = Registry("task")
"""Tasks by the name that `task.kind` gives."""

_MAX_CLASSES = 1000  # more distinct values than this are texts, not classes; task.labels may name more


class TextTask:
    """Classification or regression of one text or of a pair.

    Parameters
    ----------
    regression : bool
        Whether the target is a number.
    needs_pair : bool
        Whether a second text column must be named.
    """

    def __init__(self, *, regression: bool, needs_pair: bool) -> None:
        self.regression = regression
        self.needs_pair = needs_pair

    def labels(self, column: Sequence[Any], settings: Settings) -> tuple[str, ...]:
        """Return `task.labels`, the names of a ClassLabel column, or its sorted distinct values."""
        if self.regression:
            return ()
        if settings.task.labels:
            return tuple(settings.task.labels)
        names = getattr(getattr(column, "feature", None), "names", None)
        if names:
            return tuple(names)
        values = set(column)
        if not values or None in values:
            what = "holds no rows" if not values else "has a row without a label"
            raise DataError(
                f"data.label-column={settings.data.label_column!r} {what}; name the labels with task.labels"
            )
        if len(values) > _MAX_CLASSES:
            raise DataError(
                f"data.label-column={settings.data.label_column!r} has {len(values)} distinct values, which is no "
                "set of classes; name the column of the labels"
            )
        if all(isinstance(value, int) for value in values):
            return tuple(str(value) for value in range(max(values) + 1))
        return tuple(sorted(str(value) for value in values))

    def samples(self, rows: Any, settings: Settings, contract: TaskContract) -> Samples:
        """Read text, pair and label columns; labels are class names or class numbers."""
        check_pair_column(settings, needs_pair=self.needs_pair, needs_response=False)
        texts = read_text_column(rows, settings.data.text_column, "data.text-column")
        pairs = None
        if settings.data.pair_column:
            pairs = read_text_column(rows, settings.data.pair_column, "data.pair-column")
        column = _column(rows, settings.data.label_column, "data.label-column")
        if self.regression:
            return Samples(texts, pairs, _numbers(column, contract))
        known = {name: i for i, name in enumerate(contract.labels)}
        numbers = [value if isinstance(value, int) else known.get(str(value), -1) for value in column]
        for i, number in enumerate(numbers):
            if not 0 <= number < len(known):
                raise DataError(f"row {i}: its label is none of the {len(known)} in the task contract")
        return Samples(texts, pairs, torch.tensor(numbers, dtype=torch.long))

    def predictions(self, scores: Tensor) -> Tensor:
        """Return the class of the highest score, or the number itself."""
        return scores[:, 0] if self.regression else scores.argmax(1)

    def default_metric(self) -> str:
        """Accuracy, or Spearman correlation for regression."""
        return "spearman" if self.regression else "accuracy"


TASKS.add("classification", TextTask(regression=False, needs_pair=False))
TASKS.add("pairs", TextTask(regression=False, needs_pair=True))
TASKS.add("regression", TextTask(regression=True, needs_pair=False))


def make_contract(settings: Settings, label_column: Sequence[Any]) -> TaskContract:
    """Return what the fleet must agree on, from the settings and (for class names) the data.

    Raises
    ------
    SettingsError
        Unknown task or metric, a prompt without ``{text}``, or not one label word a label.
    """
    task = TASKS[settings.task.kind]
    labels = task.labels(label_column, settings)
    metric = settings.task.metric if settings.task.metric != "auto" else task.default_metric()
    per_token = predicts_tokens(settings)
    TOKEN_METRICS[metric] if per_token else METRICS[metric]
    prompt, fields = settings.task.prompt, set[str]()
    if prompt:
        try:
            parsed = [part for part in string.Formatter().parse(prompt) if part[1] is not None]
        except ValueError as error:
            raise SettingsError(f"task.prompt={prompt!r} has unbalanced braces: {error}") from error
        fields = {name for _, name, _, _ in parsed if name is not None}
        plain = not any(form or conversion for _, _, form, conversion in parsed)
        if "text" not in fields or fields - {"text", "text_pair"} or not plain:
            raise SettingsError(
                f"task.prompt={prompt!r} must hold {{text}}, may hold {{text_pair}}, and nothing else in braces"
            )
    check_labels(settings, labels, predicts_tokens=per_token, pair_in_prompt="text_pair" in fields)
    if not prompt and per_token and settings.data.pair_column:
        prompt = "{text}"  # of plain texts alone it is empty
    regression = not labels and not per_token
    return TaskContract(
        kind=settings.task.kind,
        labels=labels,
        prompt=prompt,
        label_words=tuple(settings.task.label_words),
        max_length=settings.task.max_length,
        label_range=tuple(settings.task.label_range) if regression else (),
        metric=metric,
        per_token=per_token,
    )


def predicts_tokens(settings: Settings) -> bool:
    """Whether the settings' task is language modelling."""
    return bool(getattr(TASKS[settings.task.kind], "per_token", False))


def render(samples: Samples, contract: TaskContract) -> tuple[list[str], list[str] | None]:
    """Return the texts as the backbone reads them: as they are, or filled into the prompt.

    Parameters
    ----------
    samples : Samples
        Texts and, of pairs, second texts.
    contract : TaskContract
        The task, with its prompt.

    Returns
    -------
    tuple
        Texts and second texts; None for these where there are none, or where the prompt holds them.
    """
    if not contract.prompt:
        return samples.texts, samples.pairs
    seconds = samples.pairs or [""] * len(samples)
    return [
        contract.prompt.format(text=text, text_pair=second) for text, second in zip(samples.texts, seconds, strict=True)
    ], None


def measure(scores: Tensor, labels: Tensor, contract: TaskContract) -> float:
    """Return the contract's metric of scores [B, K] against labels [B]."""
    predicted = TASKS[contract.kind].predictions(scores)
    return METRICS[contract.metric](labels.numpy(), predicted.float().numpy().astype(np.float64))


def _column(rows: Any, name: str, setting: str) -> list[Any]:
    if name not in rows.column_names:
        raise DataError(f"{setting}={name!r} is no column; the data has {', '.join(rows.column_names)}")
    return list(rows[name])


def read_text_column(rows: Any, name: str, setting: str) -> list[str]:
    """Return a column of texts; `setting` is what named it. Raises DataError where it is missing or holds others."""
    column = _column(rows, name, setting)
    for i, value in enumerate(column):
        if not isinstance(value, str):
            raise DataError(f"row {i}: {setting}={name!r} holds a {type(value).__name__}, not text")
    return column


def _numbers(column: Sequence[Any], contract: TaskContract) -> Tensor:
    low, high = contract.label_range
    for i, value in enumerate(column):
        if not isinstance(value, int | float) or not low <= value <= high:
            raise DataError(f"row {i}: its target is not a number from {low:g} to {high:g}, the task.label-range")
    return torch.tensor([float(value) for value in column], dtype=torch.float32)
