"""A comparison on an app's own settings, rows and backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mobillm_flower.config import CHOOSERS, Settings, load_settings, setting_sources
from mobillm_flower.config.describe import setting_values, value_text
from mobillm_flower.core.side_networks.upper_layers import NAME as UPPER_LAYERS
from mobillm_flower.errors import SettingsError, UnsupportedError
from mobillm_flower.evaluation.compare.cells import CENTRAL_LORA, SIDE_TUNING
from mobillm_flower.evaluation.compare.curves import Method, Plan
from mobillm_flower.evaluation.compare.methods import methods
from mobillm_flower.evaluation.compare.task import IID, NATURAL, ComparedTask, partition_name
from mobillm_flower.launch import App
from mobillm_flower.tasks import load_splits
from mobillm_flower.tasks.task import TASKS, predicts_tokens

COMPARED = (*SIDE_TUNING, "fed-lora", "fed-bitfit", "fed-kseed", "split-fed", "upload-all", CENTRAL_LORA)
"""Methods by name."""
OF_LANGUAGE_MODELS = ("mobillm", "pae", "fed", UPPER_LAYERS, "fed-lora", CENTRAL_LORA)
"""Those that model language."""
_UPPER_LAYERS_OF_TOKENS = {
    "strategy": "mobillm",
    "activations.pivot": "all",
    "loss.objective": "label",
    "rounds.window": "256",
    "trainer.epochs": "2",
    "trainer.batch-size": "0",
}
"""Settings of upper layers that predict tokens, over the preset's, which are for classes."""
_OF_ALL = ("backbone", "data", "task")
_OF_SIDE_TUNING = ("activations", "loss", "side-network", "trainer", "rounds", "arrivals", "privacy")
_GIVEN_BY_A_CELL = ("data.num-devices", "data.partition", "data.alpha", "data.seed")
_QUICK_ROWS, _QUICK_TEST, _QUICK_DEVICES, _QUICK_ROUNDS = 300, 200, 3, 3
_MOST_VALIDATION = 500


@dataclass(frozen=True)
class Extent:
    """How much is compared.

    Parameters
    ----------
    seeds, rounds : int
        Seeds, and rounds of a baseline.
    quick : bool
        Few rows, three devices, one seed, three rounds, no trials of learning rates.
    work : Path
        Where finished runs are kept.
    """

    seeds: int
    rounds: int
    quick: bool
    work: Path


def plan_of_app(app: App, words: Sequence[str], names: Sequence[str], extent: Extent) -> Plan:
    """Return what is compared for an app.

    The method with the name of the app's preset is side-tuning as `mobillm run` would run it, but for its learning
    rate, which like that of all others is chosen on rows that nobody trains on.

    Parameters
    ----------
    app : App
        From `read_app`.
    words : sequence of str
        ``key=value``, over the app's own settings.
    names : sequence of str
        Of `COMPARED`; empty: the app's preset, `fed-lora` and `central-lora`, in full also `upper-layers`. A quick look
        at a language model leaves out `central-lora`, too, which trains for minutes.
    extent : Extent
        How much.

    Raises
    ------
    SettingsError
        A method's name is unknown, or settings are wrong.
    UnsupportedError
        A method cannot be compared.
    """
    config = {**app.config, **app.run_config(words)}
    settings, own = load_settings(config), _own_words(config)
    names = list(names) or _usual(settings, quick=extent.quick)
    _check(settings, names)
    train, _ = load_splits(settings.data)
    validation = 0 if extent.quick else min(_MOST_VALIDATION, len(train) // 5)
    rows = len(train) - validation
    task = ComparedTask(
        app.folder.name,
        {key: word for key, word in own.items() if _part(key) in _OF_ALL and key not in _GIVEN_BY_A_CELL},
        min(rows, _QUICK_ROWS) if extent.quick else rows,
        validation,
        _QUICK_TEST if extent.quick else 0,
    )
    made = methods(_QUICK_ROUNDS if extent.quick else extent.rounds, names, trials=not extent.quick)
    devices = settings.data.num_devices
    return Plan(
        tasks=[task],
        methods=[_of_app(method, settings, own, quick=extent.quick) for method in made],
        seeds=range(1 if extent.quick else extent.seeds),
        partitions=[_partition(settings)],
        num_devices=min(devices, _QUICK_DEVICES) if extent.quick else devices,
        common={},
        turns=1 if extent.quick else 3,
        work=extent.work,
    )


def _usual(settings: Settings, *, quick: bool) -> list[str]:
    if predicts_tokens(settings):
        return [settings.preset, *([] if quick else [UPPER_LAYERS]), "fed-lora", *([] if quick else [CENTRAL_LORA])]
    more = [] if quick or settings.preset == UPPER_LAYERS else [UPPER_LAYERS]
    return [settings.preset, *more, "fed-lora", CENTRAL_LORA]


def _check(settings: Settings, names: Sequence[str]) -> None:
    for name in names:
        if name not in COMPARED:
            raise SettingsError(f"--methods {name} is not known; give some of {', '.join(COMPARED)}")
        if predicts_tokens(settings) and name not in OF_LANGUAGE_MODELS:
            raise UnsupportedError(f"{name} does not model language here; compare {', '.join(OF_LANGUAGE_MODELS)}")
    if settings.backbone.name in CHOOSERS:
        raise UnsupportedError(
            f"backbone.name={settings.backbone.name} gives devices several backbones, which baselines cannot have; "
            "name one for all with -c backbone.name=NAME"
        )
    if find_spec("peft") is None and set(names) - set(SIDE_TUNING):
        raise UnsupportedError("LoRA and its kin need `peft`: pip install mobillm-flower")
    _ = TASKS[settings.task.kind]  # an app's own task is known to the app alone


def _part(key: str) -> str:
    return key.partition(".")[0]


def _own_words(config: Mapping[str, Any]) -> dict[str, str]:
    """Return what the app, or the command line, says itself: not defaults, not the preset's."""
    values = setting_values(load_settings(config))
    sources = setting_sources(config).items()
    own = [key for key, source in sources if source != "default" and not source.startswith("preset ")]
    folder = Path(values["data.source"]).expanduser()
    source = str(folder.resolve()) if folder.is_dir() else values["data.source"]
    return {**{key: value_text(values[key]) for key in own}, "data.source": source}


def _partition(settings: Settings) -> str:
    kind = settings.data.partition.value
    return kind if kind in (IID, NATURAL) else partition_name(settings.data.alpha)


def _of_app(method: Method, settings: Settings, own: Mapping[str, str], *, quick: bool) -> Method:
    """Return a method with what the app says of it."""
    if method.name not in SIDE_TUNING:
        peer = {key: word for key, word in own.items() if _part(key) == "peer"}
        return _with(method, {**method.settings, **peer}, "peer.learning-rate")
    if method.name == UPPER_LAYERS and predicts_tokens(settings):
        return replace(method, settings=_UPPER_LAYERS_OF_TOKENS)
    side = {key: word for key, word in own.items() if _part(key) in _OF_SIDE_TUNING}
    if method.name == settings.preset or predicts_tokens(settings):
        method = replace(method, of_pairs={}, trials=[{}] if quick else method.trials)
        if settings.side_network.name in ("auto", "closed-form", "discriminant"):  # as a rule, no learning rate
            method = replace(method, trials=[{}])
        return _with(method, side, "trainer.learning-rate")
    if settings.task.kind == "regression":
        return replace(method, settings={**method.settings, "loss.name": "square"})
    return method


def _with(method: Method, words: Mapping[str, str], rate: str) -> Method:
    """Return a method with settings; a learning rate that is among them is not chosen again."""
    given = {rate: words[rate]} if rate in words else None
    rest = {key: word for key, word in words.items() if key != rate}
    return replace(method, settings=rest, trials=[given] if given else method.trials)
