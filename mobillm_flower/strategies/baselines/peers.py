"""Peers as Flower strategies: Flower's own FedAvg, with a log of what each device's work and messages cost."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result

from mobillm_flower.config import Settings, load_settings, run_folder, to_yaml
from mobillm_flower.config.compatibility import check_rounds
from mobillm_flower.errors import MobiLLMError, RunFailed
from mobillm_flower.models.fine_tuned import FineTunedModel, baseline_model
from mobillm_flower.runs import events
from mobillm_flower.runs.folder import RunFolder
from mobillm_flower.strategies.base import STRATEGIES, EvaluateFn
from mobillm_flower.tasks import Samples
from mobillm_flower.wire import keys
from mobillm_flower.wire.baseline_messages import open_array, open_holdings, open_numbers, pack_arrays
from mobillm_flower.wire.contract import TaskContract
from mobillm_flower.wire.window import record_bytes


class PeerStrategy(FedAvg):
    """What the peers share: Flower's FedAvg over all devices, and the run's folder.

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
        self.contract: TaskContract
        self._bytes_down: dict[int, int] = {}

    @property
    def model(self) -> FineTunedModel:
        """The model as the devices have it."""
        return baseline_model(self.settings, self.contract)

    def initial(self) -> ArrayRecord:
        """Return what the devices begin with."""
        return ArrayRecord(self.model.trained_state())

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
        run_id = str(getattr(grid.run, "run_id", "local"))
        self.run = RunFolder(self._run_path or run_folder(self.settings, run_id), run_id=run_id)
        lock = self.run.hold()
        self.run.settings.write_text(to_yaml(self.settings), "utf-8")
        self.run.append(events.Started(type(self).__name__))
        started = time.monotonic()
        try:
            self.timeout = timeout = timeout or self.settings.rounds.timeout_s
            self._meet(grid, timeout)
            result = super().start(
                grid,
                initial_arrays if len(initial_arrays) else self.initial(),
                num_rounds or self.settings.rounds.num_rounds,
                timeout,
                train_config,
                evaluate_config,
                evaluate_fn,
            )
        except BaseException as error:
            reason = str(error) if isinstance(error, MobiLLMError | OSError) else type(error).__name__
            self.run.append(events.Finished("failed", time.monotonic() - started, reason))
            raise
        finally:
            lock.release()
        self.run.append(events.Finished("completed", round(time.monotonic() - started, 3)))
        return result

    def _meet(self, grid: Grid, timeout: float) -> None:
        """Wait for the devices and learn their task."""
        deadline, nodes = time.monotonic() + timeout, list(grid.get_node_ids())
        while len(nodes) < self.min_available_nodes:
            if time.monotonic() > deadline:
                raise RunFailed(f"{len(nodes)} of {self.min_available_nodes} device(s) are there after {timeout:g} s")
            time.sleep(0.2)
            nodes = list(grid.get_node_ids())
        asked = [Message(RecordDict(), dst_node_id=node, message_type=keys.DESCRIBE) for node in nodes]
        for reply in grid.send_and_receive(asked, timeout=timeout):
            if reply.has_error():
                lines = (reply.error.reason or "").strip().splitlines()
                raise RunFailed(
                    f"a device answered with error {reply.error.code}: {(lines or ['no reason given'])[-1][:300]}"
                )
            contract, num_train, num_test = open_holdings(reply.content)
            if hasattr(self, "contract"):
                self.contract.require_same(contract, mine="in the fleet", theirs="on the device")
            self.contract = contract
            self.run.append(events.NodeMet(str(reply.metadata.src_node_id), num_train, num_test))
        if not hasattr(self, "contract"):
            raise RunFailed(f"no device answered within {timeout:g} s")

    # ---- Flower's four -------------------------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the model to all devices."""
        messages = list(super().configure_train(server_round, arrays, config, grid))
        self._bytes_down = {message.metadata.dst_node_id: record_bytes(message.content) for message in messages}
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average what comes back, and log its cost."""
        answers = []
        for reply in replies:
            if reply.has_error():
                self.note_failure(reply.metadata.src_node_id, f"error {reply.error.code}")
                continue
            answers.append(reply)
            node = reply.metadata.src_node_id
            size, sent = record_bytes(reply.content), self._bytes_down.get(node, 0)
            self.note_work(server_round, node, open_numbers(reply.content), bytes_up=size, bytes_down=sent)
        return self.kept(server_round, answers)

    def note_failure(self, node: int, reason: str) -> None:
        """Log that a device did not answer."""
        self.run.append(events.Failure(reason, node=str(node)))

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
        self.run.append(work)

    def kept(self, server_round: int, answers: list[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine the devices' answers, and keep what comes out with `peer.keep-rounds`."""
        arrays, record = self.combine(server_round, answers)
        if arrays is not None and self.settings.peer.keep_rounds:
            folder = self.run.path / "rounds"
            folder.mkdir(exist_ok=True)
            torch.save(arrays.to_torch_state_dict(), folder / f"{server_round}.pt")
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
            self.run.append(events.Evaluation.of(server_round, dict(metrics)))
        return metrics


@STRATEGIES.register("fed-lora")
class FedLoRA(PeerStrategy):
    """LoRA (arXiv 2106.09685) on the attention's query and value and a linear head, averaged by FedAvg."""

    name = "fed-lora"


@STRATEGIES.register("fed-bitfit")
class FedBitFit(PeerStrategy):
    """The layers' biases (BitFit, arXiv 2106.10199) and a linear head, averaged by FedAvg."""

    name = "fed-bitfit"


@STRATEGIES.register("fed-kseed")
class FedKSeed(PeerStrategy):
    """Full-parameter zeroth-order training by K seeds and scalars (FedKSeed, arXiv 2312.06353).

    What travels down is the sum of projected gradients of each seed, what travels up the seeds of a round's steps and
    their projected gradients. Deviation: the embeddings stay frozen, and the linear head starts at zero.
    """

    name = "fed-kseed"

    def initial(self) -> ArrayRecord:
        """Return a sum of zero for each seed."""
        self._sums = np.zeros(self.settings.peer.num_seeds, np.float64)
        return pack_arrays({keys.SUMS: self._sums})

    def combine(self, server_round: int, replies: list[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Add the devices' projected gradients to their seeds' sums, weighted by number of samples."""
        weights = [open_numbers(reply.content)[keys.NUM_EXAMPLES] for reply in replies]
        for weight, reply in zip(weights, replies, strict=True):
            seeds, gradients = open_array(reply.content, keys.SEEDS), open_array(reply.content, keys.GRADIENTS)
            np.add.at(self._sums, seeds, weight / sum(weights) * gradients.astype(np.float64))
        metrics = self.train_metrics_aggr_fn([reply.content for reply in replies], self.weighted_by_key)
        return pack_arrays({keys.SUMS: self._sums}), metrics


@STRATEGIES.register("upload-all")
class UploadAll(PeerStrategy):
    """Every device sends its texts and labels; the server trains LoRA on them: the ceiling that privacy forbids."""

    name = "upload-all"

    def initial(self) -> ArrayRecord:
        """Return the model's own weights, from which each training starts."""
        self._first = self.model.trained_state()
        return ArrayRecord(self._first)

    def combine(self, server_round: int, replies: list[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Train on all rows for `peer.local-epochs`; the devices' part is over after the first round.

        The event `server-work` has the seconds that it took.
        """
        rows = [json.loads(open_array(reply.content, keys.ROWS).tobytes()) for reply in replies]
        texts = [text for row in rows for text in row["texts"]]
        pairs = [pair for row in rows for pair in row["pairs"] or []]
        labels = torch.tensor([label for row in rows for label in row["labels"]])
        peer = self.settings.peer
        self.model.load_trained(self._first)
        work = self.model.fit(
            Samples(texts, pairs or None, labels),
            epochs=peer.local_epochs,
            batch_size=peer.batch_size,
            learning_rate=peer.learning_rate,
            seed=self.settings.run.seed,
        )
        self.run.append(events.ServerWork(server_round, work.seconds, work.samples))
        metrics = self.train_metrics_aggr_fn([reply.content for reply in replies], self.weighted_by_key)
        return ArrayRecord(self.model.trained_state()), metrics
