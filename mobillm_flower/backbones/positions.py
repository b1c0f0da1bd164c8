"""How many tokens a model can place, with or without its weights."""

from __future__ import annotations

from typing import Any

from torch import nn

from mobillm_flower.errors import SettingsError


def num_positions(model: nn.Module) -> int | None:
    """Return how many tokens a model can place; None where there is no limit that it states."""
    config: Any = model.config
    limit: int | None = getattr(config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        if limit and name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            limit -= module.padding_idx + 1  # RoBERTa and its kin count positions from behind the padding's
    return limit


def check_positions(model: nn.Module, name: str, max_length: int, *, words: int = 0) -> None:
    """Refuse samples that are longer than the model's positions.

    Parameters
    ----------
    model : nn.Module
        A backbone, bare or with its head.
    name : str
        As the settings name it.
    max_length : int
        `task.max-length`.
    words : int
        Most tokens of a label word that follow a sample.

    Raises
    ------
    SettingsError
        With the longest that can be.
    """
    positions = num_positions(model)
    if positions and max_length + words > positions:
        also = f" and label words {words + 1}" if words else ""
        raise SettingsError(
            f"task.max-length={max_length}{also}, but {name} has {positions} positions; set task.max-length to at most "
            f"{positions - words}"
        )
