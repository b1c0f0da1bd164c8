"""Labels by name: which class a value of a label column is.

Names match by name; a number matches the name that is the same number, so that 1 is "1" or "01", and 0.0 is "0". Only
where no name is a number and no value is a name do whole numbers stand for the names' places, and then all of them must
be places. What cannot be matched is no class: nothing is guessed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from mobillm_flower.errors import DataError, SettingsError

MAX_CLASSES = 1000
"""More distinct values than this are texts, not classes; `task.labels` may name more."""

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)


def value_text(value: Any) -> str | None:
    """Return how a value is written as a name; None where there is none: null, NaN, a blank text.

    Examples
    --------
    >>> [value_text(value) for value in (1, 2.0, True, "01", None, float("nan"))]
    ['1', '2', 'true', '01', None, None]
    """
    if hasattr(value, "item") and not getattr(value, "shape", ()):
        value = value.item()  # of NumPy or torch
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return str(int(value)) if value.is_integer() else repr(value)
    text = str(value)
    return text if text.strip() else None


def class_names(values: Iterable[Any], *, setting: str) -> tuple[str, ...]:
    """Return the distinct values of all data as names: numbers in their order, anything else in that of its text.

    Raises
    ------
    DataError
        There is no value, or there are too many for classes.
    """
    distinct = _distinct(values, setting)
    named = {text for value in distinct if (text := value_text(value)) is not None}
    if not named:
        why = "holds no label in any row; name its column" if distinct else "has no rows; give the split rows"
        raise DataError(f"{setting} {why}, or name the labels with task.labels")
    if len(named) > MAX_CLASSES:
        raise DataError(
            f"{setting} has {len(named)} distinct values, which is no set of classes; name the column of the labels"
        )
    if all(_NUMBER.fullmatch(text) for text in named):
        return tuple(sorted(named, key=lambda text: (Decimal(text), text)))
    return tuple(sorted(named))


def names_alike(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return names that differ in capitals and blanks alone, each group together: they may be meant as one class.

    Examples
    --------
    >>> names_alike(["Spam", "ham", "spam ", "spam"])
    [('Spam', 'spam ', 'spam')]
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(" ".join(name.split()).casefold(), []).append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def number_of(value: Any) -> float | None:
    """Return a number, or the one that a text is; None where it is neither."""
    text = value_text(value)
    return float(text) if text is not None and _NUMBER.fullmatch(text) else None


@dataclass(frozen=True)
class LabelRule:
    """Which class a value is; made by `label_rule`.

    Parameters
    ----------
    names : tuple of str
        The contract's, in order.
    own : tuple of str
        Names of a ClassLabel column, whose values are places in it.
    by_place : bool
        Whether whole numbers are places among `names`.
    """

    names: tuple[str, ...]
    own: tuple[str, ...] = ()
    by_place: bool = False
    _exact: dict[str, int] = field(init=False, repr=False, compare=False)
    _equal: dict[object, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        exact = {name: place for place, name in enumerate(self.names)}
        if len(exact) < len(self.names):
            raise SettingsError("task.labels names a class twice; give each name once")
        equal: dict[object, int] = {}
        for name, place in exact.items():
            if (key := _key(name)) is not None:
                equal[key] = -1 if key in equal else place  # two names are one number: only the exact text tells
        object.__setattr__(self, "_exact", exact)
        object.__setattr__(self, "_equal", equal)

    @property
    def any_number(self) -> bool:
        """Whether a name is a number, so that numbers are names."""
        return any(isinstance(key, Decimal) for key in self._equal)

    def text(self, value: Any) -> str | None:
        """Return the name that a value is given as; None: it is none."""
        text = value_text(value)
        if text is None or not self.own:
            return text
        place = _whole(text)
        return self.own[place] if place is not None and 0 <= place < len(self.own) else None

    def named(self, value: Any) -> int | None:
        """Return the class whose name a value is."""
        text = self.text(value)
        if text is None:
            return None
        place = self._exact.get(text)
        if place is None and (key := _key(text)) is not None:
            place = self._equal.get(key, -1)
        return place if place is not None and place >= 0 else None

    def __call__(self, value: Any) -> int | None:
        """Return the class of a value; None: it is no class."""
        place = self.named(value)
        if place is None and self.by_place and (text := self.text(value)) is not None:
            number = _whole(text)
            return number if number is not None and 0 <= number < len(self.names) else None
        return place

    def is_missing(self, value: Any) -> bool:
        """Whether a value says that there is no label: none at all, or a −1 that is no name."""
        text = self.text(value)
        return text is None or (_whole(text) == -1 and self(value) is None)


def label_rule(names: Sequence[str], column: Sequence[Any], own: Sequence[str] = (), *, setting: str) -> LabelRule:
    """Return the rule by which a column's values are classes.

    Parameters
    ----------
    names : sequence of str
        The contract's, in order.
    column : sequence
        Values that tell whether numbers are places: those of the train split, of all data where it is at hand.
    own : sequence of str
        Names of a ClassLabel column.
    setting : str
        What named the column, for errors.

    Raises
    ------
    SettingsError
        A name is given twice.
    DataError
        Numbers are neither names nor places of names, or a ClassLabel column's names are all others.
    """
    rule = LabelRule(tuple(names), tuple(own))
    values = _distinct(column, setting)
    if any(rule.named(value) is not None for value in values):
        return rule
    if own and not rule.any_number and any(_whole(name) is None for name in own):
        if any(rule.text(value) is not None for value in values):
            raise DataError(
                f"{setting} is a ClassLabel column whose names are none of the {len(names)} in task.labels, so that "
                "the order of neither is the other's; give its own names in task.labels, in any order"
            )
        return rule
    texts = {text for value in values if (text := rule.text(value)) is not None}
    numbers = {number for text in texts if (number := _whole(text)) is not None}
    if rule.any_number or not numbers:
        return rule
    outside = {number for number in numbers if not -1 <= number < len(names)}
    if outside or (-1 in numbers and len(names) - 1 not in numbers and numbers != {-1}):
        raise DataError(
            f"{setting} holds numbers that are neither names in task.labels nor all from 0 to {len(names) - 1}, the "
            f"places of its {len(names)} names; give the numbers themselves as names, in the order of the classes"
        )
    return LabelRule(rule.names, rule.own, by_place=True)


def _distinct(values: Iterable[Any], setting: str) -> set[Any]:
    try:
        return set(values)
    except TypeError as error:  # lists, as of several labels a row
        raise DataError(f"{setting} holds lists or mappings; a row has one label, a text or a number") from error


def _whole(text: str) -> int | None:
    """Return the whole number that a text is."""
    if not _NUMBER.fullmatch(text):
        return None
    number = Decimal(text)
    return int(number) if number == number.to_integral_value() else None


def _key(text: str) -> object | None:
    """Return what texts share that mean the same number, or the same truth value."""
    if _NUMBER.fullmatch(text):
        return Decimal(text).normalize() + 0  # -0 is 0
    return text.lower() if text.lower() in ("true", "false") else None
