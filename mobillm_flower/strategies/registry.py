"""Strategies by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mobillm_flower.config import Settings
from mobillm_flower.core.registry import Registry

STRATEGIES: Registry[Callable[..., Any]] = Registry("strategy")
"""Strategies by the name that `strategy` gives."""


def make_strategy(settings: Settings, *, run_path: str | Path | None = None) -> Any:
    """Return the strategy that the settings name.

    Parameters
    ----------
    settings : Settings
        From `load_settings`.
    run_path : path, optional
        The run's folder; by default `run.folder`, or one named by the run id.
    """
    return STRATEGIES[settings.strategy](settings, run_path=run_path)
