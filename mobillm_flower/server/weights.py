"""The weights of a side network in training: a step on them, their running average, and AdamW's state of them."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mobillm_flower.core.side_networks import ActivationBatch, Penalised, ScalesLearningRates
from mobillm_flower.server.options import TrainerOptions


class TrainedWeights:
    """AdamW with linear warm-up and decay, gradient clipping and weight averaging.

    Attributes
    ----------
    network : nn.Module
        With the running average of the trained weights.
    live : nn.Module
        With the trained weights; `network` itself where nothing is averaged.

    Parameters
    ----------
    network : nn.Module
        A side network on the device that it is trained on.
    options : TrainerOptions
        Learning rate and weight decay.
    """

    def __init__(self, network: nn.Module, options: TrainerOptions) -> None:
        self.network, self.live = network, copy.deepcopy(network) if options.averaging else network
        self._penalty = self.live.penalty if isinstance(self.live, Penalised) else None
        # walking the modules for their parameters takes as long as a small layer: once, and not at each step
        self._averaged: list[Tensor] = list(self.network.parameters())
        self._trained: list[Tensor] = list(self.live.parameters())
        self._optimizer = torch.optim.AdamW(_parameter_groups(self.live, options), fused=True)

    def outputs(
        self, batches: Sequence[ActivationBatch], newcomers: Collection[str], steps: dict[str, int], *, enough: int
    ) -> Tensor:
        """Return s(A) [B, K] in training; a newcomer's first samples reach its own alignment alone.

        Through the shared adapters, gates and output they are computed with the weights as constants.

        Parameters
        ----------
        newcomers : collection of str
            Backbone types that joined late.
        steps : dict of str to int
            How many steps each of them has taken: this one is added.
        enough : int
            Steps after which one is a newcomer no more.
        """
        if not self.live.training:  # it walks the modules too
            self.live.train()
        new = {b.backbone for b in batches if b.backbone in newcomers and steps.get(b.backbone, 0) < enough}
        if not new:
            return self.live(batches)  # type: ignore[no-any-return]
        parts: list[Tensor] = []
        for batch in batches:
            if batch.backbone in new:
                steps[batch.backbone] = steps.get(batch.backbone, 0) + 1
                own = f"alignment.{batch.backbone}."
                constants = {n: p.detach() for n, p in self.live.named_parameters() if not n.startswith(own)}
                parts.append(torch.func.functional_call(self.live, constants, ([batch],)))
            else:
                parts.append(self.live([batch]))
        return torch.cat(parts)

    def step(self, loss: Tensor, options: TrainerOptions, *, number: int) -> None:
        """Take a step.

        Parameters
        ----------
        loss : Tensor
            Of `outputs`; the network's own penalty is added.
        options : TrainerOptions
            As they are now: the schedule may have been laid out anew.
        number : int
            Steps taken before.
        """
        if self._penalty is not None:
            loss = loss + self._penalty()
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._trained, options.grad_clip)
        rate = _rate(number, options)
        for group in self._optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate
        self._optimizer.step()
        if options.averaging:
            steps = number + 1
            kept = min(options.averaging, steps / (steps + 9))  # a short memory at first
            with torch.no_grad():
                torch._foreach_lerp_(self._averaged, self._trained, 1 - kept)

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """Return AdamW's state by parameter name."""
        state = self._optimizer.state
        return {name: dict(state[p]) for name, p in self.live.named_parameters() if p in state}

    def take_over(
        self, network: Mapping[str, Tensor], live: Mapping[str, Tensor], moments: Mapping[str, Mapping[str, Tensor]]
    ) -> None:
        """Load states that may lack a type which joined since."""
        for module, state in ((self.network, network), (self.live, live)):
            module.load_state_dict({**module.state_dict(), **state})
        for name, parameter in self.live.named_parameters():
            if name in moments:
                device = parameter.device
                self._optimizer.state[parameter] = {
                    key: value.to(device, copy=True) for key, value in moments[name].items()
                }

    def start_from(self, state: Mapping[str, Tensor]) -> None:
        """Take over weights of a network of the same shape, before the first step."""
        self.network.load_state_dict(dict(state))
        self.live.load_state_dict(dict(state))


def drop_values(batches: Sequence[ActivationBatch], share: float, *, seed: int, step: int) -> list[ActivationBatch]:
    """Zero a share of the inputs' values and scale the others up; drawn from (seed, step) alone."""
    generator = torch.Generator(batches[0].rows.device).manual_seed(abs(seed) * 1_000_003 + step)
    dropped = []
    for batch in batches:
        kept = torch.empty_like(batch.rows).bernoulli_(1 - share, generator=generator)
        dropped.append(replace(batch, rows=batch.rows * kept / (1 - share)))
    return dropped


def _rate(step: int, options: TrainerOptions) -> float:
    """Return the learning rate's factor: linear up over the warm-up, then linear down to a twentieth."""
    planned = max(1, options.planned_steps)
    warm = options.warmup * planned
    if step < warm:
        return (step + 1) / (warm + 1)
    return max(0.05, (planned - step) / max(1.0, planned - warm))


def _parameter_groups(network: nn.Module, options: TrainerOptions) -> list[dict[str, Any]]:
    """Group parameters by weight decay (matrices only) and by the network's own learning rate factors."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        decay = options.weight_decay if parameter.ndim >= 2 else 0.0
        factor = network.learning_rate_factor(name) if isinstance(network, ScalesLearningRates) else 1.0
        groups.setdefault((factor, decay), []).append(parameter)
    return [
        {
            "params": members,
            "lr": options.learning_rate * rate,
            "initial_lr": options.learning_rate * rate,
            "weight_decay": decay,
        }
        for (rate, decay), members in sorted(groups.items())
    ]
