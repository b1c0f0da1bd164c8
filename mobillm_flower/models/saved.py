"""The folder of a saved side network: weights, config.json and a model card, in the manner of a PEFT adapter."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from mobillm_flower.backbones.describe import fingerprint
from mobillm_flower.backbones.sources import resolve_folder
from mobillm_flower.core.backbone_info import BackboneInfo
from mobillm_flower.core.prediction import PredictionRule
from mobillm_flower.core.side_networks import SideNetworkConfig
from mobillm_flower.errors import MobiLLMError, UnsupportedError
from mobillm_flower.models.card import CardFacts, model_card
from mobillm_flower.wire.contract import ExtractionSpec, TaskContract
from mobillm_flower.wire.learned_tasks import LearnedTasks

WEIGHTS = "model.safetensors"
CONFIG, CARD = "config.json", "README.md"
_FORMAT = 1


def saved_contract(folder: str | Path) -> TaskContract:
    """Return the task of a saved side network, without loading any weights.

    Raises
    ------
    UnsupportedError
        The folder holds no side network, or one of another format.
    """
    config = read_config(Path(folder))
    with reading(Path(folder) / CONFIG, "contract"):
        return TaskContract.from_json(json.dumps(config["contract"]))


def saved_backbones(folder: str | Path) -> list[BackboneInfo]:
    """Return the backbone types of a saved side network, without loading any weights.

    Raises
    ------
    UnsupportedError
        The folder holds no side network, or one of another format.
    """
    config = read_config(Path(folder))
    with reading(Path(folder) / CONFIG, "backbones"):
        return [BackboneInfo(**info) for info in config["backbones"].values()]


def saved_tasks(folder: str | Path) -> LearnedTasks | None:
    """Return the tasks of a saved side network that has learned several one after another; otherwise None.

    Raises
    ------
    UnsupportedError
        The folder holds no side network, or one of another format.
    """
    tasks = read_config(Path(folder)).get("tasks")
    with reading(Path(folder) / CONFIG, "tasks"):
        return LearnedTasks.from_json(json.dumps(tasks)) if tasks else None


@contextlib.contextmanager
def reading(file: Path, field: str) -> Iterator[None]:
    """Name file and field in the error where what is read inside is damaged.

    Raises
    ------
    UnsupportedError
        It is.
    """
    try:
        yield
    except MobiLLMError as error:
        raise UnsupportedError(f"{file}: {field}: {error}") from error
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError, OSError) as error:
        raise UnsupportedError(
            f"{file}: {field} is damaged ({type(error).__name__}); copy the folder again from where it was saved"
        ) from error
    except SafetensorError as error:
        raise UnsupportedError(f"{file}: {field} are damaged; copy the folder again from where it was saved") from error


def read_config(folder: Path) -> dict[str, Any]:
    """Return what a saved side network's config.json holds.

    Raises
    ------
    UnsupportedError
        The folder holds no side network, or one of another format.
    """
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UnsupportedError(f"{folder} holds no readable {CONFIG} of a side network") from error
    if not isinstance(config, dict) or config.get("format") != _FORMAT:
        version = config.get("format") if isinstance(config, dict) else None
        raise UnsupportedError(f"{folder}: format {version!r}, this version reads {_FORMAT}")
    return config


def choose_type(named: str, trained: Sequence[dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """Return a name or folder without its @LAYERS, and which of the trained types it is.

    That is found by its weights' fingerprint, whatever it is called.
    """
    if not named:  # a type whose name the server did not know is not the first choice
        return "", next((info for info in trained if info["name"]), trained[0])
    name, at, layers = named.rpartition("@")
    if at and layers.isdecimal():
        named, others = name, {**trained[0], "depth": int(layers)}
        trained = [info for info in trained if info["depth"] == int(layers)] or [others]
    for info in trained:
        folder = resolve_folder(named, info.get("revision", ""))
        if fingerprint(folder, info["family"], info["depth"]) == info["fingerprint"]:
            return named, info
    return named, trained[0]  # of another type: refused after loading, with both fingerprints


def save_side_network(
    folder: str | Path,
    *,
    state: dict[str, Tensor],
    side_config: SideNetworkConfig,
    specs: dict[str, ExtractionSpec],
    backbones: dict[str, BackboneInfo],
    contract: TaskContract,
    rule: PredictionRule,
    tasks: LearnedTasks | None = None,
    facts: CardFacts | None = None,
    where: str = "this folder",
) -> None:
    """Write a side network for one or several backbone types; see `SideTunedModel.save_pretrained`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, folder / WEIGHTS)
    config = {
        "format": _FORMAT,
        "side_network": side_config.to_dict(),
        "specs": {name: dataclasses.asdict(spec) for name, spec in specs.items()},
        "backbones": {name: dataclasses.asdict(info) for name, info in backbones.items()},
        "contract": json.loads(contract.to_json()),
        "prediction": dataclasses.asdict(rule),
        **({"tasks": json.loads(tasks.to_json())} if tasks else {}),
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
    count = sum(tensor.numel() for tensor in state.values())
    card = model_card(count, side_config, backbones, contract, facts or CardFacts(), where)
    (folder / CARD).write_text(card, "utf-8")
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode & 0o777)  # safetensors has a mode of its own
