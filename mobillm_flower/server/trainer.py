"""Training of the side network from the cache.

Given the rows (each with the round it was committed in), the options and the seed, the result is bit-identical on
one processor and thread count, whatever the order of arrival, the partition into devices, and interruptions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mobillm_flower.core.side_networks import FitsInClosedForm, KeepsSums, Remembers, grown
from mobillm_flower.runs.events import Epoch
from mobillm_flower.server.batches import BatchLoader
from mobillm_flower.server.cache import ActivationCache
from mobillm_flower.server.checkpoints import Checkpoint, read_checkpoint, write_checkpoint
from mobillm_flower.server.fitting import Measured, StoppedError, fit
from mobillm_flower.server.influence import heard
from mobillm_flower.server.label_shift import LabelShift
from mobillm_flower.server.objective import FitTargets, Loss
from mobillm_flower.server.options import Position, TrainerOptions
from mobillm_flower.server.rows import RowRef, Rows
from mobillm_flower.server.sampler import epoch_order, round_batches, split_validation
from mobillm_flower.server.validation import measure
from mobillm_flower.server.weights import TrainedWeights, drop_values
from mobillm_flower.wire.contract import ExtractionSpec
from mobillm_flower.wire.target_bytes import TargetBatch

_GROWTH = 1.5  # a fit in closed form is made again when so many times its rows are held


class Trainer:
    """Steps while devices compute, then epochs or a fit in closed form; early stopping, atomic checkpoints.

    Attributes
    ----------
    position : Position
        Where training stands.
    kept : mapping of str to Tensor
        What earlier tasks left beside their state, see `begin_task`.

    Parameters
    ----------
    network : nn.Module
        A fresh side network; it is trained on the loader's device.
    loader : BatchLoader
        Decoded batches.
    loss : callable
        From `make_loss`.
    scores : callable
        (s(A) [B, K], p_b [B, K]) -> scores [B, K], the prediction rule, for the accuracy on the validation share.
    fit_targets : callable
        What a side network that is fitted in closed form is to come to, of targets; see `objective.fit_targets`.
    options : TrainerOptions
        Optimisation.
    checkpoint : path, optional
        Where to save every `checkpoint_every` steps and after each epoch; training goes on from it if it is there.
    on_epoch : callable
        Called at the end of each epoch, for the run's log.
    newcomers : sequence of str
        Backbone types that joined late; see `TrainerOptions.newcomer_steps`.
    solve : callable, optional
        Sets a side network from a cache of sums, see `server.sums.solve_sums`; without it the cache holds samples.

    Raises
    ------
    CacheError
        The checkpoint cannot be read.
    """

    def __init__(
        self,
        *,
        network: nn.Module,
        loader: BatchLoader,
        loss: Loss,
        scores: Callable[[Tensor, Tensor], Tensor],
        fit_targets: Callable[[TargetBatch], FitTargets],
        options: TrainerOptions,
        checkpoint: Path | None = None,
        on_epoch: Callable[[Epoch], None] = lambda _epoch: None,
        newcomers: Sequence[str] = (),
        solve: Callable[[FitsInClosedForm, ActivationCache], Measured] | None = None,
    ) -> None:
        self.loader, self.options = loader, options
        self._newcomers = frozenset(newcomers)
        self.kept: Mapping[str, Tensor] = {}
        self._fitted: tuple[Rows, Rows] | None = None  # rows that were held at the last fit, and those that it used
        self._hold(network)
        self._loss, self._scores, self._fit_targets = loss, scores, fit_targets
        self._shift = LabelShift(loader)
        self._solve = solve
        self._adjusts = options.adjust_types and not loader.labels_protected and not loader.contract.per_token
        self._checkpoint, self._on_epoch = checkpoint, on_epoch
        self.position = Position()
        self._best: dict[str, Tensor] | None = None
        self._plan: tuple[int, list[Rows]] | None = None
        if checkpoint is not None and checkpoint.exists():
            self.load(checkpoint)

    @property
    def network(self) -> nn.Module:
        """What is measured, saved and sent: the running average of the weights, in the end the best epoch's."""
        return self._weights.network

    @property
    def state(self) -> dict[str, Tensor]:
        """State of `network`, on the CPU."""
        return {name: tensor.cpu() for name, tensor in self.network.state_dict().items()}

    @property
    def has_sums(self) -> bool:
        """Whether the cache holds sums, and no sample that anything could be measured on."""
        return self._solve is not None

    def overlap_step(self, round_: int) -> bool:
        """Take one of the round's `overlap_steps` on what was committed before it; False when they are done.

        Rounds must come in order; one that is over is passed by.
        """
        position, options = self.position, self.options
        if self.has_sums:
            return False
        if isinstance(self.network, FitsInClosedForm):
            self._fit_what_is_there(round_)
            return False
        if position.round > round_ or position.epoch or position.epoch_step or position.finished:
            return False
        if position.round < round_:
            position.round, position.round_step = round_, 0
        if position.round_step >= options.overlap_steps:
            return False
        if self._plan is None or self._plan[0] != round_:
            rows, _ = self._split(self.loader.cache.rows(before_round=round_))
            if self._adjusts:
                self._shift.count(rows, before_round=round_)
            drawn = round_batches(
                rows,
                round_=round_,
                steps=options.overlap_steps,
                batch_size=options.batch_size,
                fresh_share=options.fresh_share,
                seed=options.seed,
            )
            self._plan = (round_, drawn)
        batches = self._plan[1]
        if not batches:
            return False
        self._step(batches[position.round_step])
        position.round_step += 1
        self._save_sometimes()
        return True

    def fit_again(self) -> None:
        """Solve from all rows that are held now, also where a solution was found before."""
        self.position.finished = False
        self.run_epochs()

    def run_epochs(self, *, stop: Callable[[], bool] = lambda: False) -> bool:
        """Train for the epochs that are left, on all rows; returns False where `stop` ended it before.

        After each epoch the loss on the validation share is measured; the best state is kept and restored at the
        end, and `patience` epochs without a better one end it early.
        """
        position, options = self.position, self.options
        if isinstance(self.network, FitsInClosedForm):
            return self._fit(self.network, stop)
        train, validation = self._split(self.heard(self.loader.cache.rows()))
        if self._adjusts:
            self._shift.recount(train)
        while not position.finished and position.epoch < options.epochs and train:
            if options.patience and position.bad_epochs >= options.patience and not position.epoch_step:
                break
            order = epoch_order(
                train,
                seed=options.seed,
                epoch=position.epoch,
                device_cap=options.device_cap,
                balance_types=options.balance_types,
            )
            batches = [order[i : i + options.batch_size] for i in range(0, len(order), options.batch_size)]
            while position.epoch_step < len(batches):
                if stop():
                    self.save()
                    return False
                self._step(train.take(batches[position.epoch_step]))
                position.epoch_step += 1
                self._save_sometimes()
            position.epoch, position.epoch_step = position.epoch + 1, 0
            self._end_epoch(train, validation)
            self.save()
        if not position.finished:
            position.finished = True
            if self._best is not None:
                self.network.load_state_dict(self._best)
            self.save()
        return True

    def _fit(self, network: FitsInClosedForm, stop: Callable[[], bool]) -> bool:
        """Fit a side network in closed form; returns False where `stop` ended it before."""
        position = self.position
        if position.finished:
            return True
        rows = self.loader.cache.rows()
        if not self._fit_to(network, rows, stop):
            return False
        position.finished = True
        self.save()
        return True

    def _fit_what_is_there(self, round_: int) -> None:
        """Fit what was committed before a round, where that is much more than what was fitted last."""
        position = self.position
        assert isinstance(self.network, FitsInClosedForm)
        if position.finished or position.round >= round_:
            return
        rows, position.round = self.loader.cache.rows(before_round=round_), round_
        if len(rows) >= max(1, _GROWTH * position.fitted_rows):
            self._fit_to(self.network, rows, lambda: False)

    def _fit_to(self, network: FitsInClosedForm, rows: Rows, stop: Callable[[], bool]) -> bool:
        """Fit rows; the loss and accuracy that are logged are those of samples that are left out of the solution."""
        position = self.position
        used = rows if self.has_sums else self.heard(rows)
        if self._adjusts and not self.has_sums:
            self._shift.recount(used)
        try:
            measured = (
                self._solve(network, self.loader.cache)
                if self._solve is not None
                else fit(
                    network,
                    used,
                    self.loader,
                    targets=self._fit_targets,
                    shift=self._shift,
                    scores=self._scores,
                    device_cap=self.options.device_cap,
                    stop=stop,
                )
            )
        except StoppedError:
            return False
        self._weights.live.load_state_dict(self.network.state_dict())
        self._fitted = rows, used
        position.epoch, position.fitted_rows = position.epoch + 1, len(rows)
        position.steps += measured.parts
        self._on_epoch(Epoch(position.epoch, position.steps, measured.loss, measured.accuracy))
        return True

    @property
    def fitted(self) -> Rows | None:
        """The rows that the last fit used; None where it was not this process's, or not of exactly what is held."""
        if self._fitted is None:
            return None
        held, used = self._fitted
        return used if np.array_equal(held.column("id"), self.loader.cache.rows().column("id")) else None

    def heard(self, rows: Rows) -> Rows:
        """Return the rows of these that an epoch or a fit uses, see `influence.heard`; overlapping steps use all."""
        options = self.options
        if not options.judge_devices:
            return rows
        return heard(rows, self.loader, self._fit_targets, key=options.validation_key, seed=options.seed)

    def start_from(self, state: Mapping[str, Tensor]) -> None:
        """Take over the weights of another side network of the same shape, before the first step."""
        self._weights.start_from(state)

    def begin_task(self, state: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> None:
        """Go on after earlier tasks, before anything else is done with a new trainer.

        Parameters
        ----------
        state, kept
            The state of the side network that learned them, and what `end_task` returned then. The state is passed by
            where a checkpoint is gone on with.

        Raises
        ------
        MismatchError
            They are of another side network.
        """
        self.kept = kept
        if isinstance(self.network, KeepsSums):
            self.network.begin_task(kept)
        if not self.position.steps:
            self.start_from(grown(self.network, state))

    def end_task(self) -> dict[str, Tensor]:
        """Return what the next task needs beside the state."""
        return self.network.end_task() if isinstance(self.network, KeepsSums) else {}

    def validation(self, rows: Sequence[RowRef]) -> dict[str, float]:
        """Return the mean loss on rows (or their tokens) and, where it is known, the share of labels predicted."""
        return measure(self.network, rows, self.loader, loss=self._loss, scores=self._scores, shift=self._shift)

    def save(self) -> None:
        """Write a checkpoint, where there is to be one."""
        if self._checkpoint is None:
            return
        write_checkpoint(
            self._checkpoint,
            Checkpoint(
                network=self.network.state_dict(),
                live=self._weights.live.state_dict(),
                optimizer=self._weights.moments(),
                best=self._best,
                position=self.position,
                options=self.options,
            ),
        )

    def load(self, file: Path) -> None:
        """Go on from a checkpoint.

        Raises
        ------
        CacheError
            It cannot be read, or was made with other options.
        """
        saved = read_checkpoint(file, self.options)
        self._weights.take_over(saved.network, saved.live, saved.optimizer)
        self._best, self.position = saved.best, saved.position

    def add_type(self, spec: ExtractionSpec, network: nn.Module) -> None:
        """Go on with a side network that has one more type; what it shares with the old one keeps its state.

        Parameters
        ----------
        spec : ExtractionSpec
            What devices of the type upload.
        network : nn.Module
            Fresh, from the configuration with the type. Since a parameter without a gradient is left alone, the
            result is the same as if the type had been there, silent, from the start.
        """
        self.loader.add_type(spec)
        self._newcomers |= {spec.backbone}
        states = self.network.state_dict(), self._weights.live.state_dict(), self._weights.moments()
        self._hold(network)
        self._weights.take_over(*states)
        # the validation share has another type now: losses from before it are no measure for those after
        self._best, self.position.best_loss, self.position.bad_epochs = None, float("inf"), 0
        self.save()

    def _hold(self, network: nn.Module) -> None:
        """Train a network from now on."""
        self._fitted = None
        self._weights = TrainedWeights(network.to(self.loader.device), self.options)
        if isinstance(self.network, KeepsSums):
            self.network.begin_task(self.kept)

    def _step(self, rows: Sequence[RowRef]) -> None:
        options, position, weights = self.options, self.position, self._weights
        batches, targets = self.loader.load(rows)
        if options.dropout:
            batches = drop_values(batches, options.dropout, seed=options.seed, step=position.steps)
        outputs = weights.outputs(batches, self._newcomers, position.newcomer_steps, enough=options.newcomer_steps)
        weights.step(self._loss(outputs, targets, self._shift(batches)), options, number=position.steps)
        position.steps += 1

    def _end_epoch(self, train: Rows, validation: Sequence[RowRef]) -> None:
        position = self.position
        if isinstance(self.network, Remembers):
            with torch.inference_mode():
                self.network.remember(batches for batches, _ in self.loader.in_parts(train))
        measured: dict[str, float] = {}
        if validation:
            measured = self.validation(validation)
            if measured["loss"] < position.best_loss:
                position.best_loss, position.bad_epochs = measured["loss"], 0
                self._best = {name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()}
            else:
                position.bad_epochs += 1
        self._on_epoch(Epoch(position.epoch, position.steps, measured.get("loss"), measured.get("accuracy")))

    def _split(self, rows: Rows) -> tuple[Rows, Rows]:
        options = self.options
        return split_validation(
            rows,
            options.validation_share,
            options.seed,
            secret=options.validation_key,
            device_cap=options.device_cap,
        )

    def _save_sometimes(self) -> None:
        if self.position.steps % self.options.checkpoint_every == 0:
            self.save()
