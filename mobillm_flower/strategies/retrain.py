"""Training a finished run's side network again, from the samples that are still held."""

from __future__ import annotations

import shutil

from mobillm_flower.config import Settings
from mobillm_flower.errors import CacheError
from mobillm_flower.runs.events import Retrained
from mobillm_flower.runs.folder import RunFolder
from mobillm_flower.server import ActivationCache
from mobillm_flower.server.plan import TrainingPlan, can_replay, known_backbones, train_again
from mobillm_flower.strategies.frozen_parts import load_frozen_parts, training_device
from mobillm_flower.strategies.run_plan import prediction_rule
from mobillm_flower.strategies.run_state import save_trained


def require_retrainable(cache: ActivationCache, settings: Settings, *, without: str) -> None:
    """Check that `retrain` can follow when a device is forgotten.

    Raises
    ------
    CacheError
        The cache holds no plan or no other device, or the run began from weights that it was given.
    SettingsError
        The run's settings train on a device that is not there.
    """
    training_device(settings)
    plan = TrainingPlan.of(cache)
    advice = "nothing was deleted; forget the device without --retrain"
    if plan is None or not can_replay(cache):
        raise CacheError(f"{cache.file} holds no run that can be trained again: it began from given weights; {advice}")
    if not set(plan.specs) <= known_backbones(cache).keys():
        raise CacheError(
            f"{cache.file} does not say which backbones its run had, since an older release made it; {advice}, and "
            "start the run again"
        )
    if set(cache.devices()) <= {without}:
        raise CacheError(f"{cache.file} holds no other device, so there is nothing to train from; {advice}")


def discard_trained(run: RunFolder) -> None:
    """Delete side network and checkpoint.

    Before the rows are: whatever interrupts it, nothing that was trained with a forgotten device is gone on with.
    """
    for folder in (run.side_network, run.checkpoint.parent):
        shutil.rmtree(folder, ignore_errors=True)


def retrain(run: RunFolder, cache: ActivationCache, settings: Settings) -> int:
    """Train from what is held as if no other device had ever been there; returns the steps taken.

    `discard_trained` comes first. Rounds with overlapping steps stay as they were, without the rows that are gone; M
    stays too.

    Parameters
    ----------
    run : RunFolder
        Held by the caller; its `side_network/` is written anew.
    cache : ActivationCache
        The run's, with a row at least.
    settings : Settings
        The run's.
    """
    before = TrainingPlan.of(cache)
    assert before is not None
    plan = before.of_what_is_held(cache, width=settings.side_network.width)
    plan.store(cache)
    rule = prediction_rule(plan, send_base=settings.loss.send_base)
    trainer = plan.trainer(
        cache,
        scores=rule.scores,
        memory_bytes=settings.cache.memory_mib << 20,
        checkpoint=run.checkpoint,
        device=training_device(settings),
        frozen=load_frozen_parts(plan, settings, known_backbones(cache)),
    )
    train_again(trainer)
    save_trained(run, trainer, plan, rule)
    run.append(Retrained(len(cache), len(cache.devices()), trainer.position.steps))
    return trainer.position.steps
