"""The data itself, uploaded."""

from __future__ import annotations

import json

import torch
from flwr.app import ArrayRecord, Message, MetricRecord

from mobillm_flower.runs.events import ServerWork
from mobillm_flower.strategies.baselines.base import BaselineStrategy
from mobillm_flower.strategies.registry import STRATEGIES
from mobillm_flower.tasks import Samples
from mobillm_flower.wire import keys
from mobillm_flower.wire.baseline_messages import open_array


@STRATEGIES.register("upload-all")
class UploadAll(BaselineStrategy):
    """Every device sends its texts and labels; the server trains LoRA on them: the ceiling that privacy forbids."""

    name = "upload-all"

    def combine(self, server_round: int, replies: list[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Train on all rows for `peer.local-epochs`; the devices' part is over after the first round.

        The event `server-work` has the seconds that it took.
        """
        rows = [json.loads(open_array(reply.content, keys.ROWS).tobytes()) for reply in replies]
        texts = [text for row in rows for text in row["texts"]]
        pairs = [pair for row in rows for pair in row["pairs"] or []]
        labels = torch.tensor([label for row in rows for label in row["labels"]])
        peer = self.settings.peer
        self.model.load_trained(self.run.first.to_torch_state_dict())
        work = self.model.fit(
            Samples(texts, pairs or None, labels),
            epochs=peer.local_epochs,
            batch_size=peer.batch_size,
            learning_rate=peer.learning_rate,
            seed=self.settings.run.seed,
        )
        self.run.folder.append(ServerWork(server_round, work.seconds, work.samples))
        metrics = self.train_metrics_aggr_fn([reply.content for reply in replies], self.weighted_by_key)
        return ArrayRecord(self.model.trained_state()), metrics
