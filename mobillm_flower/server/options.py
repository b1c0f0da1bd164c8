"""How the side network is trained, and where training stands."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

_OF_STRATEGIES = ("fresh_share", "newcomer_steps", "validation_key")


@dataclass(frozen=True)
class TrainerOptions:
    """How the side network is trained: values of the settings `trainer`, and what a strategy adds.

    Parameters
    ----------
    epochs, batch_size : int
        Epochs over all samples, and samples of a step.
    learning_rate, weight_decay, dropout, averaging, warmup, grad_clip : float
        As in the settings `trainer`.
    validation_share, patience : float, int
        Share of the samples that is held out, and epochs without a better state that end the training.
    overlap_steps, checkpoint_every : int
        Steps of a round while devices compute, and steps between two checkpoints.
    planned_steps : int
        What the learning rate's schedule is laid out for.
    seed : int
        What order, dropout and validation share are drawn from.
    fresh_share : float
        Share of each overlapping step's batch that is drawn from what the round before brought; the rest is drawn from
        all that is held.
    newcomer_steps : int
        So many first steps of a type that joined late move its own alignment alone.
    device_cap, balance_types : int, bool
        As in the settings `trainer`.
    adjust_types : bool
        See `LabelShift`.
    judge_devices : bool
        See `influence.heard`.
    validation_key : str
        What the validation share is chosen with, in hex; empty: the seed.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    dropout: float
    averaging: float
    warmup: float
    grad_clip: float
    validation_share: float
    patience: int
    overlap_steps: int
    checkpoint_every: int
    planned_steps: int
    seed: int
    fresh_share: float = 0.0
    newcomer_steps: int = 0
    device_cap: int = 0
    balance_types: bool = False
    adjust_types: bool = False
    judge_devices: bool = False
    validation_key: str = ""

    @classmethod
    def of(cls, trainer: object, **others: Any) -> TrainerOptions:
        """Return the options of settings, and others by name; raises KeyError for one that neither has.

        Only what has a default of its own and belongs to a strategy may be left out.
        """
        values = {**vars(trainer), **others}
        named = [item.name for item in fields(cls) if item.name not in _OF_STRATEGIES or item.name in values]
        return cls(**{name: values[name] for name in named})


@dataclass
class Position:
    """Where training stands: next overlapping step of a round, or next step of an epoch.

    Parameters
    ----------
    round, round_step : int
        Round of the overlapping steps, and the next of them.
    epoch, epoch_step : int
        Epoch, and its next step.
    steps : int
        Steps taken in all.
    best_loss, bad_epochs : float, int
        Least loss on the validation share, and epochs since then.
    finished : bool
        Whether training is over.
    newcomer_steps : dict of str to int
        Steps that a type which joined late has taken, by its fingerprint.
    fitted_rows : int
        Rows that the last fit in closed form was of.
    """

    round: int = 0
    round_step: int = 0
    epoch: int = 0
    epoch_step: int = 0
    steps: int = 0
    best_loss: float = float("inf")
    bad_epochs: int = 0
    finished: bool = False
    newcomer_steps: dict[str, int] = field(default_factory=dict)
    fitted_rows: int = 0

    @property
    def in_epochs(self) -> bool:
        """Whether training from all rows has begun: rows that come now would be in its later steps alone."""
        solves = self.fitted_rows > 0  # each solution is an epoch, those of rows that were there early too
        return self.finished or (not solves and bool(self.epoch or self.epoch_step))
