"""The trainer's step from the memory tier beside a bare torch loop that does the same mathematics."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.overhead.synthetic import BATCH, synthetic_plan, synthetic_spec
from mobillm_flower.config import TrainerSettings
from mobillm_flower.core.codecs import CODECS
from mobillm_flower.core.placement import torch_threads
from mobillm_flower.core.side_networks import ActivationBatch
from mobillm_flower.core.side_networks.additive import ALIGNMENT_RATE
from mobillm_flower.core.sparse import encode_sample
from mobillm_flower.core.targets import predict_square, square_loss
from mobillm_flower.evaluation.turns import Report, Threshold, compare_seconds, take_turns, timed
from mobillm_flower.privacy.ledger import Release
from mobillm_flower.server import ActivationCache, Trainer, TrainerOptions
from mobillm_flower.server.plan import TrainingPlan
from mobillm_flower.server.sampler import draw_order
from mobillm_flower.wire.contract import ExtractionSpec, TaskContract
from mobillm_flower.wire.target_bytes import encode_targets

STEP_BAR = 1.15
PIVOTS = {"": "first+mean", "_mean": "mean"}
"""Endings of the figures' names: the default, with alignments to train, and the smallest network, with none."""


def bench_trainer(
    *,
    pairs: int = 10,
    num_samples: int = 1024,
    blocks: int = 6,
    width: int = 384,
    num_classes: int = 12,
    num_threads: int = 1,
    say: Callable[[str], None] = lambda _text: None,
) -> Report:
    """Train from a cache and from a prebuilt tensor in turns, an epoch a turn, under the default settings.

    Parameters
    ----------
    pairs : int
        Turns.
    num_samples : int
        Random samples, encoded as NF4; all of them fit the memory tier.
    blocks, width, num_classes : int
        M, d_b and K; by default those of all-MiniLM-L6-v2 on the package's own data.

    Returns
    -------
    Report
        Bars `step_ratio` and `step_ratio_mean`: seconds of a step over seconds of the bare loop's, with pivot
        `first+mean` and with `mean`. `figures` say whether both ended with the same weights, bit by bit.
    """
    defaults = TrainerSettings(batch_size=BATCH)
    report = Report(
        "trainer",
        {
            "samples": num_samples,
            "pivots": list(PIVOTS.values()),
            "shape": {"blocks": blocks, "width": width, "classes": num_classes, "codec": "nf4"},
            "batch": defaults.batch_size,
            "steps_a_turn": math.ceil(num_samples / defaults.batch_size),
            "dtype": "fp32",
            "threads": num_threads,
            "pairs": pairs,
        },
    )
    with torch_threads(num_threads):
        for ending, pivot in PIVOTS.items():
            say(f"pivot {pivot}")
            spec = synthetic_spec("bench", pivot=pivot, blocks=blocks, width=width)
            plan = training_plan(spec, num_classes, num_samples, epochs=pairs + 1, num_threads=num_threads)
            with tempfile.TemporaryDirectory() as folder:
                cache = ActivationCache(Path(folder) / "cache.sqlite")
                fill_cache(cache, spec, plan.contract, num_samples)
                trainer = plan.trainer(
                    cache, scores=lambda side, base: predict_square(side, base, 1.0), memory_bytes=1 << 40
                )
                bare = BareLoop(plan, trainer)
                sides = {"ours": timed(lambda one=trainer: train_epoch(one)), "bare": timed(bare.epoch)}  # type: ignore[misc]
                take_turns(sides, 1)  # decodes every sample, makes the optimizers' states
                found = take_turns(sides, pairs, say=say)
                cache.close()
            for clock, comparison in compare_seconds(found["ours"], found["bare"], "bare torch loop").items():
                report.comparisons[f"epoch{ending}{clock}"] = comparison
            report.bars[f"step_ratio{ending}"] = Threshold(
                report.comparisons[f"epoch{ending}"].ratio, STEP_BAR, at_most=True
            )
            report.figures[f"identical{ending}"] = bare.equals(trainer.network)
    return report


def train_epoch(trainer: Trainer) -> None:
    """Train one epoch."""
    epoch = trainer.position.epoch
    trainer.run_epochs(stop=lambda: trainer.position.epoch > epoch)


class BareLoop:
    """What one would write by hand for activations and targets that lie in two tensors.

    The same network from the same seed, dropout, square loss, clipping, AdamW with its rate, running average, and
    order of the samples; nothing else.
    """

    def __init__(self, plan: TrainingPlan, trainer: Trainer) -> None:
        self.plan, self.options = plan, plan.options
        (batch,), targets = trainer.loader.load(trainer.loader.cache.rows())
        assert targets.differences is not None
        self.backbone, self.rows, self.differences = batch.backbone, batch.rows, targets.differences
        self.average = plan.side_config.build()
        self.network: nn.Module = plan.side_config.build()
        self.parameters: list[Tensor] = list(self.network.parameters())
        self.averages: list[Tensor] = list(self.average.parameters())
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.network.named_parameters():
            decay = self.options.weight_decay if parameter.ndim >= 2 else 0.0
            rate = self.options.learning_rate * (ALIGNMENT_RATE if name.startswith("alignment.") else 1.0)
            groups.setdefault((rate, decay), []).append(parameter)
        self.optimizer = torch.optim.AdamW(
            [{"params": members, "lr": rate, "weight_decay": decay} for (rate, decay), members in groups.items()],
            fused=True,
        )
        self.rates = [rate for rate, _ in groups]
        self.steps = self.epochs = 0

    def epoch(self) -> None:
        """Take a step a batch."""
        options = self.options
        self.network.train()
        order = torch.from_numpy(draw_order(len(self.rows), seed=options.seed, phase=0, number=self.epochs))
        for places in torch.split(order, options.batch_size):
            self._step(self.rows.index_select(0, places), self.differences.index_select(0, places))
        self.epochs += 1

    def _step(self, rows: Tensor, differences: Tensor) -> None:
        options = self.options
        generator = torch.Generator().manual_seed(abs(options.seed) * 1_000_003 + self.steps)
        kept = torch.empty_like(rows).bernoulli_(1 - options.dropout, generator=generator)
        side = self.network([ActivationBatch(self.backbone, rows * kept / (1 - options.dropout))])
        loss = square_loss(side, differences, self.plan.scale)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters, options.grad_clip)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * self._factor()
        self.optimizer.step()
        self.steps += 1
        kept_share = min(options.averaging, self.steps / (self.steps + 9))
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, self.parameters, 1 - kept_share)

    def _factor(self) -> float:
        """Return the rate's factor of the step to come."""
        planned, warm = self.options.planned_steps, self.options.warmup * self.options.planned_steps
        if self.steps < warm:
            return (self.steps + 1) / (warm + 1)
        return max(0.05, (planned - self.steps) / max(1.0, planned - warm))

    def equals(self, network: nn.Module) -> bool:
        """Whether the averaged weights are another network's, bit by bit."""
        theirs = network.state_dict()
        return all(torch.equal(theirs[name], tensor) for name, tensor in self.average.state_dict().items())


def training_plan(spec: ExtractionSpec, num_classes: int, count: int, *, epochs: int, num_threads: int) -> TrainingPlan:
    """Return a run's plan under the default settings, without a validation share."""
    chosen = TrainerSettings(epochs=epochs, batch_size=BATCH, validation_share=0.0, patience=0)
    options = TrainerOptions.of(chosen, planned_steps=epochs * math.ceil(count / chosen.batch_size), seed=0)
    return synthetic_plan([spec], options, num_classes=num_classes, num_threads=num_threads)


def fill_cache(cache: ActivationCache, spec: ExtractionSpec, contract: TaskContract, count: int) -> None:
    """Put random samples of a type into a cache, encoded as NF4."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(contract.num_outputs, (count,), generator=generator)
    base = torch.full((count, contract.num_outputs), 1 / contract.num_outputs)
    samples = []
    for i, target in enumerate(encode_targets(labels, base, spec, contract)):
        values = torch.randn(1, len(spec.layers), spec.num_vectors, spec.width, generator=generator)
        samples.append(Release(i.to_bytes(16, "big"), 1, encode_sample(values, CODECS["nf4"], 1.0), target))
    cache.add("0" * 32, samples, backbone=spec.backbone, round_=1)
