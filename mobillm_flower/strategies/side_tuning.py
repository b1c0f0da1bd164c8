"""The push/pull loop that the side-tuning strategies share.

Each round asks every device for its next window; the server takes a fixed number of steps on what was committed
before the round while devices compute; then epochs follow until the data is used up. A failing device, a late one, a
bad packet is counted, reported and survived.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from logging import INFO, getLogger
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from safetensors.torch import load_file

from mobillm_flower.config import Settings, load_settings
from mobillm_flower.config.parts.continual import SUMS
from mobillm_flower.core.backbone_info import BackboneInfo
from mobillm_flower.core.prediction import PredictionRule
from mobillm_flower.core.side_networks import FitsInClosedForm
from mobillm_flower.errors import MismatchError, RunFailed
from mobillm_flower.models.saved import WEIGHTS
from mobillm_flower.runs import events
from mobillm_flower.server import ActivationCache, Trainer
from mobillm_flower.server.diagnosis import diagnose
from mobillm_flower.server.plan import (
    TrainingPlan,
    known_backbones,
    note_round,
    note_stop,
    note_warm_start,
    plan_what_is_held,
)
from mobillm_flower.server.schedule import advice_on_steps
from mobillm_flower.strategies import continual
from mobillm_flower.strategies.agreement import Agreement
from mobillm_flower.strategies.connections import Connections
from mobillm_flower.strategies.device_state import DeviceState
from mobillm_flower.strategies.evaluation import Evaluation
from mobillm_flower.strategies.exchange import Clock
from mobillm_flower.strategies.fleet import Fleet
from mobillm_flower.strategies.intake import Intake
from mobillm_flower.strategies.lifecycle import StartedRun, running
from mobillm_flower.strategies.preparation import log_prepared, prepare
from mobillm_flower.strategies.run_plan import Overlap, check_parts, make_plan, require_room
from mobillm_flower.strategies.run_state import EvaluateFn, OwnEvaluation, RunState
from mobillm_flower.strategies.stopping import Stopping
from mobillm_flower.wire import keys
from mobillm_flower.wire.contract import TaskContract
from mobillm_flower.wire.messages import DeviceDescription

logger = getLogger("flwr")


class SideTuningStrategy(Strategy):
    """Trains one side network from the activations that devices upload.

    A subclass says in `check` which settings its paper's method needs, and may override the four methods that
    Flower's strategies have, or `ingest`.

    Parameters
    ----------
    settings : Settings, optional
        By default the preset of the strategy's name.
    run_path : path, optional
        The run's folder; by default `run.folder`, or one named by the run id.

    Attributes
    ----------
    run : RunState
        The run, once its devices are met and its plan is made; `cache`, `fleet`, `plan`, `rule`, `trainer` and
        `result` are its parts.
    intake : Intake
        Requests for windows, checks and commits.
    evaluation : Evaluation
        Evaluation on devices and at the server.
    """

    preset = "pae"
    takes: type[Intake] = Intake
    """What asks devices, and checks and commits what they send."""
    poll_s = 0.1
    """Seconds between looks for replies when there is nothing to train."""
    intake: Intake
    evaluation: Evaluation

    def __init__(self, settings: Settings | None = None, *, run_path: str | Path | None = None) -> None:
        self.settings = settings or load_settings({"preset": self.preset})
        check_parts(self.settings)
        self.check(self.settings)
        self.clock = Clock()
        self.intake = self.takes(self.settings.rounds)
        self.evaluation = Evaluation(self.settings.side_network.codec)
        self._run_path = Path(run_path) if run_path else None
        self._run: RunState | None = None

    def check(self, settings: Settings) -> None:
        """Raise SettingsError where the settings are not this strategy's."""

    # ---- the run ---------------------------------------------------------------------------------------------

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 0,
        timeout: float = 0.0,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
    ) -> Result:
        """Run to the end and return the side network's arrays with all metrics.

        Parameters
        ----------
        grid : Grid
            Where the devices are.
        initial_arrays : ArrayRecord
            State of a side network to start from; empty for a fresh one.
        num_rounds : int
            Most rounds of ingestion; 0 takes `rounds.num-rounds`, where 0 means until each device has passed its
            data once.
        timeout : float
            Seconds a round waits for an answer; 0 takes `rounds.timeout-s`.
        train_config, evaluate_config : ConfigRecord, optional
            Sent along as the record "config", for clients that extend ours.
        evaluate_fn : callable, optional
            (round, arrays) -> MetricRecord, called before the first round and whenever devices evaluate.

        Raises
        ------
        RunFailed
            No device could be used, or none sent a sample; nothing is trained or saved then.
        MismatchError
            The run folder holds a run with other settings or devices, which stays as it is.
        InUseError
            Another run goes on in the run folder; nothing in it is touched.
        """
        own = OwnEvaluation(evaluate_fn, evaluate_config or ConfigRecord())
        with running(self.settings, self._run_path, grid, strategy=type(self).__name__) as started:
            cache = started.open_cache()
            if continual.finish(started.folder, cache):
                return Result(arrays=ArrayRecord(load_file(started.folder.side_network / WEIGHTS)))
            run = self._run = self._begin(started, cache, grid, timeout or self.settings.rounds.timeout_s, own)
            run.fleet.restrict(self.accept)  # a type may have come while the run was down
            if len(initial_arrays) and not run.trainer.position.steps:
                run.trainer.start_from(initial_arrays.to_torch_state_dict())
                note_warm_start(run.cache)
            log_prepared(run, delta=self.settings.privacy.delta)
            self.summary()
            self.evaluation.at_the_server(run, 0)
            last = self.ingest(grid, num_rounds or self.settings.rounds.num_rounds, train_config or ConfigRecord())
            self._train(run)
            run.result.arrays = self.arrays()
            run.save()
            self.evaluate(grid, last)
            for diagnosis in diagnose(run.trainer, run.cache):
                run.folder.append(diagnosis)
            continual.end(run, self.settings)
        return run.result

    def ingest(self, grid: Grid, num_rounds: int, config: ConfigRecord) -> int:
        """Ask for windows, round after round, until all data is held; returns the last round's number."""
        run = self.run
        round_ = first = run.catch_up()
        while (not num_rounds or round_ - first < num_rounds) and not run.stopping.ends_ingestion():
            run.connections.meet()
            messages = list(self.configure_train(round_ + 1, ArrayRecord(), config, grid))
            if not messages and not run.exchange.out(self.intake.asks):
                break
            asked = {message.metadata.dst_node_id for message in messages}
            expected = [device for device in run.fleet if device.node_id in asked and not run.seems_held(device)]
            steps = partial(run.trainer.overlap_step, round_ + 1) if expected else lambda: False
            replies = run.exchange.exchange(messages, self.intake.asks, steps)
            _, metrics = self.aggregate_train(round_ + 1, replies)
            if not expected and metrics is not None and not metrics.get(keys.NUM_EXAMPLES, 1):
                continue  # devices of a run that is started again have nothing new: this is no round
            round_ += 1
            run.take_steps_of(round_)
            note_round(run.cache, round_)
            if metrics is not None:
                run.result.train_metrics_clientapp[round_] = metrics
                run.folder.append(events.Round.of(round_, dict(metrics)))
            every = self.settings.rounds.evaluate_every
            if every and round_ % every == 0:
                self.evaluate(grid, round_)
        return round_

    def evaluate(self, grid: Grid, round_: int) -> None:
        """Let the devices evaluate, and the caller's own function."""
        run = self.run
        messages = list(self.configure_evaluate(round_, self.arrays(), run.own_evaluation.config, grid))
        metrics = self.aggregate_evaluate(round_, run.exchange.exchange(messages, keys.EVALUATE))
        if metrics is not None:
            self.evaluation.note(run, round_, metrics)
        self.evaluation.at_the_server(run, round_)

    def overlap(self, num_train: Sequence[int]) -> Overlap:
        """Return the steps that are taken while devices with so many samples compute."""
        rounds = max(-(-count // self.settings.rounds.window) for count in num_train)
        return Overlap(rounds=rounds, steps=self.settings.trainer.overlap_steps)

    def accept(self, backbone: BackboneInfo) -> None:
        """Take in a backbone type; raises MismatchError where the run cannot have it any more."""
        if backbone.fingerprint not in self.plan.specs:
            raise MismatchError(
                f"backbone {backbone.name} with {backbone.depth} layers is not among those the run started with"
            )

    def is_done(self, cache: ActivationCache, device: DeviceDescription) -> bool:
        """Whether nothing is asked of a device; one whose rows are all held may have others in their place: it is."""
        return not device.num_train

    def arrays(self) -> ArrayRecord:
        """Return the side network's state."""
        return self.run.arrays()

    def summary(self) -> None:
        """Log what is about to happen."""
        run, side = self.run, self.plan.side_config
        logger.log(
            INFO,
            "%s: %d devices, %d backbone type(s), %d blocks, side width %d, %s trainable parameters, run folder %s",
            type(self).__name__,
            len(run.fleet),
            len(run.plan.specs),
            side.num_blocks,
            side.width,
            f"{run.num_parameters:,}",
            run.folder.path,
        )
        solved = isinstance(run.trainer.network, FitsInClosedForm)
        if advice := "" if solved else advice_on_steps(run.plan.options, sum(run.fleet.sizes())):
            logger.warning("%s", advice)

    def _begin(
        self, started: StartedRun, cache: ActivationCache, grid: Grid, timeout_s: float, own: OwnEvaluation
    ) -> RunState:
        """Meet the devices, and make the run or go on with the folder's."""
        stopping = Stopping(self.settings.stop, now=self.clock.now)
        agreement = Agreement(self.settings, self._require_possible)
        stored = started.plan(cache)
        earlier = continual.Earlier.read(self.settings) if self.settings.continual.after and stored is None else None
        if stored is not None:
            agreement.take_over(stored.contract, known_backbones(cache))
        connections = Connections(
            grid,
            self.settings,
            agreement,
            timeout_s=timeout_s,
            poll_s=self.poll_s,
            clock=self.clock,
            is_done=partial(self.is_done, cache),
            on_event=started.folder.append,
        )
        started.before_the_end(connections.fleet.log_summaries)
        connections.meet(at_least=self.settings.rounds.min_devices)
        overlap = self.overlap(connections.fleet.sizes())
        run = prepare(
            started,
            cache,
            connections,
            self.settings,
            stored,
            overlap=overlap,
            stopping=stopping,
            own_evaluation=own,
            earlier=earlier,
        )
        continual.begin(run, self.settings, earlier)
        return run

    def _require_possible(self, contract: TaskContract, backbones: Mapping[str, BackboneInfo]) -> None:
        """Raise where a run with these backbone types could not be, or its side network is too large."""
        require_room(make_plan(self.settings, contract, backbones, [0]))

    def _train(self, run: RunState) -> None:
        """Train for the epochs, from the cache."""
        if not run.cache.devices():
            raise RunFailed(
                f"no sample was received: every device failed, refused, or has no data; see {run.folder.events.name}"
            )
        run.folder.append(events.Ingested(run.num_held, run.plan.options.epochs))
        run.learn_what_is_new()
        plan_what_is_held(run.trainer)
        position = run.trainer.position
        sums = self.settings.continual.keep == SUMS  # are kept of all samples, since these are deleted
        ended = run.trainer.run_epochs(stop=(lambda: False) if sums else run.stopping.ends_training)
        note_stop(run.cache, None if ended else position.steps)
        if not ended:
            run.folder.append(events.Stopped(run.stopping.reason))
        run.folder.append(events.Trained(position.steps, position.epoch, solved=position.fitted_rows > 0))

    # ---- Flower's four -------------------------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return one request for a window for each device that has data left and no message out."""
        return self.request_windows(self.fleet, server_round, config)

    def request_windows(
        self, devices: Iterable[DeviceState], server_round: int, config: ConfigRecord, *, at_most: int | None = None
    ) -> Iterator[Message]:
        """Yield a request for the next window of those devices that have data left and no message out."""
        return self.intake.requests(self.run, devices, server_round, config, at_most=at_most)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check and commit windows as they arrive; nothing of a bad one is kept."""
        return None, self.intake.take(self.run, replies, server_round)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the side network, with the asking type's alignment alone, for each device."""
        return self.evaluation.requests(self.run, arrays, config)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Average the devices' metrics by their number of test samples, in all and by backbone type."""
        return self.evaluation.average(self.run, replies, server_round)

    # ---- parts of the run ----------------------------------------------------------------------------------------

    @property
    def run(self) -> RunState:
        """The run; raises RunFailed before there is one."""
        if self._run is None:
            raise RunFailed("there is no run yet: it begins with start, when devices are met")
        return self._run

    @property
    def cache(self) -> ActivationCache:
        """The samples that are held."""
        return self.run.cache

    @property
    def fleet(self) -> Fleet:
        """The devices."""
        return self.run.fleet

    @property
    def plan(self) -> TrainingPlan:
        """What was fixed when the run started."""
        return self.run.plan

    @property
    def rule(self) -> PredictionRule:
        """How s(A) and p_b become a prediction."""
        return self.run.rule

    @property
    def trainer(self) -> Trainer:
        """What trains the side network."""
        return self.run.trainer

    @property
    def result(self) -> Result:
        """Arrays and metrics so far."""
        return self.run.result
