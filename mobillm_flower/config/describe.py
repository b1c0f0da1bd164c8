"""What each setting is, in words: for the page `docs/reference/settings.md` and for `mobillm settings`.

Everything is read off the dataclasses of `config`; meanings are those under "Parameters" in their docstrings.
"""

from __future__ import annotations

import inspect
import re
import typing
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from operator import attrgetter
from typing import Any

from mobillm_flower.config import PRESETS, Settings, list_text, setting_keys
from mobillm_flower.config.compatibility import AUTO
from mobillm_flower.config.load import kebab


@dataclass(frozen=True)
class SettingDescription:
    """One setting.

    Parameters
    ----------
    key : str
        Dotted, in kebab-case.
    type : str
        In words: "whole number", "one of iid, dirichlet".
    allowed : str
        The range or names that the settings' check holds it to; empty: any of its type.
    default : object
        Text, number, boolean or a list of these.
    presets : dict of str to object
        What each preset sets that is not the default.
    meaning : str
        One or a few sentences.
    """

    key: str
    type: str
    allowed: str
    default: Any
    presets: dict[str, Any]
    meaning: str

    @property
    def part(self) -> str:
        """The part it belongs to: "trainer" of "trainer.epochs", empty for `preset` and `strategy`."""
        return self.key.rpartition(".")[0]


def describe_settings() -> list[SettingDescription]:
    """Return every setting, in the order of the dataclasses."""
    defaults = Settings()
    parts = {item.name: getattr(defaults, item.name) for item in fields(defaults)}
    described = _describe(defaults, [name for name, part in parts.items() if not is_dataclass(part)], "")
    for name, part in parts.items():
        if is_dataclass(part):
            described += _describe(part, [leaf.name for leaf in fields(part)], f"{name}.")
    return described


def part_summaries() -> dict[str, str]:
    """Return what each part is about, by its name in kebab-case."""
    parts = {item.name: getattr(Settings(), item.name) for item in fields(Settings)}
    return {
        kebab(name): " ".join((type(part).__doc__ or "").split("\n\n")[0].split())
        for name, part in parts.items()
        if is_dataclass(part)
    }


def setting_values(settings: Settings) -> dict[str, Any]:
    """Return the values of settings by dotted key in kebab-case: text, numbers, booleans and lists of these."""
    return {key: plain(attrgetter(key.replace("-", "_"))(settings)) for key in setting_keys()}


def plain(value: Any) -> Any:
    """Return a setting's value as JSON has it: a choice is its name."""
    return value.value if isinstance(value, Enum) else value


def value_text(value: Any) -> str:
    """Return a setting's value as it is written in `key=value`; empty for empty text and for no entries."""
    if value is None:
        return AUTO
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return list_text(value)
    return str(plain(value))


def parameters(docstring: str) -> dict[str, str]:
    """Return what a numpy docstring says of each parameter; a line may name several, `width, depth : int`."""
    section = re.search(r"^Parameters\n-+\n(.*?)(?=^\S[^\n]*\n-+$|\Z)", inspect.cleandoc(docstring), re.M | re.S)
    texts: dict[str, str] = {}
    names: list[str] = []
    for line in section.group(1).splitlines() if section else []:
        if line.startswith(" "):
            texts |= {name: f"{texts[name]} {line.strip()}".strip() for name in names}
        else:
            names = [name.strip(" *") for name in line.split(" : ")[0].split(",") if name.strip()]
            texts |= dict.fromkeys(names, "")
    return texts


def _describe(part: Any, names: list[str], prefix: str) -> list[SettingDescription]:
    hints = typing.get_type_hints(type(part))
    meanings = parameters(type(part).__doc__ or "")
    rules = {item.name: ", ".join(item.metadata) for item in fields(part)}
    described = []
    for name in names:
        key, default = prefix + name, plain(getattr(part, name))
        described.append(
            SettingDescription(
                key=kebab(key),
                type=_type(hints[name]),
                default=default,
                presets={
                    preset: values[kebab(key)]
                    for preset, values in PRESETS.items()
                    if values.get(kebab(key), default) != default
                },
                allowed=rules[name],
                meaning=meanings.get(name, ""),
            )
        )
    return described


def _type(hint: Any) -> str:
    if isinstance(hint, type) and issubclass(hint, Enum):
        return "one of " + ", ".join(str(member.value) for member in hint)
    names = {
        str: "text",
        int: "whole number",
        float: "number",
        bool: "true or false",
        bool | None: f"true, false or {AUTO}",
    }
    return names.get(hint) or f"list of {'numbers' if typing.get_args(hint)[0] is not str else 'text'}"
