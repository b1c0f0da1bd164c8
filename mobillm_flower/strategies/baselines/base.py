"""What the baselines share: Flower's own FedAvg, with a log of what each device's work and messages cost."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result

from mobillm_flower.config import Settings, load_settings
from mobillm_flower.config.run_compatibility import check_rounds
from mobillm_flower.errors import RunFailed
from mobillm_flower.models.fine_tuned import FineTunedModel, baseline_model
from mobillm_flower.runs import device_events, events
from mobillm_flower.runs.folder import RunFolder
from mobillm_flower.strategies.fleet import last_line
from mobillm_flower.strategies.lifecycle import running
from mobillm_flower.strategies.run_state import EvaluateFn
from mobillm_flower.wire import keys
from mobillm_flower.wire.baseline_messages import open_holdings, open_numbers
from mobillm_flower.wire.contract import TaskContract
from mobillm_flower.wire.window import record_bytes

_POLL_S = 0.2  # between looks for devices


@dataclass
class BaselineRun:
    """A baseline's run, once its devices are met.

    Parameters
    ----------
    grid : Grid
        Flower's grid.
    folder : RunFolder
        The run's files, and its log.
    contract : TaskContract
        The devices' task.
    timeout_s : float
        Seconds a round waits for an answer.
    first : ArrayRecord
        What the devices began with.
    arrays : ArrayRecord
        What the last round made; before the first, `first`.
    bytes_down : dict of int to int
        Bytes of the round's message to each node.
    """

    grid: Grid
    folder: RunFolder
    contract: TaskContract
    timeout_s: float
    first: ArrayRecord
    arrays: ArrayRecord
    bytes_down: dict[int, int] = field(default_factory=dict)


class BaselineStrategy(FedAvg):
    """Flower's FedAvg over all devices, and the run's folder.

    `events.jsonl` gets an event `work` for each answer of a device: round, node, FLOPs, seconds, samples passed, bytes
    up and down; and `evaluation` after each evaluation. With `peer.keep-rounds`, `rounds/N.pt` holds the weights after
    round N.

    Parameters
    ----------
    settings : Settings, optional
        By default the package's, with this strategy's name.
    run_path : path, optional
        As with `SideTuningStrategy`.
    """

    name = ""

    def __init__(self, settings: Settings | None = None, *, run_path: str | Path | None = None) -> None:
        self.settings = settings or load_settings(overrides=[f"strategy={self.name}"])
        devices = max(self.settings.data.num_devices, 1)
        super().__init__(min_train_nodes=devices, min_evaluate_nodes=devices, min_available_nodes=devices)
        check_rounds(self.name, self.settings.rounds.num_rounds)
        self._run_path = Path(run_path) if run_path else None
        self._run: BaselineRun | None = None

    @property
    def run(self) -> BaselineRun:
        """The run; raises RunFailed before there is one."""
        if self._run is None:
            raise RunFailed("there is no run yet: it begins with start, when devices are met")
        return self._run

    @property
    def contract(self) -> TaskContract:
        """The devices' task."""
        return self.run.contract

    @property
    def model(self) -> FineTunedModel:
        """The model as the devices have it."""
        return baseline_model(self.settings, self.contract)

    def initial(self, contract: TaskContract) -> ArrayRecord:
        """Return what the devices begin with."""
        return ArrayRecord(baseline_model(self.settings, contract).trained_state())

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
        """Run to the end; the arguments are those of `SideTuningStrategy.start`.

        Raises
        ------
        RunFailed
            The devices do not describe themselves, or differ in their task.
        InUseError
            Another run goes on in the run folder; nothing in it is touched.
        """
        with running(self.settings, self._run_path, grid, strategy=type(self).__name__) as started:
            timeout_s = timeout or self.settings.rounds.timeout_s
            contract = self._meet(grid, timeout_s, started.folder)
            first = initial_arrays if len(initial_arrays) else self.initial(contract)
            self._run = BaselineRun(grid, started.folder, contract, timeout_s, first, arrays=first)
            started.keep_settings()
            return super().start(
                grid,
                first,
                num_rounds or self.settings.rounds.num_rounds,
                timeout_s,
                train_config,
                evaluate_config,
                evaluate_fn,
            )

    def _meet(self, grid: Grid, timeout_s: float, folder: RunFolder) -> TaskContract:
        """Wait for the devices and return their task."""
        deadline, nodes = time.monotonic() + timeout_s, list(grid.get_node_ids())
        while len(nodes) < self.min_available_nodes:
            if time.monotonic() > deadline:
                raise RunFailed(f"{len(nodes)} of {self.min_available_nodes} device(s) are there after {timeout_s:g} s")
            time.sleep(_POLL_S)
            nodes = list(grid.get_node_ids())
        agreed: TaskContract | None = None
        asked = [Message(RecordDict(), dst_node_id=node, message_type=keys.DESCRIBE) for node in nodes]
        for reply in grid.send_and_receive(asked, timeout=timeout_s):
            if reply.has_error():
                raise RunFailed(f"a device answered with error {reply.error.code}: {last_line(reply.error.reason)}")
            contract, num_train, num_test = open_holdings(reply.content)
            if agreed is not None:
                agreed.require_same(contract, mine="in the fleet", theirs="on the device")
            agreed = contract
            folder.append(device_events.NodeMet(str(reply.metadata.src_node_id), num_train, num_test))
        if agreed is None:
            raise RunFailed(f"no device answered within {timeout_s:g} s")
        return agreed

    # ---- Flower's four -------------------------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the model to all devices."""
        messages = list(super().configure_train(server_round, arrays, config, grid))
        self.run.bytes_down = {message.metadata.dst_node_id: record_bytes(message.content) for message in messages}
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average what comes back, and log its cost."""
        answers = []
        heard = set()
        for reply in replies:
            node = reply.metadata.src_node_id
            heard.add(node)
            if reply.has_error():
                self.note_failure(node, f"error {reply.error.code}")
                continue
            answers.append(reply)
            size, sent = record_bytes(reply.content), self.run.bytes_down.get(node, 0)
            self.note_work(server_round, node, open_numbers(reply.content), bytes_up=size, bytes_down=sent)
        self.note_silence(heard)
        return self.kept(server_round, answers)

    def note_failure(self, node: int, reason: str) -> None:
        """Log that a device did not answer."""
        self.run.folder.append(device_events.Failure(reason, node=str(node)))

    def note_silence(self, heard: Collection[int]) -> None:
        """Log which nodes were asked in this round and not heard of in time: the average is without them."""
        for node in sorted(self.run.bytes_down.keys() - set(heard)):
            self.note_failure(node, f"no answer within rounds.timeout-s={self.run.timeout_s:g}")

    def note_work(
        self, server_round: int, node: int, numbers: Mapping[str, float], *, bytes_up: int, bytes_down: int
    ) -> None:
        """Log what a round cost a device, and with it the server."""
        work = events.Work(
            round=server_round,
            node=str(node),
            bytes_up=bytes_up,
            bytes_down=bytes_down,
            flops=numbers[keys.FLOPS],
            seconds=numbers[keys.SECONDS],
            samples=numbers[keys.SAMPLES],
            loss=numbers[keys.LOSS],
            server_seconds=numbers.get(keys.SERVER_SECONDS, 0.0),
        )
        self.run.folder.append(work)

    def kept(self, server_round: int, answers: list[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine the devices' answers, and keep what comes out with `peer.keep-rounds`."""
        arrays, record = self.combine(server_round, answers)
        if arrays is None:
            return None, record
        self.run.arrays = arrays
        if self.settings.peer.keep_rounds:
            file = self.run.folder.round_weights(server_round)
            file.parent.mkdir(exist_ok=True)
            torch.save(arrays.to_torch_state_dict(), file)
        return arrays, record

    def combine(self, server_round: int, replies: list[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Make the next model from the devices' answers: FedAvg's mean by number of samples."""
        return super().aggregate_train(server_round, replies)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Evaluate on the devices every `rounds.evaluate-every` rounds, and at the end."""
        every, last = self.settings.rounds.evaluate_every, self.settings.rounds.num_rounds
        if server_round < last and not (every and server_round % every == 0):
            return []
        return super().configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Average the devices' metrics by their number of test samples."""
        metrics = super().aggregate_evaluate(server_round, replies)
        if metrics is not None:
            self.run.folder.append(events.Evaluation.of(server_round, dict(metrics)))
        return metrics
