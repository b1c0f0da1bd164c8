"""Everything that training depends on beside the cached samples, kept in the cache itself.

With it a cache can be trained from again, without Flower and without devices: `replay`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mobillm_flower.core.backbone_info import BackboneInfo
from mobillm_flower.core.language import Head
from mobillm_flower.core.placement import CPU
from mobillm_flower.core.side_networks import SideNetworkConfig, Upper, attach_layers
from mobillm_flower.errors import CacheError, MobiLLMError
from mobillm_flower.runs.events import Epoch
from mobillm_flower.server.batches import BatchLoader
from mobillm_flower.server.cache import ActivationCache
from mobillm_flower.server.objective import fit_targets, make_loss
from mobillm_flower.server.options import TrainerOptions
from mobillm_flower.server.schedule import planned_steps
from mobillm_flower.server.sums import solve_sums
from mobillm_flower.server.trainer import Trainer
from mobillm_flower.wire.contract import ExtractionSpec, TaskContract
from mobillm_flower.wire.learned_tasks import LearnedTasks
from mobillm_flower.wire.sums import SumsSpec

_KEY, _LAST_ROUND, _WARM, _STOPPED = "plan", "last-round", "warm-start", "stopped-after"
_BACKBONES = "backbones"


@dataclass(frozen=True)
class Frozen:
    """What training needs of the public backbone, which the server loads by its own settings.

    Parameters
    ----------
    head : Head or None
        What follows the last layer: language modelling.
    upper : Upper or None
        The layers that a side network with `Needs.upper_layers` runs.
    """

    head: Head | None = None
    upper: Upper | None = None


NOTHING_FROZEN = Frozen()


_READ: dict[str, Callable[[Any], Any]] = {
    "contract": TaskContract.from_json,
    "specs": lambda specs: {name: ExtractionSpec.from_json(spec) for name, spec in specs.items()},
    "side_config": SideNetworkConfig.from_dict,
    "options": lambda values: TrainerOptions(**values),
    "tasks": lambda text: text and LearnedTasks.from_json(text),
}


@dataclass(frozen=True)
class TrainingPlan:
    """What a run fixes when it starts.

    Parameters
    ----------
    contract, specs : TaskContract, dict of str to ExtractionSpec
        The task, and what each backbone type uploads.
    side_config : SideNetworkConfig
        The side network.
    objective, loss, scale : str, str, float
        See `make_loss`.
    options : TrainerOptions
        Optimisation.
    num_threads : int
        torch's threads; bits are equal only for equal counts.
    sums : dict of str to SumsSpec
        How each backbone type's samples are added up, where devices send sums; empty: they send samples.
    tasks : LearnedTasks or None
        Those of a run that goes on with a finished one, the run's own last; None: it has one alone.
    """

    contract: TaskContract
    specs: dict[str, ExtractionSpec]
    side_config: SideNetworkConfig
    objective: str
    loss: str
    scale: float
    options: TrainerOptions
    num_threads: int
    sums: dict[str, SumsSpec] = field(default_factory=dict)
    tasks: LearnedTasks | None = None

    @property
    def trained_contract(self) -> TaskContract:
        """What the side network predicts: the classes of all tasks together, or those of the only one."""
        return self.tasks.together if self.tasks else self.contract

    def store(self, cache: ActivationCache) -> None:
        """Keep the plan in a cache."""
        values: dict[str, Any] = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        values["options"] = dataclasses.asdict(self.options)
        values["tasks"] = self.tasks and self.tasks.to_json()
        values["contract"] = self.contract.to_json()
        values["specs"] = {name: spec.to_json() for name, spec in self.specs.items()}
        values["sums"] = {name: sums.to_json() for name, sums in self.sums.items()}
        values["side_config"] = self.side_config.to_dict()
        cache.set_meta(_KEY, json.dumps(values, sort_keys=True))

    @classmethod
    def of(cls, cache: ActivationCache) -> TrainingPlan | None:
        """Return the plan kept in a cache, or None; raises CacheError where it is damaged."""
        text = cache.meta(_KEY)
        if text is None:
            return None
        part = "plan"
        try:
            values: dict[str, Any] = json.loads(text)
            for part, read in _READ.items():
                values[part] = read(values.get(part) if part == "tasks" else values[part])
            values["sums"] = {name: SumsSpec.from_json(sums) for name, sums in values.get("sums", {}).items()}
            part = "plan"
            return cls(**values)
        except (LookupError, TypeError, ValueError, AttributeError, MobiLLMError) as error:
            raise CacheError(
                f"{cache.file}: {part} of the run's plan is damaged ({type(error).__name__}); move the file away to "
                "start anew"
            ) from error

    def trainer(
        self,
        cache: ActivationCache,
        *,
        scores: Callable[[Tensor, Tensor], Tensor],
        memory_bytes: int,
        checkpoint: Path | None = None,
        on_epoch: Callable[[Epoch], None] = lambda _epoch: None,
        frozen: Frozen = NOTHING_FROZEN,
        device: torch.device = CPU,
    ) -> Trainer:
        """Make a trainer with a fresh side network (or the checkpoint's); a frozen head must be on its device."""
        torch.set_num_threads(self.num_threads)
        network = self.side_config.build()
        attach_layers(network, frozen.upper)
        objective: dict[str, Any] = {
            "objective": self.objective,
            "loss": self.loss,
            "scale": self.scale,
            "label_rates": next(iter(self.specs.values())).protection(self.trained_contract).label_rates,
        }
        return Trainer(
            network=network,
            loader=BatchLoader(
                cache, self.specs, self.contract, memory_bytes=memory_bytes, device=device, tasks=self.tasks
            ),
            loss=make_loss(self.trained_contract, head=frozen.head, **objective),
            fit_targets=partial(fit_targets, self.trained_contract, **objective),
            scores=scores,
            options=self.options,
            checkpoint=checkpoint,
            on_epoch=on_epoch,
            newcomers=self.side_config.joined,
            solve=partial(solve_sums, sums=self.sums, scale=self.scale) if self.sums else None,
        )

    def joined_by(self, spec: ExtractionSpec) -> TrainingPlan:
        """Return the plan with one more backbone type."""
        return dataclasses.replace(
            self,
            specs={**self.specs, spec.backbone: spec},
            side_config=self.side_config.joined_by(spec.backbone, spec.alignment),
        )

    def of_what_is_held(self, cache: ActivationCache, *, width: int) -> TrainingPlan:
        """Return the plan of a run that never met the devices without rows.

        Types without rows leave the side network, and the schedule is laid out for the rows that are left. M stays,
        since the cached layers were chosen with it.

        Parameters
        ----------
        cache : ActivationCache
            With a row at least.
        width : int
            `side-network.width` of the run's settings.
        """
        held, side = cache.rows().names("backbone"), self.side_config
        types = {name: spec for name, spec in side.types.items() if name in held}
        joined = tuple(name for name in side.joined if name in types)
        if first := {name: spec for name, spec in types.items() if name not in joined}:
            shape = {"num_blocks": side.num_blocks, "bottleneck": side.bottleneck, "num_outputs": side.num_outputs}
            chosen = SideNetworkConfig.of(first, width=width, name=side.name, **shape)
            side = dataclasses.replace(side, width=chosen.width, identity_alignment=chosen.identity_alignment)
        return dataclasses.replace(
            self,
            specs={name: spec for name, spec in self.specs.items() if name in types},
            sums={name: sums for name, sums in self.sums.items() if name in types},
            side_config=dataclasses.replace(side, types=types, joined=joined),
            options=_planned_for(cache, self.options),
        )


def plan_what_is_held(trainer: Trainer) -> None:
    """Lay the learning rate's schedule out for the samples that are held: what devices say they have is a hint.

    Before the first epoch, when nothing more is asked for; steps that overlapped with rounds keep the schedule of the
    hints. It depends on the cache alone.
    """
    trainer.options = _planned_for(trainer.loader.cache, trainer.options)


def _planned_for(cache: ActivationCache, options: TrainerOptions) -> TrainerOptions:
    """Return options with the steps that are planned for the samples and rounds of a cache."""
    steps = planned_steps(
        len(cache),
        epochs=options.epochs,
        batch_size=options.batch_size,
        validation_share=options.validation_share,
        rounds=last_round(cache),
        overlap_steps=options.overlap_steps,
    )
    return dataclasses.replace(options, planned_steps=steps)


def note_backbones(cache: ActivationCache, backbones: Mapping[str, BackboneInfo]) -> None:
    """Remember what types are, by fingerprint: their devices may be away when the side network is saved."""
    known = {**known_backbones(cache), **backbones}
    values = {name: dataclasses.asdict(info) for name, info in known.items()}
    cache.set_meta(_BACKBONES, json.dumps(values, sort_keys=True))


def known_backbones(cache: ActivationCache) -> dict[str, BackboneInfo]:
    """Return what was noted of backbone types, by fingerprint."""
    return cache.read_meta(_BACKBONES, _backbones, default={})


def _backbones(text: str) -> dict[str, BackboneInfo]:
    return {name: BackboneInfo(**info) for name, info in json.loads(text).items()}


def note_round(cache: ActivationCache, round_: int) -> None:
    """Remember that a round was finished."""
    cache.set_meta(_LAST_ROUND, str(round_))


def last_round(cache: ActivationCache) -> int:
    """Return the last finished round, 0 before the first."""
    return cache.read_meta(_LAST_ROUND, int, default=0)


def note_stop(cache: ActivationCache, steps: int | None) -> None:
    """Remember that training was ended after so many steps, before its schedule was; None: it was not."""
    cache.set_meta(_STOPPED, "" if steps is None else str(steps))


def note_warm_start(cache: ActivationCache) -> None:
    """Remember that training began from weights that are not in the cache, so that it cannot be replayed."""
    cache.set_meta(_WARM, "yes")


def can_replay(cache: ActivationCache) -> bool:
    """Whether `replay` can train the run's side network again."""
    return cache.meta(_KEY) is not None and cache.meta(_WARM) is None and cache.num_deleted is None


def replay(
    cache: ActivationCache,
    *,
    scores: Callable[[Tensor, Tensor], Tensor],
    memory_bytes: int = 1 << 30,
    frozen: Frozen = NOTHING_FROZEN,
    device: torch.device = CPU,
) -> nn.Module:
    """Train from a complete cache in one place, by the run's own schedule; returns the side network, on the CPU.

    Parameters
    ----------
    cache, scores, memory_bytes, frozen, device
        As in `TrainingPlan.trainer`.

    Raises
    ------
    CacheError
        The cache holds no plan, or the run began from weights that it was given.
    """
    plan = TrainingPlan.of(cache)
    if plan is None or not can_replay(cache):
        raise CacheError(f"{cache.file} holds no run that can be replayed: no plan, or it began from given weights")
    trainer = plan.trainer(cache, scores=scores, memory_bytes=memory_bytes, frozen=frozen, device=device)
    train_again(trainer)
    return trainer.network.to(CPU)


def train_again(trainer: Trainer) -> None:
    """Take all of a finished run's steps, with a trainer of its plan."""
    cache = trainer.loader.cache
    for round_ in range(1, last_round(cache) + 1):
        while trainer.overlap_step(round_):
            pass
    plan_what_is_held(trainer)
    stopped = cache.read_meta(_STOPPED, lambda text: int(text) if text else None, default=None)
    trainer.run_epochs(stop=lambda: stopped is not None and trainer.position.steps >= stopped)
