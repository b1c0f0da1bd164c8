"""What the devices of the baselines do with a message, by the name of the strategy."""

from __future__ import annotations

import json
import logging
import time
import zlib
from abc import ABC, abstractmethod
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, RecordDict

from mobillm_flower.config import Settings
from mobillm_flower.core.registry import Registry
from mobillm_flower.core.zeroth_order import move, projected_gradient
from mobillm_flower.models.fine_tuned import FineTunedModel, Work, baseline_model
from mobillm_flower.tasks import LocalData, with_tokens
from mobillm_flower.wire import keys
from mobillm_flower.wire.baseline_messages import open_array, open_arrays, open_config, pack_arrays, pack_numbers

logger = logging.getLogger(__name__)


class BaselineDevice(ABC):
    """One device of a baseline.

    Parameters
    ----------
    settings : Settings
        The device's own.
    data : LocalData
        What it holds.
    folder : Path
        Its own, made when something is kept there.
    """

    def __init__(self, settings: Settings, data: LocalData, folder: Path) -> None:
        self.settings, self.folder = settings, folder
        self._read = data

    @cached_property
    def data(self) -> LocalData:
        """What it holds and its tokenizer can read; rows that take no part are logged, in numbers."""
        data = with_tokens(self._read, self.model.backbone, self.settings)
        if said := str(data.left_out):
            logger.warning("device %s leaves out %s", self.folder.name, said)
        return data

    @property
    def model(self) -> FineTunedModel:
        """The model, loaded once per process and shared by its devices: each message brings the weights."""
        return baseline_model(self.settings, self._read.contract)

    def load(self, content: RecordDict) -> None:
        """Set the model's weights from a message."""
        self.model.load_trained(open_arrays(content).to_torch_state_dict())

    @abstractmethod
    def train(self, content: RecordDict) -> RecordDict:
        """Answer a message of training."""

    def seed(self, content: RecordDict) -> int:
        """Return a seed of this device and round alone."""
        round_, mine = open_config(content, keys.SERVER_ROUND), zlib.crc32("\n".join(self.data.train.texts).encode())
        return int(np.random.SeedSequence([self.settings.run.seed, round_, mine]).generate_state(1)[0])


BASELINE_DEVICES: Registry[type[BaselineDevice]] = Registry("baseline's device")
"""Devices by the name that `strategy` gives."""


@BASELINE_DEVICES.register("fed-lora")
@BASELINE_DEVICES.register("fed-bitfit")
class AveragingDevice(BaselineDevice):
    """Trains the model it is sent for `peer.local-epochs`, and sends the trained parameters back (FedAvg)."""

    def train(self, content: RecordDict) -> RecordDict:
        """Return the trained parameters."""
        peer = self.settings.peer
        self.load(content)
        work = self.model.fit(
            self.data.train,
            epochs=peer.local_epochs,
            batch_size=peer.batch_size,
            learning_rate=peer.learning_rate,
            seed=self.seed(content),
        )
        return _reply(ArrayRecord(self.model.trained_state()), work, len(self.data.train))


@BASELINE_DEVICES.register("fed-kseed")
class SeedDevice(BaselineDevice):
    """Forward-only: steps along directions that seeds draw; seeds and scalars go up (FedKSeed, 2312.06353)."""

    def load(self, content: RecordDict) -> None:
        """Make the model from the sums of a pool of seeds."""
        sums = open_array(content, keys.SUMS)
        self.model.replay(dict(enumerate(sums.tolist())), learning_rate=self.settings.peer.learning_rate)

    def train(self, content: RecordDict) -> RecordDict:
        """Return the seeds of this round's steps and the projected gradient of each."""
        peer, model = self.settings.peer, self.model
        self.load(content)
        seed = self.seed(content)
        draw = np.random.default_rng(seed)
        parameters = list(model.trained().values())
        seeds: list[int] = []
        gradients: list[float] = []
        flops, count, started = 0, 0, time.perf_counter()
        while len(seeds) < peer.local_steps and len(self.data.train):
            for inputs, labels in model.batches(self.data.train, peer.batch_size, seed + len(seeds)):
                chosen = int(draw.integers(peer.num_seeds))
                with torch.no_grad(), model.counted(("two-forward", *inputs["input_ids"].shape)) as counted:
                    gradient = projected_gradient(
                        partial(model.batch_loss, inputs, labels), parameters, chosen, epsilon=peer.perturbation
                    )
                flops += counted.flops
                move(parameters, chosen, -peer.learning_rate * gradient)
                seeds.append(chosen)
                gradients.append(gradient)
                count += len(labels)
                if len(seeds) == peer.local_steps:
                    break
        arrays = {keys.SEEDS: np.array(seeds, np.int32), keys.GRADIENTS: np.array(gradients, np.float32)}
        return _reply(pack_arrays(arrays), Work(flops, time.perf_counter() - started, count), len(self.data.train))


@BASELINE_DEVICES.register("upload-all")
class UploadingDevice(BaselineDevice):
    """Sends its texts and labels as they are: the ceiling that privacy forbids."""

    def train(self, _content: RecordDict) -> RecordDict:
        """Return all training samples."""
        rows = self.data.train
        text = json.dumps(
            {"texts": rows.texts, "pairs": rows.pairs, "labels": rows.labels.tolist()}, ensure_ascii=False
        )
        return _reply(
            pack_arrays({keys.ROWS: np.frombuffer(text.encode(), np.uint8)}), Work(samples=len(rows)), len(rows)
        )


def _reply(arrays: ArrayRecord, work: Work, num_examples: int) -> RecordDict:
    numbers = {
        keys.NUM_EXAMPLES: num_examples,
        keys.FLOPS: float(work.flops),
        keys.SECONDS: work.seconds,
        keys.SAMPLES: work.samples,
        keys.LOSS: work.loss,
    }
    return RecordDict({keys.ARRAYS: arrays, keys.METRICS: pack_numbers(numbers)})
