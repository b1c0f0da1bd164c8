"""What the shell offers when the tab key is pressed; nothing heavy is imported for it."""

from __future__ import annotations

import typer


def setting_words(incomplete: str) -> list[tuple[str, str]]:
    """Return `key=` of settings that begin so, with their meanings."""
    return [(f"{key}=", meaning) for key, meaning in setting_names(incomplete)]


def setting_names(incomplete: str) -> list[tuple[str, str]]:
    """Return keys of settings that begin so, with their meanings."""
    from mobillm_flower.config.describe import describe_settings

    start = incomplete.replace("_", "-")
    return [(setting.key, setting.meaning) for setting in describe_settings() if setting.key.startswith(start)]


def presets(incomplete: str) -> list[str]:
    """Return presets that begin so."""
    from mobillm_flower.config import PRESETS

    return [name for name in PRESETS if name.startswith(incomplete)]


def devices(context: typer.Context, incomplete: str) -> list[str]:
    """Return pseudonyms of the run's devices that begin so, as its log tells them."""
    from mobillm_flower.errors import RunFailed
    from mobillm_flower.runs.device_events import DeviceMet, Forgotten
    from mobillm_flower.runs.record import read_run

    try:
        run = read_run(context.params["run"])
    except (RunFailed, KeyError, TypeError):
        return []  # no run there: nothing to offer
    forgotten = {event.device for event in run.all(Forgotten)}
    met = {event.device for event in run.all(DeviceMet)}
    return sorted(name for name in met - forgotten if name.startswith(incomplete))
