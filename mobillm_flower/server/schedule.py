"""How many steps training is laid out for, and in which batches."""

from __future__ import annotations

from mobillm_flower.server.options import TrainerOptions

ENOUGH_STEPS = 100
"""Steps of training that are not few: as many as the running average of the weights looks back by default."""
_BATCH, _LEAST_BATCH = 32, 4


def planned_steps(
    num_samples: int, *, epochs: int, batch_size: int, validation_share: float, rounds: int, overlap_steps: int
) -> int:
    """Return the steps that the learning rate's schedule is laid out for.

    Parameters
    ----------
    num_samples : int
        Training samples of the whole fleet.
    epochs, batch_size, validation_share, overlap_steps : int, int, float, int
        See `TrainerOptions`.
    rounds : int
        Rounds; all but the first are followed by overlapping steps.
    """
    an_epoch = -(-int(num_samples * (1 - validation_share)) // batch_size)
    return epochs * an_epoch + max(0, rounds - 1) * overlap_steps


def automatic_batch(num_samples: int, *, epochs: int, per_token: bool) -> int:
    """Return the batch size of `trainer.batch-size=0`: 32; of language modelling fewer where steps would be few.

    Parameters
    ----------
    num_samples : int
        Training samples of the whole fleet.
    epochs : int
        Epochs.
    per_token : bool
        Whether tokens are predicted: a batch of a few samples then has many of them.
    """
    return max(_LEAST_BATCH, min(_BATCH, num_samples * epochs // ENOUGH_STEPS)) if per_token else _BATCH


def advice_on_steps(options: TrainerOptions, num_samples: int) -> str:
    """Say that the planned steps are few, and which settings make them enough; empty where they are."""
    if options.planned_steps >= ENOUGH_STEPS or not num_samples:
        return ""
    batch = max(1, num_samples * options.epochs // ENOUGH_STEPS)
    epochs = -(-ENOUGH_STEPS // -(-num_samples // options.batch_size))
    fewer = f"trainer.batch-size={batch} or " if batch < options.batch_size else ""
    return (
        f"{options.planned_steps} training steps are few: {num_samples:,} samples in batches of {options.batch_size}, "
        f"{options.epochs} epochs; {fewer}trainer.epochs={epochs} gives about {ENOUGH_STEPS}"
    )
