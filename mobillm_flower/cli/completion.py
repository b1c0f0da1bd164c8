"""What the shell offers when the tab key is pressed; nothing heavy is imported for it."""

from __future__ import annotations

import json
from pathlib import Path

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
    try:
        lines = (Path(context.params["run"]).expanduser() / "events.jsonl").read_text("utf-8").splitlines()
        events = [json.loads(line) for line in lines]
        forgotten = {event["device"] for event in events if event["event"] == "forgotten"}
        met = {event["device"] for event in events if event["event"] == "device"}
    except (OSError, ValueError, KeyError, TypeError):
        return []  # no run there: nothing to offer
    return sorted(name for name in met - forgotten if name.startswith(incomplete))
