"""`mobillm settings`: what every setting is, and what is in force."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mobillm_flower.cli import completion
from mobillm_flower.cli.options import AsJson, Config
from mobillm_flower.cli.output import print_rows, say_json
from mobillm_flower.cli.run_paths import run_settings
from mobillm_flower.errors import SettingsError

if TYPE_CHECKING:
    from mobillm_flower.config.describe import SettingDescription

InForce = tuple[dict[str, Any], dict[str, str]]


def settings(
    keys: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY]...",
            help="Settings such as trainer.epochs, or parts such as trainer; all where none is named.",
            autocompletion=completion.setting_names,
        ),
    ] = None,
    run: Annotated[Path | None, typer.Option(help="Show what is in force in this run's folder.")] = None,
    file: Annotated[Path | None, typer.Option(help="Show what is in force with this YAML file.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="Show what is in force with this preset.", autocompletion=completion.presets)
    ] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show settings: type, default and meaning; with an option, also the value in force and where it comes from."""
    chosen = _chosen(keys or [])
    words = ([f"preset={preset}"] if preset is not None else []) + (config or [])
    in_force = None
    if run is not None:
        if file is not None or preset is not None:
            raise SettingsError("--run shows the settings of that run; leave out --file and --preset")
        in_force = _of_run(run_settings(run), words)
    elif file is not None or words:
        in_force = _values(file, words)
    if as_json:
        say_json([_as_json(setting, in_force) for setting in chosen])
    else:
        _print(chosen, in_force)


def _chosen(names: list[str]) -> list[SettingDescription]:
    """Return the settings named, in the order of the reference; a part stands for all of its settings."""
    from mobillm_flower.config import setting_key
    from mobillm_flower.config.describe import describe_settings, part_summaries

    every = describe_settings()
    if not names:
        return every
    parts = {name.replace("_", "-") for name in names} & set(part_summaries())
    keys = {setting_key(name) for name in names if name.replace("_", "-") not in parts}
    return [setting for setting in every if setting.key in keys or setting.part in parts]


def _values(file: Path | None, words: list[str]) -> InForce:
    from mobillm_flower.config import load_settings, setting_sources
    from mobillm_flower.config.describe import setting_values

    return setting_values(load_settings(file=file, overrides=words)), setting_sources(file=file, overrides=words)


def _of_run(file: Path, words: list[str]) -> InForce:
    """Return a run's settings: its file holds every key, so what differs from preset and defaults was set for it."""
    values, sources = _values(file, words)
    unset, unset_sources = _values(None, [f"preset={values['preset']}"])
    unset_sources["preset"] = "default" if values["preset"] == _values(None, [])[0]["preset"] else "run"
    for key, source in sources.items():
        if source == "file":
            sources[key] = unset_sources[key] if values[key] == unset[key] else "run"
    return values, sources


def _as_json(setting: SettingDescription, in_force: InForce | None) -> dict[str, Any]:
    if in_force is None:
        return vars(setting)
    values, sources = in_force
    return {**vars(setting), "value": values[setting.key], "source": sources[setting.key]}


def _print(chosen: list[SettingDescription], in_force: InForce | None) -> None:
    rows = []
    for setting in chosen:
        kind = f"{setting.type}, {setting.allowed}" if setting.allowed else setting.type
        row = [setting.key, _shown(setting.default), kind, setting.meaning]
        if in_force is not None:
            values, sources = in_force
            row[1:1] = [_shown(values[setting.key]), sources[setting.key]]
        rows.append(row)
    columns = ["setting", "default", "type", "meaning"]
    if in_force is not None:
        columns[1:1] = ["in force", "from"]
    print_rows("Settings", columns, rows)


def _shown(value: Any) -> str:
    from mobillm_flower.config.describe import value_text

    return value_text(value).replace("\n", "\\n") or "empty"
