"""Tasks: rows of a data set to samples, and scores to predictions and metrics.

To add one, register an object with the methods of `Task`; classification, text pairs and regression are here.
A task with a true attribute `per_token` predicts tokens, see `mobillm_flower.tasks.language`.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from mobillm_flower.config import Settings
from mobillm_flower.config.run_compatibility import check_labels, check_pair_column
from mobillm_flower.core.registry import Registry
from mobillm_flower.errors import DataError, SettingsError
from mobillm_flower.tasks.labels import LabelRule, class_names, label_rule, number_of, value_text
from mobillm_flower.tasks.metrics import METRICS, TOKEN_METRICS
from mobillm_flower.tasks.rows import column_of
from mobillm_flower.wire.contract import TaskContract
from mobillm_flower.wire.left_out import BAD_TARGET, NO_LABEL, NO_TEXT, REASONS, UNKNOWN_LABEL


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
    rows : tuple of int, optional
        Their places in the split that they were read from, for messages.
    """

    texts: list[str]
    pairs: list[str] | None
    labels: Tensor
    rows: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Sequence[int]) -> Samples:
        """Return the samples at `indices`, in that order."""
        return Samples(
            [self.texts[i] for i in indices],
            None if self.pairs is None else [self.pairs[i] for i in indices],
            self.labels[list(indices)],
            None if self.rows is None else tuple(self.rows[i] for i in indices),
        )

    def row(self, index: int) -> int:
        """Return where a sample stands in the split that it was read from."""
        return index if self.rows is None else self.rows[index]

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


@runtime_checkable
class LeavesOut(Protocol):
    """A task that says which rows it cannot use, so that these cost no others."""

    def read(
        self, rows: Any, settings: Settings, contract: TaskContract, rule: LabelRule | None
    ) -> tuple[Samples, dict[int, str]]:
        """Return a sample for each row, and why rows cannot be used: place -> key of `wire.left_out.REASONS`."""


TASKS: Registry[Task] = Registry("task")
"""Tasks by the name that `task.kind` gives."""


class Column(list[Any]):
    """A column's values with their feature, which may name the classes."""

    def __init__(self, values: Any, feature: Any) -> None:
        super().__init__(values)
        self.feature = feature

    @property
    def names(self) -> tuple[str, ...]:
        """Names of a ClassLabel column; empty where it is none."""
        return tuple(getattr(self.feature, "names", None) or ())


def label_column(rows: Any, settings: Settings) -> Column:
    """Return the label column of a data set; empty where the task reads none. Raises DataError where it is missing."""
    if predicts_tokens(settings):
        return Column([], None)
    name = settings.data.label_column
    return Column(column_of(rows, name, "data.label-column"), rows.features[name])


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
        names = settings.task.labels or list(getattr(column, "names", ()))
        return tuple(names) or class_names(column, setting=f"data.label-column={settings.data.label_column!r}")

    def samples(self, rows: Any, settings: Settings, contract: TaskContract) -> Samples:
        """Read text, pair and label columns; a row that cannot be used is an error."""
        rule = None
        if not self.regression:
            column, setting = label_column(rows, settings), f"data.label-column={settings.data.label_column!r}"
            rule = label_rule(contract.labels, column, column.names, setting=setting)
        samples, reasons = self.read(rows, settings, contract, rule)
        for i, reason in reasons.items():
            raise DataError(f"row {i} (counted from 0) is one {REASONS[reason]}")
        return samples

    def read(
        self, rows: Any, settings: Settings, contract: TaskContract, rule: LabelRule | None
    ) -> tuple[Samples, dict[int, str]]:
        """Read text, pair and label columns; rows without a text or a label of the contract cannot be used."""
        check_pair_column(settings, needs_pair=self.needs_pair, needs_response=False)
        if "{text_pair}" in contract.prompt and not settings.data.pair_column:
            raise SettingsError(
                f"task.prompt={contract.prompt!r} holds {{text_pair}}; name the column of second texts in "
                "data.pair-column"
            )
        texts, pairs, reasons = read_texts_of(rows, settings)
        column = column_of(rows, settings.data.label_column, "data.label-column")
        labels = [0.0] * len(column)
        for i, value in enumerate(column):
            number = _number(value, contract) if rule is None else rule(value)
            if number is not None:
                labels[i] = number
            elif i not in reasons:
                missing = value_text(value) is None if rule is None else rule.is_missing(value)
                reasons[i] = NO_LABEL if missing else BAD_TARGET if rule is None else UNKNOWN_LABEL
        return Samples(texts, pairs, torch.tensor(labels, dtype=torch.float32 if rule is None else torch.long)), reasons

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
    return _agreed(settings, task.labels(label_column, settings))


def check_task(settings: Settings) -> None:
    """Refuse, before anything is asked of a device, what `make_contract` would refuse of settings alone.

    Class names that only data have, and tasks that are registered on devices alone, are left to devices.

    Raises
    ------
    SettingsError
        As `make_contract`, or a task of two texts has no column for the second.
    """
    if settings.task.kind not in TASKS:
        return
    task = TASKS[settings.task.kind]
    check_pair_column(settings, needs_pair=getattr(task, "needs_pair", False), needs_response=False)
    if settings.task.labels or predicts_tokens(settings) or getattr(task, "regression", False):
        _agreed(settings, task.labels((), settings))
    else:
        _prompt_fields(settings.task.prompt)


def _prompt_fields(prompt: str) -> set[str]:
    """Return what stands in a prompt's braces; raises SettingsError where it is not what a prompt may hold."""
    if not prompt:
        return set()
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
    return fields


def _agreed(settings: Settings, labels: tuple[str, ...]) -> TaskContract:
    task = TASKS[settings.task.kind]
    metric = settings.task.metric if settings.task.metric != "auto" else task.default_metric()
    per_token = predicts_tokens(settings)
    TOKEN_METRICS[metric] if per_token else METRICS[metric]
    fields = _prompt_fields(settings.task.prompt)
    check_labels(settings, labels, predicts_tokens=per_token, pair_in_prompt="text_pair" in fields)
    return _contract(settings, labels, metric, per_token=per_token)


def contract_by_settings(settings: Settings, said: TaskContract) -> TaskContract:
    """Return a contract with all that the server's settings fix.

    Parameters
    ----------
    settings : Settings
        The server's.
    said : TaskContract
        A device's, for what they leave open: labels that are read from data, and of a task that is registered on
        devices alone its metric and whether it predicts tokens.
    """
    per_token, has_labels, metric = said.per_token, True, said.metric
    if settings.task.kind in TASKS:
        task = TASKS[settings.task.kind]
        per_token, has_labels, metric = (
            predicts_tokens(settings),
            not getattr(task, "regression", False),
            task.default_metric(),
        )
    labels = (tuple(settings.task.labels) or said.labels) if has_labels and not per_token else ()
    if settings.task.metric != "auto":
        metric = settings.task.metric
    fixed = _contract(settings, labels, metric, per_token=per_token)
    if per_token and not settings.task.prompt and said.prompt in ("", "{text}"):  # by the columns of a device's data
        return replace(fixed, prompt=said.prompt)
    return fixed


def _contract(settings: Settings, labels: tuple[str, ...], metric: str, *, per_token: bool) -> TaskContract:
    task, regression = settings.task, not labels and not per_token
    # language modelling of plain texts alone has no prompt
    plain = "{text}" if per_token and settings.data.pair_column else ""
    return TaskContract(
        kind=task.kind,
        labels=labels,
        prompt=task.prompt or plain,
        label_words=tuple(task.label_words),
        max_length=task.max_length,
        label_range=tuple(task.label_range) if regression else (),
        metric=metric,
        per_token=per_token,
        chat_template=task.chat_template and bool(task.prompt) and not per_token,
        calibration="" if task.calibration == "none" or not task.label_words else task.calibration,
        whole_words=task.whole_label_words and bool(task.label_words),
    )


def predicts_tokens(settings: Settings) -> bool:
    """Whether the settings' task is language modelling."""
    return bool(getattr(TASKS[settings.task.kind], "per_token", False))


def has_classes(settings: Settings) -> bool:
    """Whether the settings' task is to tell classes apart."""
    return bool(TASKS[settings.task.kind].labels(["0"], settings))


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


def read_texts_of(rows: Any, settings: Settings) -> tuple[list[str], list[str] | None, dict[int, str]]:
    """Return the columns of texts and second texts, and which rows lack one; "" stands for it there.

    Raises
    ------
    DataError
        A column is missing, or holds something else than texts.
    """
    reasons: dict[int, str] = {}
    texts = _texts(rows, settings.data.text_column, "data.text-column", reasons)
    pairs = settings.data.pair_column
    return texts, _texts(rows, pairs, "data.pair-column", reasons) if pairs else None, reasons


def _texts(rows: Any, name: str, setting: str, reasons: dict[int, str]) -> list[str]:
    column = column_of(rows, name, setting)
    others = sorted({type(value).__name__ for value in column if value is not None and not isinstance(value, str)})
    if others and not any(isinstance(value, str) for value in column):
        raise DataError(f"{setting}={name!r} holds values of type {', '.join(others)}, not texts")
    for i, value in enumerate(column):
        if not isinstance(value, str) or not value.strip():
            reasons[i] = NO_TEXT
    return [value if isinstance(value, str) else "" for value in column]


def _number(value: Any, contract: TaskContract) -> float | None:
    """Return a regression's target; None where it is no number in range."""
    low, high = contract.label_range
    number = number_of(value)
    return number if number is not None and low <= number <= high else None
