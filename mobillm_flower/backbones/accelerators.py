"""The torch device that a setting names, checked to be there."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mobillm_flower.errors import SettingsError


def choose_device(
    name: str, *, setting: str = "backbone.device", accelerators: Sequence[str] = ("cuda", "mps")
) -> torch.device:
    """Return the first accelerator that is there, or the CPU, for `auto`; otherwise the device that a setting names.

    Raises
    ------
    SettingsError
        The device is unknown or not there.
    """
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if name == "auto":
        return torch.device(next((kind for kind in accelerators if counts[kind]), "cpu"))
    named = f"auto, cpu, {', '.join(kind.replace('cuda', 'cuda, cuda:N') for kind in accelerators)}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SettingsError(f"{setting}={name!r} must be one of {named}") from error
    if device.type not in ("cpu", *accelerators):
        raise SettingsError(f"{setting}={name!r} must be one of {named}")
    if (device.index or 0) >= counts[device.type]:
        raise SettingsError(f"{setting}={name!r} is not available on this machine; use auto")
    return device
