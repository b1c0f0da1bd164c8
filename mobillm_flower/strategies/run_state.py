"""A run that is prepared: what was fixed when it started, and where it stands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import Result

from mobillm_flower.config import Settings
from mobillm_flower.core.backbone_info import BackboneInfo
from mobillm_flower.core.prediction import PredictionRule
from mobillm_flower.core.side_networks import ShowsGates
from mobillm_flower.models.saved import save_side_network
from mobillm_flower.runs.device_events import TypeJoined
from mobillm_flower.runs.events import Gates, StartedAgain
from mobillm_flower.runs.folder import RunFolder
from mobillm_flower.server import ActivationCache, Trainer
from mobillm_flower.server.plan import TrainingPlan, can_replay, known_backbones, last_round, note_backbones
from mobillm_flower.strategies.connections import Connections
from mobillm_flower.strategies.device_state import DeviceState
from mobillm_flower.strategies.exchange import Exchange
from mobillm_flower.strategies.fleet import Fleet
from mobillm_flower.strategies.frozen_parts import as_named_here
from mobillm_flower.strategies.run_plan import arguments_named, require_room
from mobillm_flower.strategies.stopping import Stopping
from mobillm_flower.wire.contract import ExtractionSpec

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


@dataclass(frozen=True)
class OwnEvaluation:
    """What the caller of `start` adds to the evaluation.

    Parameters
    ----------
    function : callable or None
        (round, arrays) -> MetricRecord, called at the server.
    config : ConfigRecord
        Sent along with requests to devices.
    """

    function: EvaluateFn | None = None
    config: ConfigRecord = field(default_factory=ConfigRecord)


@dataclass
class RunState:
    """What the methods of a strategy work on while it runs, and what is left to look at when it has ended.

    Parameters
    ----------
    folder : RunFolder
        The run's files, and its log.
    cache : ActivationCache
        The samples that are held.
    connections : Connections
        Devices, and the messages that are out.
    plan : TrainingPlan
        What was fixed when the run started; grows when a backbone type joins.
    rule : PredictionRule
        How s(A) and p_b become a prediction.
    trainer : Trainer
        Trains the side network from the cache.
    stopping : Stopping
        What ends the run before its schedule does.
    own_evaluation : OwnEvaluation
        What the caller of `start` adds to the evaluation.
    make_trainer : callable
        Makes a trainer of a plan, which goes on from the checkpoint if there is one.
    result : Result
        Arrays and metrics, as Flower returns them.
    """

    folder: RunFolder
    cache: ActivationCache
    connections: Connections
    plan: TrainingPlan
    rule: PredictionRule
    trainer: Trainer
    stopping: Stopping
    own_evaluation: OwnEvaluation
    make_trainer: Callable[[TrainingPlan], Trainer]
    result: Result = field(default_factory=Result)

    @property
    def fleet(self) -> Fleet:
        """The devices."""
        return self.connections.fleet

    @property
    def exchange(self) -> Exchange:
        """The messages that are out."""
        return self.connections.exchange

    @property
    def num_parameters(self) -> int:
        """Trained numbers of the side network."""
        return sum(parameter.numel() for parameter in self.trainer.network.parameters())

    def samples_held(self) -> dict[str, int]:
        """Return the samples of each device that are held, by pseudonym; of sums those that they are of."""
        if not self.plan.sums:
            return self.cache.devices()
        return {row.device: row.tokens for row in self.cache.rows()}

    @property
    def num_held(self) -> int:
        """Samples of the run's task that are held."""
        return sum(self.samples_held().values())

    def arrays(self) -> ArrayRecord:
        """Return the side network's state."""
        return ArrayRecord(self.trainer.state)

    def take_steps_of(self, round_: int) -> None:
        """Take the overlapping steps that a round still owes, however fast the devices were."""
        while self.trainer.overlap_step(round_):
            pass

    def catch_up(self) -> int:
        """Take the overlapping steps that an interrupted run's finished rounds still owe; returns the last of them."""
        last = last_round(self.cache)
        for round_ in range(1, last + 1):
            self.take_steps_of(round_)
        return last

    def seems_held(self, device: DeviceState) -> bool:
        """Whether a device that has sent nothing since the run was started again is held by the number of its rows."""
        return not device.record.windows and self._num_held(device) >= device.description.num_train

    def learn_what_is_new(self) -> None:
        """Train anew from all that is held where samples came after training had begun; say what a run does.

        The side network is then the one of a run that held them all from the start. A run that began from given weights
        goes on from those that it has.
        """
        new, begun = self.cache.num_untrained, self.trainer.position.in_epochs
        if begun and new:
            weights, kept = None if can_replay(self.cache) else self.trainer.state, self.trainer.kept
            self.folder.checkpoint.unlink(missing_ok=True)
            self.trainer = self.make_trainer(self.plan)
            if weights is not None:
                self.trainer.begin_task(weights, kept)
            self.catch_up()
        if begun and (new or self.trainer.position.finished):
            gone = sum(max(0, self._num_held(d) - d.description.num_train) for d in self.fleet if not d.record.dropped)
            self.folder.append(StartedAgain("learns" if new else "nothing new", self.num_held, new, gone))
        self.cache.note_training()

    def _num_held(self, device: DeviceState) -> int:
        return len(self.cache.held(device.description.pseudonym))

    def add_type(self, backbone: BackboneInfo, spec: ExtractionSpec, settings: Settings) -> None:
        """Go on with one more backbone type; raises MismatchError where there is no room for it."""
        plan = self.plan.joined_by(spec)
        require_room(plan)
        with arguments_named():
            network = plan.side_config.build()
        self.plan = plan
        self.plan.store(self.cache)
        known = {**known_backbones(self.cache), backbone.fingerprint: backbone}
        note_backbones(self.cache, as_named_here(known, settings))
        self.trainer.add_type(spec, network)
        self.folder.append(TypeJoined(backbone.name, backbone.depth, backbone.width))

    def save(self) -> None:
        """Write the trained side network."""
        save_trained(self.folder, self.trainer, self.plan, self.rule)
        network: object = self.trainer.network
        gates = network.gate_values if isinstance(network, ShowsGates) else []
        self.folder.append(Gates([round(value, 4) for value in gates]))


def save_trained(folder: RunFolder, trainer: Trainer, plan: TrainingPlan, rule: PredictionRule) -> None:
    """Write a trained side network into its run's folder."""
    known = known_backbones(trainer.loader.cache)  # the only device of a type may be away
    save_side_network(
        folder.side_network,
        state=trainer.state,
        side_config=plan.side_config,
        specs=plan.specs,
        backbones={name: known[name] for name in plan.specs},
        contract=plan.contract,
        tasks=plan.tasks,
        rule=rule,
    )
