"""Typed settings: one dataclass a part, presets for the papers, validated where they enter.

Settings come from four places, later ones win: the preset, a YAML file (`settings-file`), Flower's run_config
(``-c 'trainer.epochs=5'``) and the inline string `settings` (``-c 'settings="loss.name=logit trainer.epochs=5"'``),
which also reaches keys that an app's `pyproject.toml` does not list. Keys are written in kebab-case or snake_case.
"""

from __future__ import annotations

import copy
import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mobillm_flower.config.compatibility import AUTO, check_settings
from mobillm_flower.config.lists import list_entries, split_words, unquoted_word
from mobillm_flower.config.settings import Settings
from mobillm_flower.errors import SettingsError

PRESETS: dict[str, dict[str, Any]] = {
    # MobiLLM: every token's activations and the label, cross-entropy on the server.
    "mobillm": {"strategy": "mobillm", "activations.pivot": "all", "loss.objective": "label"},
    # PAE MobiLLM: pivot token(s) and a prediction difference, each sample once.
    "pae": {"strategy": "pae", "activations.pivot": "auto", "loss.objective": "difference"},
    # Fed MobiLLM: as PAE; the server trains on every arrival, devices may differ.
    "fed": {"strategy": "fed", "activations.pivot": "auto", "loss.objective": "difference"},
    # No paper's: the backbone's upper layers are the side network; docs/decisions/0014.
    "upper-layers": {
        "strategy": "pae",
        "loss.objective": "difference",
        "loss.name": "logit",
        "side-network.name": "upper-layers",
        "side-network.bottleneck": 16,
        "trainer.batch-size": 16,
        "trainer.epochs": 6,
        "trainer.dropout": 0.0,
        "trainer.weight-decay": 0.1,
        "trainer.validation-share": 0.0,
    },
    # AFL's sums (2405.16240) of a language model's activations; docs/decisions/0019.
    "analytic": {
        "strategy": "analytic",
        "loss.objective": "difference",
        "side-network.name": "closed-form",
        "side-network.random-features": 0,
        "trainer.validation-share": 0.0,
    },
}
"""What each preset sets beyond the defaults, by dotted key."""


def setting_keys() -> list[str]:
    """Return every setting as a dotted key in kebab-case."""
    return list(_known_keys())


@cache
def _known_keys() -> tuple[str, ...]:
    return tuple(kebab(key) for key in _leaves(Settings()))


def is_list(key: str) -> bool:
    """Whether a setting, by its dotted key, is a list."""
    return _snake(key.strip()) in _list_keys()


def setting_key(name: str) -> str:
    """Return a setting's name as a dotted key in kebab-case.

    Raises
    ------
    SettingsError
        There is no such setting; one that is written alike is named.
    """
    known = _known_keys()
    key = kebab(name.strip())
    if key not in known:
        if of_part := next((one for one in known if one.startswith(f"{key}.")), ""):
            raise SettingsError(
                f"{key!r} is a part of the settings and takes no value; give its own, such as {of_part}"
            )
        near = difflib.get_close_matches(key, known, n=1)
        help_ = f"did you mean {near[0]!r}?" if near else "mobillm settings lists them"
        raise SettingsError(f"unknown setting {key!r}; {help_}")
    return key


def load_settings(
    run_config: Mapping[str, Any] | None = None,
    *,
    file: str | Path | None = None,
    overrides: Iterable[str] = (),
) -> Settings:
    """Merge preset, YAML file, run_config and overrides into validated settings.

    Parameters
    ----------
    run_config : mapping, optional
        Flat dotted keys as in Flower's `Context.run_config`. Beside settings it may hold `settings-file` (a YAML
        path) and `settings` (an inline string of ``key=value`` words).
    file : path, optional
        YAML file with nested settings.
    overrides : iterable of str
        ``key=value`` words, as from a command line; they win.

    Raises
    ------
    SettingsError
        A key is unknown (the nearest valid one is named), a value has the wrong type or is out of range.
    """
    merged: dict[str, Any] = {}
    for _, values in _layers(run_config, file, overrides):
        merged |= values
    config = copy.deepcopy(_defaults())
    for key, value in merged.items():
        _set(config, key, value)
    settings = OmegaConf.to_object(config)
    assert isinstance(settings, Settings)
    check_settings(settings)
    return settings


@cache
def _defaults() -> DictConfig:
    """Return all settings as they are by default; a copy is made in a fifth of the time that making them takes."""
    made: DictConfig = OmegaConf.structured(Settings)
    return made


def setting_sources(
    run_config: Mapping[str, Any] | None = None,
    *,
    file: str | Path | None = None,
    overrides: Iterable[str] = (),
) -> dict[str, str]:
    """Return where each setting's value comes from, by dotted key in kebab-case.

    Takes what `load_settings` takes. The sources are "default", "preset NAME", "file", "run config", "inline string"
    and "command line".
    """
    sources = dict.fromkeys(setting_keys(), "default")
    for source, values in _layers(run_config, file, overrides):
        sources |= {setting_key(key): source for key in values}
    return sources


def _layers(
    run_config: Mapping[str, Any] | None, file: str | Path | None, overrides: Iterable[str]
) -> list[tuple[str, dict[str, Any]]]:
    """Return the values of each source under snake_case keys, from the weakest to the strongest."""
    config = {_snake(str(key)): value for key, value in (run_config or {}).items()}
    inline, named = (str(config.pop(key, "") or "") for key in ("settings", "settings_file"))
    file = file or named
    words = _words(map(_inline_word, split_words(inline)))
    layers = [
        ("file", _read_yaml(Path(file)) if file else {}),
        ("run config", config),
        ("inline string", words),
        ("command line", _words(overrides)),
    ]
    preset = Settings.preset
    for _, values in layers:
        preset = str(values.get("preset", preset))
    if preset not in PRESETS:
        raise SettingsError(f"preset={preset!r} is not known; choose one of {', '.join(PRESETS)}")
    return [(f"preset {preset}", {_snake(key): value for key, value in PRESETS[preset].items()}), *layers]


def run_folder(settings: Settings, run_id: int | str) -> Path:
    """Return where a run is kept: `run.folder`, or runs/RUN_ID below MOBILLM_HOME (by default ~/.mobillm).

    Parameters
    ----------
    settings : Settings
        The run's.
    run_id : int or str
        Flower's, from the context.
    """
    if settings.run.folder:
        return Path(settings.run.folder).expanduser()
    return Path(os.environ.get("MOBILLM_HOME", "~/.mobillm")).expanduser() / "runs" / str(run_id)


def to_yaml(settings: Settings) -> str:
    """Return settings as YAML, every key included."""
    return OmegaConf.to_yaml(OmegaConf.create(asdict(settings)))


def _snake(key: str) -> str:
    return key.replace("-", "_")


def kebab(key: str) -> str:
    """Return a field's name as a setting's key has it."""
    return key.replace("_", "-")


def _leaves(part: Any, prefix: str = "") -> list[str]:
    keys: list[str] = []
    for item in fields(part):
        value = getattr(part, item.name)
        if is_dataclass(value):
            keys += _leaves(value, f"{prefix}{item.name}.")
        else:
            keys.append(prefix + item.name)
    return keys


def _words(words: Iterable[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise SettingsError(f"{word!r} is not of the form key=value, such as trainer.epochs=5")
        key = _snake(key.strip())
        values[key] = value.strip() if key in _list_keys() else unquoted(value)
    return values


def _inline_word(word: str) -> str:
    """Return a word of the inline string as a shell would give it, but for the quotes within a list."""
    key, equals, _ = word.partition("=")
    if equals and _snake(key) in _list_keys():
        return word
    return unquoted_word(word)


@cache
def _list_keys() -> frozenset[str]:
    return frozenset(key for key in _leaves(Settings()) if OmegaConf.is_list(OmegaConf.select(_defaults(), key)))


@cache
def _switches() -> frozenset[str]:
    """Return the settings that are on, off, or (None) as the rest of the run suggests."""
    return frozenset(key for key in _leaves(Settings()) if OmegaConf.select(_defaults(), key) is None)


def unquoted(text: str) -> str:
    """Strip blanks and one matching pair of quotes."""
    text = text.strip()
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    return text


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        loaded = OmegaConf.load(path)
    except OmegaConfBaseException as error:
        raise SettingsError(f"settings file {path} holds ${{…}}, which settings cannot; write the values") from error
    except (OSError, ValueError) as error:
        raise SettingsError(f"settings file {path} cannot be read ({type(error).__name__})") from error
    except Exception as error:  # yaml's own errors have no base that omegaconf exports
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        raise SettingsError(f"settings file {path} is not valid YAML ({type(error).__name__}{place})") from error
    if not isinstance(loaded, DictConfig):
        raise SettingsError(f"settings file {path} must hold a mapping of settings")
    container = OmegaConf.to_container(loaded)
    assert isinstance(container, dict)
    return {_snake(key): value for key, value in flat(container).items()}


def flat(nested: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted key, as the keys are written; lists stay whole."""
    result: dict[str, Any] = {}
    for key, value in nested.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return result


def _set(config: DictConfig, key: str, value: Any) -> None:
    shown = setting_key(key)
    current = OmegaConf.select(config, key)
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str) and ("${" in item or item.strip() == "???"):
            raise SettingsError(f"{shown}={value!r} must not hold ${{…}} or ???; write the value itself")
        if isinstance(value, list) and isinstance(item, bool):
            raise SettingsError(f"{shown}={value!r} holds a YAML boolean; put words such as 'yes' in quotes")
        if isinstance(value, list) and not isinstance(item, str | int | float):
            raise SettingsError(f"{shown}={value!r} holds {item!r}; list words or numbers alone")
    if OmegaConf.is_list(current) and isinstance(value, str):  # Flower's run_config has no lists
        entries = list_entries(value)
        value = list_entries(entries[0]) if len(entries) == 1 else entries  # the whole list may be in quotes
    if key in _switches():
        if value not in (None, True, False) and str(value).lower() not in (AUTO, "true", "false"):
            raise SettingsError(f"{shown}={value!r} must be true, false or {AUTO}")
        value = None if str(value).lower() == AUTO else value
    if isinstance(current, str) and not isinstance(value, str | Enum):
        raise SettingsError(f"{shown}={value!r} must be {_wanted(current)}")
    if isinstance(current, bool) and not isinstance(value, bool) and str(value).lower() not in ("true", "false"):
        raise SettingsError(f"{shown}={value!r} must be true or false")
    if isinstance(current, int) and not isinstance(current, bool) and isinstance(value, float | bool):
        raise SettingsError(f"{shown}={value!r} must be a whole number")
    try:
        OmegaConf.update(config, key, value)
    except OmegaConfBaseException as error:
        if value is None or value == "":
            raise SettingsError(
                f"{shown}={value!r} is no value; give one, or leave the key out for its default"
            ) from error
        raise SettingsError(f"{shown}={value!r} must be {_wanted(current)}") from error


def _wanted(current: Any) -> str:
    """Return what a setting takes, by the value that it has by default."""
    if isinstance(current, Enum):
        return f"one of {', '.join(one.value for one in type(current))}"
    if isinstance(current, ListConfig):
        kind = {int: "whole numbers", float: "numbers"}.get(current._metadata.element_type, "words")
        return f"a list of {kind}, with commas between them"
    return "text" if isinstance(current, str) else "a whole number" if isinstance(current, int) else "a number"
