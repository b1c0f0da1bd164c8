"""A setting that the chosen side network has no use for is refused by name."""

from __future__ import annotations

import pytest
from torch import nn

from mobillm_flower import SIDE_NETWORKS, PaeMobiLLM, load_settings
from mobillm_flower.config import PRESETS
from mobillm_flower.core.side_networks import fields_taken
from mobillm_flower.errors import SettingsError
from mobillm_flower.strategies.run_plan import check_parts

CHANGED = {"width": 48, "bottleneck": 128, "activation": "relu", "random-features": 7}
ADAPTERS = {"width", "bottleneck", "activation"}
UNUSED = {
    "additive": {"random-features"},
    "auto": set(),
    "causal": {"random-features"},
    "closed-form": ADAPTERS,
    "discriminant": {*ADAPTERS, "random-features"},
    "fixed-gates": {"random-features"},
    "low-rank": {"random-features"},
    "o-lora": {"random-features"},
    "oa-adapter": {"random-features"},
    "upper-layers": {"random-features"},
}


@pytest.mark.parametrize("name", UNUSED)
@pytest.mark.parametrize("field", CHANGED)
def test_each_network_says_what_it_does_not_use(name: str, field: str) -> None:
    words = [f"side-network.name={name}", f"side-network.{field}={CHANGED[field]}", "loss.name=logit"]
    settings = load_settings(overrides=words)
    if field not in UNUSED[name]:
        check_parts(settings)
        return
    said = f"side-network.{field}={CHANGED[field]} is not used by side-network.name={name}; leave it out"
    with pytest.raises(SettingsError, match=said):
        check_parts(settings)
    with pytest.raises(SettingsError, match=said):
        PaeMobiLLM(settings)  # before any device is asked


def test_every_built_in_network_is_above() -> None:
    ours = [name for name in SIDE_NETWORKS if SIDE_NETWORKS[name].__module__.startswith("mobillm_flower.")]
    assert sorted(UNUSED) == sorted([*ours, "auto"])


@pytest.mark.parametrize("name", UNUSED)
def test_defaults_are_never_refused(name: str) -> None:
    check_parts(load_settings(overrides=[f"side-network.name={name}", "loss.name=logit"]))


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_never_refused(preset: str) -> None:
    check_parts(load_settings({"preset": preset}))


@pytest.mark.parametrize("key", ["activations.codec", "side-network.codec", "side-network.name"])
def test_a_name_in_no_registry_is_refused_before_any_device_is_asked(key: str) -> None:
    with pytest.raises(SettingsError, match=r"unknown (codec|side network) 'nameless'.* Known: "):
        PaeMobiLLM(load_settings(overrides=[f"{key}=nameless"]))


def test_a_constructor_that_names_nothing_takes_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    class Named(nn.Module):
        def __init__(self, *, types: object, num_outputs: int) -> None: ...

    class Any(nn.Module):
        def __init__(self, **shape: object) -> None: ...

    monkeypatch.setattr(SIDE_NETWORKS, "_entries", {"named": Named, "any": Any})
    assert fields_taken("named") == ("types", "num_outputs")
    assert {"width", "bottleneck", "activation", "seed", "joined"} <= set(fields_taken("any"))
    with pytest.raises(SettingsError, match=r"side-network\.width=48 is not used by side-network\.name=named"):
        check_parts(load_settings(overrides=["side-network.name=named", "side-network.width=48"]))
