"""From met devices to a run that can begin: its plan, made or taken over, and a trainer with what it needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from mobillm_flower.config import Settings
from mobillm_flower.config.parts.backbone import ONE_MODEL_TWO_TYPES
from mobillm_flower.core.backbone_info import BackboneInfo
from mobillm_flower.errors import MismatchError
from mobillm_flower.runs.device_events import Forgotten
from mobillm_flower.runs.events import Epoch, Prepared, StartedAgain
from mobillm_flower.server import ActivationCache, Trainer
from mobillm_flower.server.plan import TrainingPlan, note_backbones
from mobillm_flower.server.sums import num_noised_totals
from mobillm_flower.strategies.connections import Connections
from mobillm_flower.strategies.continual import Earlier, task_name
from mobillm_flower.strategies.fleet import Fleet
from mobillm_flower.strategies.frozen_parts import as_named_here, load_frozen_parts, training_device
from mobillm_flower.strategies.lifecycle import StartedRun
from mobillm_flower.strategies.run_plan import (
    Overlap,
    arguments_named,
    differences,
    make_plan,
    prediction_rule,
    require_room,
)
from mobillm_flower.strategies.run_state import OwnEvaluation, RunState
from mobillm_flower.strategies.stopping import Stopping
from mobillm_flower.tasks.extraction import release_guarantee
from mobillm_flower.tasks.sums import sums_guarantee
from mobillm_flower.wire.learned_tasks import LearnedTasks


def prepare(
    started: StartedRun,
    cache: ActivationCache,
    connections: Connections,
    settings: Settings,
    stored: TrainingPlan | None,
    *,
    overlap: Overlap,
    stopping: Stopping,
    own_evaluation: OwnEvaluation,
    earlier: Earlier | None = None,
) -> RunState:
    """Fix what the run keeps fixed, or take it over from the cache of an interrupted run.

    Nothing is written before all that can refuse the settings or the devices is passed. `stored` is the plan of the run
    that is gone on with, see `StartedRun.plan`; `earlier` a finished run whose side network learns another task here.

    Raises
    ------
    MismatchError
        The folder holds a run with other settings or other backbones, or there is no room for the side network.
    CacheError
        The folder's checkpoint cannot be gone on with.
    """
    folder, fleet = started.folder, connections.fleet
    before = stored or (earlier.plan if earlier else None)
    known = {name: b for name, b in fleet.backbones.items() if before is None or name in before.specs}
    if not known and earlier:
        raise MismatchError(
            f"{earlier.folder.path} (continual.after) was a run of {_names(earlier.backbones)}, and the devices have "
            f"{_names(fleet.backbones)}; give them the same backbone ({ONE_MODEL_TWO_TYPES})"
        )
    if not known:
        raise MismatchError(
            f"{folder.path} holds a run with other backbones than those of the devices that are there; connect "
            "one of its devices, or use another run.folder"
        )
    fresh = _fresh_plan(settings, fleet, known, overlap, stored, earlier)
    if stored is not None and (differing := differences(stored, fresh)):
        raise MismatchError(
            f"{folder.path} holds a run with another {', '.join(differing)}; use another run.folder, or the "
            "settings it was started with"
        )

    def on_epoch(epoch: Epoch) -> None:
        stopping.note_accuracy(epoch.validation_accuracy)
        folder.append(epoch)

    plan = stored or fresh
    require_room(plan)
    rule = prediction_rule(plan, send_base=settings.loss.send_base)
    frozen = load_frozen_parts(plan, settings, known)

    def make_trainer(of: TrainingPlan) -> Trainer:
        with arguments_named():
            return of.trainer(
                cache,
                scores=rule.scores,
                memory_bytes=settings.cache.memory_mib << 20,
                checkpoint=folder.checkpoint,
                on_epoch=on_epoch,
                device=training_device(settings),
                frozen=frozen,
            )

    trainer = make_trainer(plan)
    started.keep_settings()
    if earlier:
        earlier.hand_over(cache, settings)
        note_backbones(cache, earlier.backbones)
    elif stored is None and cache.task:  # a start that went on with another run brought no sample
        cache.begin_task(0, None)
    if stored is None:
        plan.store(cache)
    note_backbones(cache, as_named_here(known, settings))
    for device, count in cache.expire(settings.cache.retention_days * 86400).items():
        folder.append(Forgotten(device, count))
    return RunState(folder, cache, connections, plan, rule, trainer, stopping, own_evaluation, make_trainer)


def log_prepared(run: RunState, *, delta: float) -> None:
    """Log what the run keeps fixed, and whether it was interrupted before; the guarantee is for this δ."""
    plan = run.plan
    if plan.sums:
        guarantee = sums_guarantee(next(iter(plan.sums.values())), totals=max(1, num_noised_totals(run.cache)))
    else:
        guarantee = release_guarantee(next(iter(plan.specs.values())), plan.contract, delta=delta)
    prepared = Prepared(
        devices=len(run.fleet),
        num_train=sum(device.description.num_train for device in run.fleet),
        num_blocks=plan.side_config.num_blocks,
        width=plan.side_config.width,
        parameters=run.num_parameters,
        trained_on=run.trainer.loader.device.type,
        planned_steps=plan.options.planned_steps,
        resumed_steps=run.trainer.position.steps,
        layers={name[:12]: list(spec.layers) for name, spec in plan.specs.items()},
        pivots={name[:12]: spec.pivot for name, spec in plan.specs.items()},
        scale=plan.scale,
        guarantee=dataclasses.asdict(guarantee),
    )
    run.folder.append(prepared)
    if run.cache.devices() and not run.trainer.position.finished:
        run.folder.append(StartedAgain("resumes", run.num_held))


def _fresh_plan(
    settings: Settings,
    fleet: Fleet,
    known: dict[str, BackboneInfo],
    overlap: Overlap,
    stored: TrainingPlan | None,
    earlier: Earlier | None,
) -> TrainingPlan:
    """Return the plan that a new run with these settings and devices would have."""
    contract = fleet.agreement.contract
    assert contract is not None  # there is a device
    num_train = fleet.sizes()
    before = stored or (earlier.plan if earlier else None)
    like = next(iter(before.specs.values())) if before else None
    if stored:
        tasks = stored.tasks
    elif earlier:
        tasks = earlier.append(settings, contract)
    else:
        tasks = LearnedTasks.first(task_name(settings), contract) if settings.continual.in_use else None
    fresh = make_plan(settings, contract, known, num_train, overlap=overlap, like=like, tasks=tasks)
    if stored and not settings.trainer.batch_size:  # as it was chosen for the first devices
        fresh = dataclasses.replace(
            fresh, options=dataclasses.replace(fresh.options, batch_size=stored.options.batch_size)
        )
    return earlier.follow(fresh) if earlier else fresh


def _names(backbones: Mapping[str, BackboneInfo]) -> str:
    return ", ".join(f"{info.name} ({name[:12]}, {info.depth} layers)" for name, info in sorted(backbones.items()))
