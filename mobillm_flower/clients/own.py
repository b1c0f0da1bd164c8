"""What a device takes from a run and what is its own: settings, policy, data, folder.

A node is *a device of its own* where its node config names `device-folder`, `policy` or a `privacy` setting. It opens
no file, folder or model that only the run names. Any other node is part of the run, as in a simulation, and takes all
of it from there.
"""

from __future__ import annotations

import dataclasses
import traceback
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.clientapp import ClientApp

from mobillm_flower.backbones.sources import BACKBONE_SOURCES
from mobillm_flower.config import CHOOSERS, Settings, load_settings, run_folder, setting_key
from mobillm_flower.config.compatibility import check_settings
from mobillm_flower.errors import DataError, MismatchError, MobiLLMError, PolicyRefused, ReleaseRefused, SettingsError
from mobillm_flower.privacy.device_folder import DeviceFolder
from mobillm_flower.privacy.policy import Policy, read_policy
from mobillm_flower.runs.folder import RunFolder
from mobillm_flower.tasks import LocalData, both_splits, load_local_data, read_rows
from mobillm_flower.tasks.task import has_classes

LoadData = Callable[[Context], tuple[Any, Any]]

_LOADERS: weakref.WeakKeyDictionary[ClientApp, LoadData] = weakref.WeakKeyDictionary()

_EPSILONS = ("joint_epsilon", "activation_epsilon", "label_epsilon", "central_epsilon")
_PROMISES = (*_EPSILONS, "budget", "delta", "max_releases")
_FREE = frozenset({"source", "max_samples", "num_devices", "alpha", "seed", "bad_rows"})  # of `data`: a run may choose


def device_settings(context: Context) -> Settings:
    """Return a device's settings: the run's, overridden by what the node's own config and policy name (dotted keys).

    Where these name an ε, a budget or a δ, δ is the device's own too; with an ε also the budget and other mechanisms.

    Raises
    ------
    SettingsError, PolicyRefused
        The settings cannot be used; a device of its own is asked to open a settings file.
    """
    policy, own = device_policy(context), _own(context)
    run_config = dict(context.run_config)
    file = str(run_config.get("settings-file") or run_config.get("settings_file") or "")
    if file and is_own(context) and file not in policy.files:
        raise PolicyRefused(
            "this device opens no settings-file that a run names; give the settings in the run config, or list the "
            "file in the device's policy"
        )
    settings = load_settings(run_config, overrides=[f"{key}={_word(value)}" for key, value in own.items()])
    private, acts = settings.privacy, settings.activations
    named = {setting_key(key) for key in own}
    pinned = {name for name in _PROMISES if f"privacy.{name.replace('_', '-')}" in named}
    if pinned - {"max_releases"} or policy.promises:
        changes: dict[str, Any] = {}
        if "delta" not in pinned:
            changes["delta"] = min(private.delta, policy.delta or type(private)().delta)
        if pinned & set(_EPSILONS):
            changes |= dict.fromkeys({*_EPSILONS, "budget"} - pinned, 0.0)
        settings = dataclasses.replace(settings, privacy=dataclasses.replace(private, **changes))
    noise = {"noise-sigma": "noise_sigma", "clip-norm": "clip_norm"}
    if any(f"activations.{key}" in named for key in noise):
        others: dict[str, Any] = {name: 0.0 for key, name in noise.items() if f"activations.{key}" not in named}
        settings = dataclasses.replace(settings, activations=dataclasses.replace(acts, **others))
    check_settings(settings)
    return settings


def check_run(settings: Settings, context: Context) -> None:
    """Refuse what the device's policy does not agree to, and every path or name of the run that is not the device's.

    Raises
    ------
    PolicyRefused
        With the setting, and what to do on the device.
    """
    if not is_own(context):
        return
    policy, named = device_policy(context), _named(context)
    policy.check(settings)
    if settings.privacy.central_epsilon and policy.limits(settings).budget and not trusts_server(context):
        raise PolicyRefused(
            "privacy.central-epsilon is noise that the server says it adds to exact sums, and this device has a budget "
            "and does not trust the server with it; list central in its policy's mechanisms, or give "
            "privacy.central-epsilon in its node config"
        )
    backbone, defaults = settings.backbone, Settings()
    minima = ("min_samples", "secure_sums_devices") if "privacy.secure-sums" in named else ("min_samples",)
    for name in minima:
        key, least = f"privacy.{name.replace('_', '-')}", getattr(defaults.privacy, name)
        if getattr(settings.privacy, name) < least and key not in named:
            raise PolicyRefused(
                f"{key} of the run is below {least}, and a run can ask this device for more alone; give {key} in its "
                "node config, or in its policy's settings"
            )
    key = "backbone.choices" if backbone.name in CHOOSERS else "backbone.name"
    if key not in named and any(name not in {*BACKBONE_SOURCES, *policy.backbones} for name in backbone.models):
        _refuse(key, "a model", "backbones")
    if backbone.revision and "backbone.revision" not in named:
        _refuse("backbone.revision", "a version of a model", "settings")
    for key, value, default in (
        ("data.source", settings.data.source, defaults.data.source),
        ("activations.public-text", settings.activations.public_text, ""),
        ("privacy.mixing-key", settings.privacy.mixing_key, ""),
    ):
        if value != default and key not in named and value not in policy.files:
            _refuse(key, "a file", "files")
    if promises(context):
        for item in dataclasses.fields(settings.data):  # another encoding, too, makes another text of a row
            key = f"data.{item.name.replace('_', '-')}"
            is_default = getattr(settings.data, item.name) == getattr(defaults.data, item.name)
            if item.name not in _FREE and not is_default and key not in named:
                _refuse(key, "what is read of its rows, and which are for training", "settings")
        for name in ("labels", "label-range"):  # how many rows fit them would be told
            field = name.replace("-", "_")
            if getattr(settings.task, field) != getattr(defaults.task, field) and f"task.{name}" not in named:
                _refuse(f"task.{name}", "labels that its rows are compared with", "settings")
        own_rows = settings.data.source != defaults.data.source
        if own_rows and not settings.task.labels and has_classes(settings):
            raise PolicyRefused(
                "the names of the labels would be read from this device's rows and told as they are; give task.labels "
                "in its node config, or in its policy's settings"
            )
        if "device-folder" not in context.node_config:
            raise PolicyRefused("the node config promises something and names no device-folder, which would keep count")


def promises(context: Context) -> bool:
    """Whether the device itself, not the run alone, promises something of what leaves it."""
    named = _named(context)
    return device_policy(context).promises or any(f"privacy.{name.replace('_', '-')}" in named for name in _PROMISES)


def trusts_server(context: Context) -> bool:
    """Whether noise that a server says it adds to sums counts: the device itself names it, or is part of the run."""
    named = _named(context)
    return not is_own(context) or "privacy.central-epsilon" in named or "central" in device_policy(context).mechanisms


def is_own(context: Context) -> bool:
    """Whether the node is a device of its own, and no part of a simulation."""
    return any(key in ("device-folder", "policy") or key.startswith("privacy.") for key in context.node_config)


def device_policy(context: Context) -> Policy:
    """Return the policy: the file `policy` of the node config names, or policy.yaml in its `device-folder`, or none."""
    named, folder = context.node_config.get("policy"), context.node_config.get("device-folder")
    if named:
        return read_policy(Path(str(named)).expanduser())
    file = Path(str(folder)).expanduser() / "policy.yaml" if folder else None
    return read_policy(file) if file is not None and file.exists() else Policy()


def open_folder(settings: Settings, context: Context) -> DeviceFolder:
    """Open the device's folder under the limits of its policy and settings, with its counter where it has one."""
    counter = context.node_config.get("device-counter")
    return DeviceFolder(
        device_folder(settings, context),
        limits=device_policy(context).limits(settings),
        counter=Path(str(counter)).expanduser() if counter else None,
    )


def device_data(settings: Settings, context: Context, load_data: LoadData | None) -> LocalData:
    """Return a device's samples: what `load_data` gives, or its partition of `data.source`."""
    if load_data is None:
        return load_local_data(settings, *_partition(context))
    return read_rows(*both_splits(load_data(context)), settings)


def note_loader(app: ClientApp, load_data: LoadData | None) -> None:
    """Keep which function a ClientApp's devices load their rows with."""
    if load_data is not None:
        _LOADERS[app] = load_data


def loader_of(app: object) -> LoadData | None:
    """Return that function; None where the devices read `data.source`, or the object is no ClientApp of ours."""
    return _LOADERS.get(app) if isinstance(app, ClientApp) else None


def device_folder(settings: Settings, context: Context) -> Path:
    """Return the device's folder: `device-folder` of its node config, or one per partition in the run's folder."""
    named = context.node_config.get("device-folder")
    if named:
        return Path(str(named)).expanduser()
    partition_id = context.node_config.get("partition-id", context.node_id)
    return RunFolder(run_folder(settings, context.run_id)).device(partition_id)


def told(error: MobiLLMError, context: Context) -> str:
    """Return what a server is told of an error: of a device of its own nothing that depends on its rows or files."""
    kind = type(error).__name__
    if not is_own(context):
        return f"{kind}: {error}"
    if not isinstance(error, MismatchError | PolicyRefused | ReleaseRefused | SettingsError):
        return f"{kind}: this device cannot take part; its own log says why"
    text = f"{kind}: {error}"
    for path in sorted(_paths(context), key=len, reverse=True):  # a folder after what is in it
        text = text.replace(path, "…")
    return text


def unexpected(error: Exception) -> str:
    """Return what an unexpected error is called and where it was raised, without its message, which may hold a text."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"unexpected {type(error).__name__} at {Path(place.filename).name}:{place.lineno} in {place.name}"


def _own(context: Context) -> dict[str, Any]:
    """Return the settings that the node config names, and those of the policy, which win."""
    named = {key: value for key, value in context.node_config.items() if "." in key}
    return {**named, **device_policy(context).settings}


def _named(context: Context) -> set[str]:
    """Return the keys of the settings that the device names itself."""
    return {setting_key(key) for key in _own(context)}


def _paths(context: Context) -> set[str]:
    """Return the paths and hub names that node config and policy name, as they are written and as they are opened."""
    try:
        policy = device_policy(context)
    except PolicyRefused:  # the error that is told may be this one, which names none
        policy = Policy()
    named = [*context.node_config.values(), *policy.settings.values(), policy.files, policy.backbones]
    words = [word for value in named for word in (value if isinstance(value, list | tuple) else [value])]
    paths = {word for word in words if isinstance(word, str) and "/" in word}
    return paths | {str(Path(path).expanduser()) for path in paths}


def _word(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _refuse(key: str, what: str, policy_key: str) -> None:
    raise PolicyRefused(
        f"{key} of the run names {what}, and this device takes none from a run; give {key} in its node config, or "
        f"name it in its policy's {policy_key}"
    )


def _partition(context: Context) -> tuple[int, int]:
    try:
        return int(context.node_config["partition-id"]), int(context.node_config["num-partitions"])
    except (KeyError, ValueError) as error:
        raise DataError(
            "the node config lacks partition-id and num-partitions; start the SuperNode with "
            "--node-config 'partition-id=0 num-partitions=2', or give SideTuningClient(load_data=…)"
        ) from error
