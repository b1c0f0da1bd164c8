"""The device of SplitFed (arXiv 2004.12088): it trains the layers up to the cut."""

from __future__ import annotations

import time
from dataclasses import asdict
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from mobillm_flower.clients.baselines.devices import BASELINE_DEVICES, BaselineDevice
from mobillm_flower.errors import MismatchError
from mobillm_flower.models.fine_tuned import Work
from mobillm_flower.models.split import SplitModel, TrainedPart, gradient_norms, token_rows
from mobillm_flower.wire import keys
from mobillm_flower.wire.baseline_messages import (
    open_arrays,
    open_config,
    open_tensor,
    pack_arrays,
    pack_numbers,
    tensor_array,
)


@BASELINE_DEVICES.register("split-fed")
class SplitDevice(BaselineDevice):
    """Runs the layers up to `peer.cut` forward, sends hidden states and labels, and learns from their gradients.

    Between two messages its part of the model and AdamW's state lie in its folder, and nothing else: the forward pass
    is done again, with the same dropout, when the gradients come. Operations and seconds count it once, as on a device
    that keeps its graph.
    """

    @cached_property
    def split(self) -> SplitModel:
        """The model's two ends."""
        return SplitModel(self.model, self.settings.peer.cut)

    @property
    def _file(self) -> Path:
        return self.folder / "split.pt"

    def train(self, content: RecordDict) -> RecordDict:
        """Begin a round, or take a step by the gradients that came, and return what the next step needs."""
        round_, steps = (open_config(content, key) for key in (keys.SERVER_ROUND, keys.STEP))
        work, arrays = Work(), {}
        if steps == 0:
            own = TrainedPart(open_arrays(content).to_torch_state_dict(), {}, {})
        else:
            own, norms, work = self._learn(self._kept(round_, steps), content)
            arrays[keys.NORMS] = tensor_array(norms)
        metrics = {keys.FLOPS: float(work.flops), keys.SECONDS: work.seconds, keys.SAMPLES: work.samples}
        if steps == self._num_steps:
            self._file.unlink(missing_ok=True)
            metrics[keys.NUM_EXAMPLES] = len(self.data.train)
            weights = ArrayRecord(dict(own.weights))
            return RecordDict(
                {keys.ARRAYS: pack_arrays(arrays), keys.WEIGHTS: weights, keys.METRICS: pack_numbers(metrics)}
            )
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        torch.save({"round": round_, "steps": steps, **asdict(own)}, self._file)
        inputs, labels = self._batch(content, steps)
        own.put_into(self.split.device_part)
        hidden = self._forward(inputs, content, steps)
        arrays |= {
            keys.HIDDEN: tensor_array(token_rows(hidden, inputs["attention_mask"])),
            keys.LENGTHS: tensor_array(inputs["attention_mask"].sum(1).int()),
            keys.LABELS: tensor_array(labels),
        }
        config = ConfigRecord({keys.STEP: steps, keys.SEED: self._dropout_seeds(content, steps)[1]})
        return RecordDict({keys.ARRAYS: pack_arrays(arrays), keys.CONFIG: config, keys.METRICS: pack_numbers(metrics)})

    def _learn(self, own: TrainedPart, content: RecordDict) -> tuple[TrainedPart, Tensor, Work]:
        """Take the step before, whose gradients came; returns also the norms of this end's gradients."""
        part, batch = self.split.device_part, open_config(content, keys.STEP) - 1
        inputs, labels = self._batch(content, batch)
        own.put_into(part)
        started = time.perf_counter()
        with self.model.counted(("split", *inputs["input_ids"].shape)) as counted:
            hidden = self._forward(inputs, content, batch)
            gradients = open_tensor(content, keys.GRADIENTS).to(hidden.device)
            token_rows(hidden, inputs["attention_mask"]).backward(gradients)  # type: ignore[no-untyped-call]
        norms = gradient_norms(part)
        of_both = [norms, open_tensor(content, keys.NORMS)]
        own = own.stepped(part, of_both, learning_rate=self.settings.peer.learning_rate)
        return own, norms, Work(counted.flops, time.perf_counter() - started, len(labels))

    def _forward(self, inputs: dict[str, Tensor], content: RecordDict, batch: int) -> Tensor:
        return self.split.below(inputs, seed=self._dropout_seeds(content, batch)[0])

    def _kept(self, round_: int, steps: int) -> TrainedPart:
        """Return what this device kept before the step; raises MismatchError where it is of another one."""
        kept = torch.load(self._file) if self._file.exists() else {"round": 0, "steps": 0}
        if (kept.pop("round"), kept.pop("steps")) != (round_, steps - 1):
            raise MismatchError(
                f"gradients of step {steps} of round {round_} came, but {self._file} is not of the step before; the "
                "device takes part again from the next round on"
            )
        return TrainedPart(**kept)

    @property
    def _steps_an_epoch(self) -> int:
        return -(-len(self.data.train) // self.settings.peer.batch_size)

    @property
    def _num_steps(self) -> int:
        return self.settings.peer.local_epochs * self._steps_an_epoch

    def _batch(self, content: RecordDict, number: int) -> tuple[dict[str, Tensor], Tensor]:
        """Return inputs and labels of a round's batch: those of `FineTunedModel.fit` with this device's seed."""
        epoch, place = divmod(number, self._steps_an_epoch)
        batches = self.model.batches(self.data.train, self.settings.peer.batch_size, self.seed(content) + epoch)
        return next(islice(batches, place, None))

    def _dropout_seeds(self, content: RecordDict, batch: int) -> list[int]:
        """Return a batch's seeds of dropout below and above the cut."""
        drawn: list[int] = np.random.SeedSequence([self.seed(content), batch]).generate_state(2).tolist()
        return drawn
