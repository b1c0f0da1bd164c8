"""What a saved side network is loaded from: its folder, and the backbone that it belongs to."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from mobillm_flower.backbones.backbone import Backbone
from mobillm_flower.backbones.options import LoadOptions
from mobillm_flower.config.parts.backbone import ONE_MODEL_TWO_TYPES
from mobillm_flower.core.prediction import PredictionRule
from mobillm_flower.core.side_networks import SideNetworkConfig, state_for
from mobillm_flower.errors import MismatchError, RunFailed
from mobillm_flower.models.saved import (
    CONFIG,
    WEIGHTS,
    choose_type,
    read_config,
    reading,
    saved_backbones,
    saved_contract,
    saved_tasks,
)
from mobillm_flower.runs.events import Evaluation
from mobillm_flower.runs.record import read_run
from mobillm_flower.wire.contract import ExtractionSpec, TaskContract
from mobillm_flower.wire.learned_tasks import LearnedTasks


@dataclass(frozen=True)
class LoadedParts:
    """What a `SideTunedModel` is made of; see there. `metrics` are those of the run that the folder is of."""

    backbone: Backbone
    network: nn.Module
    spec: ExtractionSpec
    contract: TaskContract
    rule: PredictionRule
    side_config: SideNetworkConfig
    tasks: LearnedTasks | None
    metrics: dict[str, float]


def load_parts(
    folder: Path, backbone: Backbone | str, *, precision: str, device: str, token_budget: int, task: str | None
) -> LoadedParts:
    """Load a side network and its backbone, as `SideTunedModel.from_pretrained` says."""
    config, contract, tasks = read_config(folder), saved_contract(folder), saved_tasks(folder)
    predicted = contract
    if task is not None:
        if tasks is None:
            raise MismatchError(f"{folder} has learned one task; leave out the task's name, {task!r}")
        predicted = tasks.contract_of(task) if task else tasks.together
    with reading(folder / CONFIG, "specs"):
        specs = {name: ExtractionSpec.from_json(json.dumps(spec)) for name, spec in config["specs"].items()}
    saved_backbones(folder)  # refused here, if they are damaged
    if not isinstance(backbone, Backbone):
        options = LoadOptions(backbone, precision=precision, device=device, token_budget=token_budget)
        backbone = _load_named(folder, config, options.for_task(predicted))
    of_type = backbone.info.fingerprint
    if of_type not in specs:
        trained_for = ", ".join(f"{known['name']} ({name[:12]})" for name, known in config["backbones"].items())
        raise MismatchError(
            f"{folder}: trained for {trained_for}, not for {backbone.info.name} ({of_type[:12]}, {backbone.info.depth} "
            f"layers); load one of those ({ONE_MODEL_TWO_TYPES})"
        )
    with reading(folder / CONFIG, "side_network"):
        side_config = SideNetworkConfig.from_dict(config["side_network"]).only(of_type)
        network = side_config.build()
    with reading(folder / WEIGHTS, "weights"):
        network.load_state_dict(state_for(load_file(folder / WEIGHTS), of_type))
    with reading(folder / CONFIG, "prediction"):
        rule = PredictionRule(**config["prediction"])
    return LoadedParts(
        backbone, network, specs[of_type], contract, rule, side_config, tasks, metrics=_run_metrics(folder)
    )


def _load_named(folder: Path, config: dict[str, Any], options: LoadOptions) -> Backbone:
    """Load the backbone that is named, or the one that the folder names."""
    named, info = choose_type(options.name, list(config["backbones"].values()))
    if not named and not info["name"]:
        raise MismatchError(
            f"{folder / CONFIG} does not say which model its backbone {info['fingerprint'][:12]} is, since the "
            "server's settings did not name it; give it as backbone="
        )
    from mobillm_flower.backbones.load import load_with  # loads transformers

    return load_with(
        replace(
            options,
            name=named or info["name"],
            revision=info.get("revision", ""),
            layers=info["depth"],
            precision=options.precision or info["precision"],
        )
    )


def _run_metrics(folder: Path) -> dict[str, float]:
    """Return the devices' metrics of the run whose side network this is; none where it is no run's, or has none."""
    try:
        last = read_run(folder.parent).last(Evaluation) if folder.name == "side_network" else None
    except RunFailed:
        return {}
    return {name: float(value) for name, value in last.metrics.items()} if last else {}
