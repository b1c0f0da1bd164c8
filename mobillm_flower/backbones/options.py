"""What a backbone is loaded with, as one object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any, Protocol

from mobillm_flower.backbones.memory import MemoryPlan


class PredictedTask(Protocol):
    """What a task says about the predictions that a backbone can make by itself; a `TaskContract` does."""

    @property
    def num_outputs(self) -> int:
        """K, the number of scores of a sample."""

    @property
    def labels(self) -> Sequence[str]:
        """Class names, in order; none where no classes are predicted."""

    @property
    def label_words(self) -> Sequence[str]:
        """One word a label, or none."""

    @property
    def whole_words(self) -> bool:
        """Whether all of a label word's tokens count."""

    @property
    def prompt(self) -> str:
        """Template that the texts are filled into, or nothing."""

    @property
    def chat_template(self) -> bool:
        """Whether the prompt is a user's message in the model's chat template."""

    @property
    def per_token(self) -> bool:
        """Whether tokens are predicted."""


@dataclass(frozen=True)
class LoadOptions:
    """How a backbone is loaded; `load_backbone` describes each field.

    Parameters
    ----------
    name, revision : str
        Hub id, local folder, or registered name.
    layers : int
        Keep the first n layers; 0: all.
    precision, device : str
        Number format of the weights; torch device, or "auto".
    token_budget : int
        Most tokens of a forward batch, padding included.
    num_labels, labels, label_words, language_model : int, tuple of str, tuple of str, bool
        What the backbone predicts by itself; see `for_task`.
    whole_words : bool
        Whether all of a label word's tokens count, or the first.
    word_after : {"text", "space", "chat"}
        What a label word follows; after a text it begins with a space.
    engine : str
        "torch" or "onnx".
    plan : MemoryPlan, optional
        How it runs within a memory budget.
    """

    name: str
    revision: str = ""
    layers: int = 0
    precision: str = "fp32"
    device: str = "auto"
    token_budget: int = 4096
    num_labels: int = 0
    labels: tuple[str, ...] = ()
    label_words: tuple[str, ...] = ()
    language_model: bool = False
    whole_words: bool = False
    word_after: str = "text"
    engine: str = "torch"
    plan: MemoryPlan | None = None

    @classmethod
    def of(cls, source: object, **given: Any) -> LoadOptions:
        """Return options from an object's attributes of the same names (settings, a `BackboneInfo`); `given` wins.

        Examples
        --------
        >>> from mobillm_flower.config import BackboneSettings
        >>> LoadOptions.of(BackboneSettings(layers=4), device="cpu").layers
        4
        """
        values = {item.name: getattr(source, item.name) for item in fields(cls) if hasattr(source, item.name)} | given
        return cls(**{name: value.value if isinstance(value, Enum) else value for name, value in values.items()})

    @property
    def streamed(self) -> bool:
        """Whether layers are read from disk one after the other."""
        return self.plan is not None and self.plan.streamed

    def for_task(self, task: PredictedTask) -> LoadOptions:
        """Return these options with what the backbone is to predict by itself: labels, label words, or tokens."""
        return replace(
            self,
            num_labels=task.num_outputs,
            labels=tuple(task.labels),
            label_words=tuple(task.label_words),
            language_model=task.per_token,
            whole_words=task.whole_words,
            word_after="chat" if task.chat_template else "space" if task.prompt[-1:].isspace() else "text",
        )

    def spaced(self, tokenizer: Any) -> bool:
        """Whether a label word begins with a space: not after white space, nor where an answer begins in a chat."""
        answers = self.word_after == "chat" and getattr(tokenizer, "chat_template", None)
        return not answers and self.word_after != "space"
