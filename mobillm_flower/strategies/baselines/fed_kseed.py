"""FedKSeed (arXiv 2312.06353): zeroth-order training, of which seeds and scalars travel."""

from __future__ import annotations

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord

from mobillm_flower.strategies.baselines.base import BaselineStrategy
from mobillm_flower.strategies.registry import STRATEGIES
from mobillm_flower.wire import keys
from mobillm_flower.wire.baseline_messages import open_array, open_numbers, pack_arrays
from mobillm_flower.wire.contract import TaskContract


@STRATEGIES.register("fed-kseed")
class FedKSeed(BaselineStrategy):
    """Full-parameter zeroth-order training by K seeds and scalars (FedKSeed, arXiv 2312.06353).

    What travels down is the sum of projected gradients of each seed, what travels up the seeds of a round's steps and
    their projected gradients. Deviation: the embeddings stay frozen, and the linear head starts at zero.
    """

    name = "fed-kseed"

    def initial(self, contract: TaskContract) -> ArrayRecord:
        """Return a sum of zero for each seed."""
        return pack_arrays({keys.SUMS: np.zeros(self.settings.peer.num_seeds, np.float64)})

    def combine(self, server_round: int, replies: list[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Add the devices' projected gradients to their seeds' sums, weighted by number of samples."""
        sums = self.run.arrays[keys.SUMS].numpy().copy()
        weights = [open_numbers(reply.content)[keys.NUM_EXAMPLES] for reply in replies]
        for weight, reply in zip(weights, replies, strict=True):
            seeds, gradients = open_array(reply.content, keys.SEEDS), open_array(reply.content, keys.GRADIENTS)
            np.add.at(sums, seeds, weight / sum(weights) * gradients.astype(np.float64))
        metrics = self.train_metrics_aggr_fn([reply.content for reply in replies], self.weighted_by_key)
        return pack_arrays({keys.SUMS: sums}), metrics
