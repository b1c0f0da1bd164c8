"""A run that goes on where a finished one ended, with another task: what it takes over, and what it leaves behind."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from mobillm_flower.config import Settings, load_settings
from mobillm_flower.config.compatibility import ANALYTIC
from mobillm_flower.config.parts.continual import ALL, CLOSED_FORM, O_LORA, OA_ADAPTER, REPLAY, SHARE, SUMS
from mobillm_flower.core.backbone_info import BackboneInfo
from mobillm_flower.core.side_networks import ShowsRanks
from mobillm_flower.errors import ArgumentError, InUseError, MismatchError, RunFailed, SettingsError, UnsupportedError
from mobillm_flower.models.saved import WEIGHTS, reading
from mobillm_flower.runs.events import TaskBegun, TaskKept
from mobillm_flower.runs.files import write_atomically
from mobillm_flower.runs.folder import RunFolder
from mobillm_flower.runs.plain import is_plain
from mobillm_flower.runs.record import read_run
from mobillm_flower.server import ActivationCache
from mobillm_flower.server.plan import TrainingPlan, known_backbones, note_warm_start
from mobillm_flower.server.rows import RowRef
from mobillm_flower.strategies.run_state import RunState
from mobillm_flower.wire.contract import TaskContract
from mobillm_flower.wire.learned_tasks import LearnedTasks

_MAX_NAME = 80
_LOADED = ("name", "num_blocks", "bottleneck", "activation", "input_norm", "random_features", "vector_scale", "seed")


def task_name(settings: Settings) -> str:
    """Return what a run's task is called: `continual.task`, or else the source of its data and the label column."""
    data = settings.data
    name = settings.continual.task or ".".join(filter(None, (Path(data.source).stem, data.subset, data.label_column)))
    if len(name) > _MAX_NAME or not is_plain(name):
        raise SettingsError(
            f"continual.task={name[:_MAX_NAME]!r} must be one line of at most {_MAX_NAME} characters; give a short name"
        )
    return name


@dataclass(frozen=True)
class Earlier:
    """A finished run that another one goes on with.

    Parameters
    ----------
    folder : RunFolder
        Its folder.
    plan : TrainingPlan
        Its plan.
    tasks : LearnedTasks
        What it has learned, in order.
    backbones : dict of str to BackboneInfo
        Its backbone types by fingerprint.
    complete : bool
        Whether it kept samples of each task that are not beyond `cache.retention-days`.
    """

    folder: RunFolder
    plan: TrainingPlan
    tasks: LearnedTasks
    backbones: dict[str, BackboneInfo]
    complete: bool

    @classmethod
    def read(cls, settings: Settings) -> Earlier:
        """Read the run that `continual.after` names, and check that these settings can go on with it.

        Raises
        ------
        SettingsError
            There is no such run, its task has this one's name, or it has not kept what `continual.method` needs.
        RunFailed
            It is not completed.
        InUseError
            It goes on.
        UnsupportedError
            Its task has no classes.
        """
        named = settings.continual.after
        folder = RunFolder(named)
        if not folder.settings.is_file() or not folder.cache.is_file():
            raise SettingsError(
                f"continual.after={named!r} is no folder of a run with its settings and cache; name a run's folder, "
                "such as runs/20260101-120000"
            )
        if folder.holder() is not None:
            raise InUseError(f"continual.after={named!r}: the run goes on; wait until it has ended")
        outcome = read_run(folder.path).outcome
        if outcome != "completed" or not folder.side_config.is_file():
            raise RunFailed(
                f"continual.after={named!r}: the run is not finished ({outcome}); start it again with its own settings "
                "and folder, and it goes on"
            )
        with closing(ActivationCache(folder.cache)) as cache:
            plan = TrainingPlan.of(cache)
            backbones = known_backbones(cache)
            oldest = _oldest(settings)
            of_tasks = {held.task for held in cache.holdings() if held.last >= oldest}
        if plan is None:
            raise SettingsError(f"continual.after={named!r} is a run of an older release; learn its task anew")
        sent, asked = ("sums" if sums else "samples" for sums in (plan.sums, settings.strategy == ANALYTIC))
        if sent != asked:
            raise SettingsError(
                f"continual.after={named!r} is a run whose devices sent {sent}, and strategy={settings.strategy} asks "
                f"for {asked}; choose {'analytic' if plan.sums else 'pae or fed'}"
            )
        tasks = plan.tasks or LearnedTasks.first(task_name(load_settings(file=folder.settings)), plan.contract)
        earlier = cls(folder, plan, tasks, backbones, of_tasks >= set(range(len(tasks.names))))
        earlier._check(settings)
        return earlier

    def append(self, settings: Settings, contract: TaskContract) -> LearnedTasks:
        """Return the tasks with the run's own at their end; raises SettingsError where its name is taken."""
        try:
            return self.tasks.append(task_name(settings), contract)
        except ArgumentError as error:
            raise SettingsError(f"continual.task={error.value!r} {error.problem}") from error

    def follow(self, fresh: TrainingPlan) -> TrainingPlan:
        """Return the plan of a run that goes on with this one.

        Parameters
        ----------
        fresh : TrainingPlan
            As the run's settings and its devices make it.

        Raises
        ------
        MismatchError
            Uploads or side network are others than this run's.
        """
        for name, spec in fresh.specs.items():
            self.plan.specs[name].require_same(spec, mine=f"in {self.folder.path}", theirs="in this run")
        mine, theirs = self.plan.side_config, fresh.side_config
        different = [
            f"{name} is {getattr(theirs, name)} in this run, {getattr(mine, name)} in {self.folder.path}"
            for name in _LOADED
            if getattr(mine, name) != getattr(theirs, name) and (name != "seed" or mine.random_features)
        ]
        if different:
            raise MismatchError(
                f"the side network differs: {'; '.join(different)}; give the settings `side-network` and "
                "`continual.method` of the first task"
            )
        side_config = dataclasses.replace(
            theirs,
            types=mine.types,
            joined=mine.joined,
            width=mine.width,
            identity_alignment=mine.identity_alignment,
        )
        return dataclasses.replace(fresh, specs={**self.plan.specs, **fresh.specs}, side_config=side_config)

    def state(self) -> dict[str, Tensor]:
        """Return the weights of its side network; raises UnsupportedError where they are damaged."""
        file = self.folder.side_network / WEIGHTS
        with reading(file, "weights"):
            return dict(load_file(file))

    def sums(self) -> dict[str, Tensor]:
        """Return what else it has left, by name; often nothing."""
        return kept_sums(self.folder)

    def _check(self, settings: Settings) -> None:
        continual = settings.continual
        method, where = continual.method, f"continual.after={continual.after!r}"
        if task_name(settings) in self.tasks.names:
            raise SettingsError(
                f"continual.task={task_name(settings)!r} is taken: {self.folder.path} has learned "
                f"{', '.join(self.tasks.names)}; give this task another name"
            )
        if method in (OA_ADAPTER, O_LORA) and self.plan.side_config.name != method:
            raise SettingsError(
                f"continual.method={method} has a side network of its own for every task, and {where} trained "
                f"{self.plan.side_config.name}; run the first task with continual.method={method}, too"
            )
        if method == CLOSED_FORM and self.plan.side_config.name != CLOSED_FORM:
            raise SettingsError(
                f"continual.method=closed-form adds to a solution, and {where} trained {self.plan.side_config.name}; "
                "choose replay or sequential"
            )
        if method == CLOSED_FORM and len(self.tasks.names) > 1 and not self.plan.side_config.tasks:
            raise SettingsError(
                f"continual.method=closed-form has a solution for each task, and {where} has one for all, by replay; "
                "choose replay"
            )
        has_sums = self.folder.sums.is_file()
        if method == REPLAY and not self.complete:
            raise SettingsError(
                f"continual.method=replay needs samples of earlier tasks, and {where} kept none of some; choose "
                f"{'closed-form' if has_sums else 'sequential'}"
            )
        if method == CLOSED_FORM and not has_sums and not self.complete:
            raise SettingsError(
                f"continual.method=closed-form needs sums or samples of earlier tasks, and {where} kept neither; "
                "choose sequential"
            )
        if continual.keep == SUMS and not has_sums:
            raise SettingsError(
                f"continual.keep=sums adds to the sums of earlier tasks, and {where} kept none; run the first task "
                "with continual.method=closed-form and continual.keep=sums, or keep share or all"
            )

    def hand_over(self, cache: ActivationCache, settings: Settings) -> None:
        """Let a cache take rows of the next task, and copy the samples that a run with these settings trains on."""
        method = settings.continual.method
        needed = method == REPLAY or (method == CLOSED_FORM and not self.folder.sums.is_file())
        cache.begin_task(len(self.tasks.names), self.folder.cache if needed else None, since=_oldest(settings))


def begin(run: RunState, settings: Settings, earlier: Earlier | None) -> None:
    """Take over what the earlier run left, once the trainer is made; do nothing where the run has begun before."""
    tasks, method = run.plan.tasks, settings.continual.method
    if tasks is None:
        return
    if earlier is None:
        if len(tasks.names) > 1 and method != REPLAY:  # started again: all is in the folder
            run.trainer.begin_task(run.trainer.state, kept_sums(run.folder, earlier=True))
        return
    if method != REPLAY:
        sums = earlier.sums() if method == CLOSED_FORM else {}
        if sums:
            write_atomically(run.folder.earlier_sums, save(sums))
        run.trainer.begin_task(earlier.state(), sums)
        run.trainer.save()
        note_warm_start(run.cache)
    event = TaskBegun(
        task=tasks.names[-1],
        after=str(earlier.folder.path.resolve()),
        earlier=list(earlier.tasks.names),
        method=method,
        samples=len(run.cache),
        classes=tasks.num_outputs,
    )
    run.folder.append(event)


def end(run: RunState, settings: Settings) -> None:
    """Keep of the learned task what `continual.keep` says, and delete the rest of its samples."""
    continual, cache = settings.continual, run.cache
    if not continual.in_use:
        return
    if continual.keep == SUMS:
        write_atomically(run.folder.sums, save(_sums_of_all(run)))
    deleted = 0
    if continual.keep != ALL:
        own = [row for row in cache.rows() if row.task == cache.task]
        deleted = cache.keep(_drawn(own, continual.share, settings.run.seed) if continual.keep == SHARE else [])
    kept = _kept(run.folder, cache, run.plan, continual.keep, deleted)
    network: object = run.trainer.network
    ranks = network.effective_ranks if isinstance(network, ShowsRanks) else []
    run.folder.append(dataclasses.replace(kept, ranks=ranks))


def finish(folder: RunFolder, cache: ActivationCache) -> bool:
    """Finish a run that was interrupted after its samples were deleted; returns False where none were.

    Raises
    ------
    MismatchError
        It was not interrupted: it is finished.
    """
    deleted, plan = cache.num_deleted, TrainingPlan.of(cache)
    if deleted is None or plan is None:
        return False
    record = read_run(folder.path)
    if record.before.outcome == "completed":
        raise MismatchError(
            f"{folder.path} is finished, and samples of its task were deleted (continual.keep); it cannot be started "
            f"again. To learn another task: -c continual.after={folder.path} and another run folder"
        )
    cache.finish_keep()
    said = record.last(TaskKept)
    if said is None or said.deleted != deleted:
        folder.append(_kept(folder, cache, plan, load_settings(file=folder.settings).continual.keep, deleted))
    return True


def _sums_of_all(run: RunState) -> dict[str, Tensor]:
    """Return sums of exactly the samples that are held, of those devices that are heard; raises RunFailed."""
    trainer, cache = run.trainer, run.cache
    if trainer.fitted is None:  # the run was interrupted after its solution, or it is of fewer samples
        trainer.fit_again()
        run.save()
    sums = trainer.end_task()
    if not sums:
        raise RunFailed("the side network has no sums to keep; choose continual.keep=share or all")
    rows: Sequence[RowRef] = trainer.fitted or ()
    held = sum(row.tokens if trainer.has_sums else 1 for row in rows if row.task == cache.task)
    counted = sum(int(value[-1]) for name, value in sums.items() if name.endswith(".count"))
    if counted != held:
        raise RunFailed(
            f"the sums are of {counted} samples of the task, and {held} are held; no sample was deleted, start the run "
            "again in its folder"
        )
    return sums


def _kept(folder: RunFolder, cache: ActivationCache, plan: TrainingPlan, keep: str, deleted: int) -> TaskKept:
    """Return what is left of the task, and of those before it."""
    num_bytes = cache.num_bytes + (folder.sums.stat().st_size if keep == SUMS else 0)
    return TaskKept(plan.tasks.names[-1] if plan.tasks else "", keep, len(cache), deleted, num_bytes)


def _oldest(settings: Settings) -> float:
    """Return when samples that may still be held were received at the earliest, in Unix seconds."""
    days = settings.cache.retention_days
    return time.time() - days * 86400 if days else 0.0


def _drawn(rows: Sequence[RowRef], share: float, seed: int) -> list[int]:
    """Return the ids of a share of rows, drawn by a hash of the seed and of their bytes alone."""
    order = sorted(rows, key=lambda row: (hashlib.sha256(b"%d:%s" % (seed, row.digest)).digest(), row.id))
    return [row.id for row in order[: math.ceil(share * len(order))]]


def kept_sums(folder: RunFolder, *, earlier: bool = False) -> dict[str, Tensor]:
    """Return sums that a run keeps, or that it began with; empty where there are none."""
    file = folder.earlier_sums if earlier else folder.sums
    if not file.is_file():
        return {}
    try:
        return dict(load_file(file))
    except (OSError, SafetensorError) as error:
        raise UnsupportedError(f"{file} is damaged; go on with another run, or copy it again") from error
