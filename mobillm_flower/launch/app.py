"""A Flower app's folder, and the settings it would run with."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mobillm_flower.config import Settings, is_list, load_settings, setting_keys, unquoted
from mobillm_flower.errors import SettingsError

_ANOTHER = re.compile(r"""["']\s+[\w.-]+=["']?""")  # Flower takes 'a="x" b="y"' in one word


@dataclass(frozen=True)
class App:
    """A Flower app.

    Parameters
    ----------
    folder : Path
        Where its pyproject.toml is.
    config : mapping
        `[tool.flwr.app.config]`, flat dotted keys.
    components : mapping
        `[tool.flwr.app.components]`: "serverapp" and "clientapp" to "module:name".
    """

    folder: Path
    config: Mapping[str, Any]
    components: Mapping[str, str] = field(default_factory=dict)

    def run_config(self, overrides: Iterable[str]) -> dict[str, Any]:
        """Return what to override in Flower's run_config for ``key=value`` words.

        Flower refuses keys that the app does not list; those go into the app's `settings` string.

        Raises
        ------
        SettingsError
            A word has no ``=``, or the app has no `settings` key to carry a setting that it does not list.
        """
        known = {key.replace("_", "-"): key for key in self.config}
        result: dict[str, Any] = {}
        extra: list[str] = []
        for word in overrides:
            key, equals, value = word.partition("=")
            key, value = key.strip().replace("_", "-"), value.strip() if is_list(key) else unquoted(value)
            if not is_list(key) and _ANOTHER.search(value):
                raise SettingsError(f"{word!r} holds several settings; give -c once for each")
            if not equals:
                raise SettingsError(f"{word!r} is not of the form key=value, such as trainer.epochs=5")
            if key == "settings":
                extra.append(value)
            elif key in known:
                result[known[key]] = _typed(value, self.config[known[key]], key)
            elif "settings" in known or key not in setting_keys():
                extra.append(shlex.quote(f"{key}={value}"))
            else:
                raise SettingsError(
                    f"{self.folder.name} lists neither {key!r} nor `settings` under [tool.flwr.app.config]; add "
                    'settings = "" there, so that every setting can be overridden'
                )
        if extra:
            result["settings"] = " ".join([str(self.config.get("settings", "")), *extra]).strip()
        return result

    def settings(self, overrides: Iterable[str]) -> Settings:
        """Return the settings a run with these overrides would have; raises SettingsError where they are wrong."""
        return load_settings({**self.config, **self.run_config(overrides)})


def read_app(folder: str | Path) -> App:
    """Read an app's pyproject.toml.

    Raises
    ------
    SettingsError
        There is none, or it is no Flower app.
    """
    folder = Path(folder).expanduser().resolve()
    file = folder / "pyproject.toml"
    try:
        parsed = tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(
            f"{file} cannot be read; name the folder of a Flower app, such as examples/quickstart"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{file} is not valid TOML: {error}") from error
    app = parsed.get("tool", {}).get("flwr", {}).get("app")
    if not app:
        raise SettingsError(f"{file} has no [tool.flwr.app]; it is not a Flower app")
    return App(folder, _flatten(app.get("config", {})), app.get("components", {}))


def _typed(value: str, default: Any, key: str) -> Any:
    """Give a word the type that the app's own value has, so that Flower stores it as such."""
    try:
        if isinstance(default, bool):
            if value.lower() not in ("true", "false"):
                raise ValueError
            return value.lower() == "true"
        if isinstance(default, int):
            return int(value)
        if isinstance(default, float):
            return float(value)
    except ValueError as error:
        kind = {bool: "true or false", int: "a whole number"}.get(type(default), "a number")
        raise SettingsError(f"{key}={value!r} must be {kind}; the app has {default!r}") from error
    return value


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
