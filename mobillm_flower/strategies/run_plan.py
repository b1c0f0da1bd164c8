"""What a run fixes when it starts: task, layers, side network, schedule of the optimisation."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from mobillm_flower.backbones.memory import available_bytes
from mobillm_flower.config import Settings
from mobillm_flower.config.compatibility import ANALYTIC, AUTO, prefers_closed_form, settings_of
from mobillm_flower.config.parts.continual import REPLAY, SEQUENTIAL
from mobillm_flower.config.run_compatibility import check_training, check_used
from mobillm_flower.core.backbone_info import BackboneInfo
from mobillm_flower.core.codecs import CODECS
from mobillm_flower.core.layers import automatic_blocks
from mobillm_flower.core.pivots import PIVOTS
from mobillm_flower.core.prediction import PredictionRule
from mobillm_flower.core.side_networks import SideNetworkConfig, fields_taken, needs_of
from mobillm_flower.core.targets import automatic_scale
from mobillm_flower.errors import MismatchError
from mobillm_flower.server import TrainerOptions
from mobillm_flower.server.plan import TrainingPlan
from mobillm_flower.server.schedule import automatic_batch, planned_steps
from mobillm_flower.strategies.trackers import TRACKERS
from mobillm_flower.tasks.extraction import extraction_spec
from mobillm_flower.tasks.sums import require_task, room_for, sums_spec
from mobillm_flower.tasks.task import check_task
from mobillm_flower.wire.contract import ExtractionSpec, TaskContract
from mobillm_flower.wire.learned_tasks import LearnedTasks
from mobillm_flower.wire.sums import SumsSpec

_TAKEN_BY_EITHER = ("width", "bottleneck", "activation", "random_features")


@dataclass(frozen=True)
class Overlap:
    """Steps that the server takes while devices compute.

    Parameters
    ----------
    rounds : int
        Rounds that such steps will follow, for the learning rate's schedule.
    steps : int
        How many a round.
    fresh_share : float
        See `TrainerOptions`.
    """

    rounds: int = 0
    steps: int = 0
    fresh_share: float = 0.0


NO_OVERLAP = Overlap()
_TIMES_HELD = 6  # trained, averaged and best weights, gradient, two moments
_SHARE_OF_MEMORY = 0.5  # of what is free: samples and the rest need some, too
_SURELY_SMALL = 1 << 24
_KEY_BYTES = 32


arguments_named = partial(
    settings_of,
    activation="side-network.activation",
    width="side-network.width",
    threshold="continual.threshold",
)
"""A context in which what a side network says of its arguments is said of the settings that they come from."""


def make_plan(
    settings: Settings,
    contract: TaskContract,
    backbones: Mapping[str, BackboneInfo],
    num_train: Sequence[int],
    *,
    overlap: Overlap = NO_OVERLAP,
    like: ExtractionSpec | None = None,
    tasks: LearnedTasks | None = None,
) -> TrainingPlan:
    """Fix a run's plan from its settings and from the devices that are there when it starts.

    Parameters
    ----------
    settings : Settings
        The server's.
    contract : TaskContract
        What the fleet agreed on.
    backbones : mapping of str to BackboneInfo
        Types by fingerprint; M is `automatic_blocks` of the shallowest unless the settings name it.
    num_train : sequence of int
        Samples of each device, for the length of the learning rate's schedule.
    overlap : Overlap
        Steps that are taken while devices compute.
    like : ExtractionSpec, optional
        One of a run that is gone on with, of which devices, and so its shallowest backbone or one of two types, may be
        away: its number of layers and their scheme hold.
    tasks : LearnedTasks, optional
        Those of a run that is one of a sequence, the contract's last.

    Raises
    ------
    SettingsError, UnsupportedError
        See `extraction_spec`, `check_used` and `check_training`.
    """
    check_parts(settings)
    specs = _specs(settings, contract, backbones, like)
    first = next(iter(specs.values()))
    sums: dict[str, SumsSpec] = {}
    if settings.strategy == ANALYTIC:
        require_task(contract)
        capacity = room_for(sum(num_train))
        sums = {name: sums_spec(settings, contract, spec, capacity=capacity) for name, spec in specs.items()}
    check_training(
        settings,
        num_types=len(specs),
        pivot=first.pivot,
        every_token=PIVOTS[first.pivot].per_token,
        predicts_tokens=contract.per_token,
        predicts_numbers=contract.is_regression,
        needs=needs_of(chosen_network(settings, contract, specs)),
        num_vectors=first.vectors_per_row,
    )
    return TrainingPlan(
        contract=contract,
        specs=specs,
        side_config=_side_config(settings, contract, specs, backbones, tasks),
        objective=settings.loss.objective.value,
        loss=settings.loss.name,
        scale=settings.loss.scale or automatic_scale((tasks or contract).num_outputs),
        options=_trainer_options(settings, sum(num_train), overlap, per_token=contract.per_token),
        num_threads=settings.trainer.num_threads or (torch.get_num_threads() if computes_on_tokens(specs) else 1),
        sums=sums,
        tasks=tasks,
    )


def _specs(
    settings: Settings, contract: TaskContract, backbones: Mapping[str, BackboneInfo], like: ExtractionSpec | None
) -> dict[str, ExtractionSpec]:
    """Return what each type uploads; all have as many blocks."""
    blocks = settings.activations.num_blocks or len(settings.activations.layers)
    if not blocks and (like or len(backbones) > 1):
        blocks = len(like.layers) if like else automatic_blocks(min(info.depth for info in backbones.values()))
    scheme = like.scheme if like else ""
    return {
        name: extraction_spec(info, settings, num_blocks=blocks, num_outputs=contract.num_outputs, scheme=scheme)
        for name, info in sorted(backbones.items())
    }


def _side_config(
    settings: Settings,
    contract: TaskContract,
    specs: Mapping[str, ExtractionSpec],
    backbones: Mapping[str, BackboneInfo],
    tasks: LearnedTasks | None,
) -> SideNetworkConfig:
    name, first = chosen_network(settings, contract, specs), next(iter(specs.values()))
    taken = fields_taken(name)
    as_sent = settings.strategy == ANALYTIC or any(spec.standardise for spec in specs.values())
    scaled = "vector_scale" in taken and not as_sent and not any(info.causal for info in backbones.values())
    of_some: dict[str, Any] = {
        "random_features": settings.side_network.random_features,
        "vector_scale": scaled,
        "predicts_tokens": contract.per_token,
    }
    if tasks is not None and settings.continual.method not in (REPLAY, SEQUENTIAL):  # it is made for several
        of_some["tasks"] = tasks.sequence.sizes
        of_some["orthogonality"] = settings.continual.orthogonality
        of_some["threshold"] = settings.continual.threshold
    return SideNetworkConfig.of(
        {name: spec.alignment for name, spec in specs.items()},
        name=name,
        width=settings.side_network.width,
        num_blocks=first.row_shape[0],
        bottleneck=settings.side_network.bottleneck,
        num_outputs=first.width if contract.per_token else (tasks or contract).num_outputs,
        activation=settings.side_network.activation,
        input_norm=not as_sent and not scaled,
        seed=settings.run.seed,
        **{field: value for field, value in of_some.items() if field in taken},
    )


def require_room(plan: TrainingPlan) -> None:
    """Raise MismatchError where the machine's memory does not hold the side network and its optimizer.

    A device says how wide and deep its backbone is, and the side network takes its size from that.
    """
    needed, free = _TIMES_HELD * 4 * num_parameters(plan.side_config), available_bytes()
    if needed > _SHARE_OF_MEMORY * free:
        shapes = ", ".join(f"{spec.width} (of {name[:12]})" for name, spec in plan.side_config.types.items())
        raise MismatchError(
            f"the side network would take {needed / 2**30:.1f} GiB in training, and {free / 2**30:.1f} GiB are free: "
            f"{plan.side_config.num_blocks} blocks of width {plan.side_config.width} over backbones of width {shapes}; "
            "set side-network.width or activations.num-blocks lower, or leave out the widest backbone"
        )


def num_parameters(side_config: SideNetworkConfig) -> int:
    """Return how many numbers a side network would have, without making it."""
    width = max(side_config.width, *(spec.width for spec in side_config.types.values()))
    features = sum(spec.num_features for spec in side_config.types.values())
    vectors = features + 4 * side_config.bottleneck + side_config.num_outputs
    if (most := side_config.num_blocks * width * vectors) < _SURELY_SMALL:
        return most  # torch's shapes without data take seconds to load
    with torch.device("meta"), arguments_named():
        network = side_config.build()
    return sum(tensor.numel() for tensor in (*network.parameters(), *network.buffers()))


def check_parts(settings: Settings) -> None:
    """Refuse, before anything is asked of a device, names in no registry and settings that the side network ignores.

    Raises
    ------
    SettingsError
        A name is unknown, or `check_used` or `check_task` objects.
    """
    name = settings.side_network.name
    check_used(settings, _TAKEN_BY_EITHER if name == AUTO else fields_taken(name))
    for codec in (settings.activations.codec, settings.side_network.codec):
        CODECS[codec]
    for tracker in settings.run.trackers:
        TRACKERS[tracker]
    check_task(settings)


def chosen_network(settings: Settings, contract: TaskContract, specs: Mapping[str, ExtractionSpec]) -> str:
    """Return the name of the side network that `side-network.name` means for what the fleet sends."""
    name = settings.side_network.name
    if settings.continual.method not in (REPLAY, SEQUENTIAL):
        return settings.continual.method
    if name != AUTO:
        return name
    solved = prefers_closed_form(settings) and (len(specs) == 1 or settings.strategy == ANALYTIC)
    return "closed-form" if solved and not contract.per_token and not computes_on_tokens(specs) else "additive"


def computes_on_tokens(specs: Mapping[str, ExtractionSpec]) -> bool:
    """Whether a step's work grows with the texts' length; otherwise one thread is fastest, or nearly so."""
    return any(PIVOTS[spec.pivot].per_token for spec in specs.values())


def differences(plan: TrainingPlan, fresh: TrainingPlan) -> list[str]:
    """Return what of a run that is gone on with is not as it was; devices that are away may be missing from `fresh`."""
    mine = plan.side_config
    side_config = dataclasses.replace(
        fresh.side_config,
        types={**mine.types, **fresh.side_config.types},
        joined=mine.joined,
        # with another set of types present, these would be chosen differently
        identity_alignment=mine.identity_alignment,
        width=mine.width if set(fresh.specs) != set(plan.specs) or mine.joined else fresh.side_config.width,
    )
    fresh = dataclasses.replace(
        fresh,
        specs={**plan.specs, **fresh.specs},
        side_config=side_config,
        options=dataclasses.replace(
            fresh.options,
            planned_steps=plan.options.planned_steps,
            validation_key=plan.options.validation_key if fresh.options.validation_key else "",
        ),
        num_threads=plan.num_threads,
        # room is made for the devices that are there first
        sums={
            **plan.sums,
            **{
                name: dataclasses.replace(sums, capacity=plan.sums[name].capacity) if name in plan.sums else sums
                for name, sums in fresh.sums.items()
            },
        },
    )
    names = {"contract": "task", "specs": "extraction", "side_config": "side network", "options": "trainer"}
    return [
        names.get(item.name, item.name)
        for item in dataclasses.fields(TrainingPlan)
        if getattr(plan, item.name) != getattr(fresh, item.name)
    ]


def prediction_rule(plan: TrainingPlan, *, send_base: bool) -> PredictionRule:
    """Return how s(A) and p_b (of tokens: the last hidden state) become a prediction under a plan's objective."""
    if plan.contract.per_token:
        return PredictionRule("square", plan.scale)
    if plan.objective == "difference":
        return PredictionRule(plan.loss, plan.scale)
    loss = "square" if plan.contract.is_regression else "logit"
    return PredictionRule(loss, plan.scale, use_base=send_base)


def _trainer_options(settings: Settings, num_samples: int, overlap: Overlap, *, per_token: bool) -> TrainerOptions:
    trainer = settings.trainer
    batch = trainer.batch_size or automatic_batch(num_samples, epochs=trainer.epochs, per_token=per_token)
    return TrainerOptions.of(
        trainer,
        batch_size=batch,
        overlap_steps=overlap.steps,
        planned_steps=planned_steps(
            num_samples,
            epochs=trainer.epochs,
            batch_size=batch,
            validation_share=trainer.validation_share,
            rounds=overlap.rounds,
            overlap_steps=overlap.steps,
        ),
        seed=settings.run.seed,
        fresh_share=overlap.fresh_share,
        newcomer_steps=settings.arrivals.newcomer_steps,
        validation_key=secrets.token_hex(_KEY_BYTES) if trainer.validation_split == "secret" else "",
    )
