"""A model that is trained on two machines: layers up to a cut on a device, the rest on a server (SplitFed, 2004.12088).

Hidden states go up, their gradients come down. Both ends together take the steps of `FineTunedModel.fit`: gradients are
clipped by the norm over both ends, for which they exchange their parameters' norms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mobillm_flower.backbones.cut import Cut
from mobillm_flower.errors import UnsupportedError
from mobillm_flower.models.fine_tuned import MAX_NORM, FineTunedModel


class SplitModel:
    """The two ends of a fine-tuned model.

    Parameters
    ----------
    model : FineTunedModel
        Both ends have it whole; each runs and trains its own layers alone. The head is the server's.
    cut : int
        Layers 1..cut are the device's.

    Raises
    ------
    SettingsError
        No layer would be left to one of the ends.
    UnsupportedError
        The backbone is an encoder-decoder: its decoder reads more than the hidden states at the cut. Or tokens are
        predicted.
    """

    def __init__(self, model: FineTunedModel, cut: int) -> None:
        if model.contract.per_token:
            raise UnsupportedError("split training predicts classes and numbers, not tokens")
        self.model, self._cut = model, Cut(model.backbone, cut, setting="peer.cut")
        mine = {id(parameter) for layer in self._cut.below for parameter in layer.parameters()}
        trained = model.trained().items()
        self.device_part = {name: parameter for name, parameter in trained if id(parameter) in mine}
        self.server_part = {name: parameter for name, parameter in trained if id(parameter) not in mine}

    def below(self, inputs: Mapping[str, Tensor], *, seed: int) -> Tensor:
        """Return what layer cut + 1 reads, [B, T, d_b], of padded inputs; the layers above the cut do not run.

        Dropout is drawn from the seed.
        """
        with self._cut.leaving() as taken, _dropout(self.model, seed):
            self.model(inputs)
        return taken[0]

    def above(self, hidden: Tensor, mask: Tensor, *, seed: int) -> Tensor:
        """Return scores [B, K] of hidden states at the cut, [B, T, d_b], with the mask [B, T] of 0/1.

        The layers below do not run; dropout above the cut is drawn from the seed.
        """
        with _dropout(self.model, seed), self._cut.entering(hidden, prepare=partial(torch.manual_seed, seed)):
            return self.model({"input_ids": torch.zeros_like(mask), "attention_mask": mask})  # type: ignore[no-any-return]

    def loss_and_gradients(self, rows: Tensor, lengths: Tensor, labels: Tensor, *, seed: int) -> tuple[float, Tensor]:
        """Return the loss of a batch and its gradients at the cut; those of the server's part are left in it.

        Parameters
        ----------
        rows : Tensor
            Hidden states of all tokens, [Σ T, d_b], one sample after another, without padding.
        lengths : Tensor
            Tokens of each sample, [B].
        labels : Tensor
            [B].
        seed : int
            Of dropout above the cut.
        """
        device = self.model.backbone.device
        mask = (torch.arange(int(lengths.max())) < lengths.unsqueeze(1)).long().to(device)
        rows = rows.to(device).requires_grad_()
        hidden = rows.new_zeros(*mask.shape, rows.shape[1]).masked_scatter(
            mask.bool().unsqueeze(2), rows
        )  # [B, T, d_b]
        loss = self.model.loss(self.above(hidden, mask, seed=seed), labels.to(device))
        loss.backward()  # type: ignore[no-untyped-call]
        assert rows.grad is not None
        return float(loss.detach()), rows.grad.cpu()


def token_rows(hidden: Tensor, mask: Tensor) -> Tensor:
    """Return the states of all tokens, [Σ T, d_b], of hidden states [B, T, d_b], without padding."""
    return hidden[mask.bool()]


@dataclass(frozen=True)
class TrainedPart:
    """One end's trained parameters and their AdamW, as they are kept between steps.

    Parameters
    ----------
    weights : mapping
        Values by name.
    optimizer : mapping
        AdamW's state; empty before the first step.
    gradients : mapping
        Of a step that waits for the other end's norms; empty where none does.
    """

    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    gradients: Mapping[str, Tensor]

    def put_into(self, parameters: Mapping[str, nn.Parameter], *, with_gradients: bool = False) -> None:
        """Set parameters, and with `with_gradients` their gradients."""
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(self.weights[name])
                parameter.grad = self.gradients[name].to(parameter.device).clone() if with_gradients else None

    def stepped(
        self, parameters: Mapping[str, nn.Parameter], norms: Sequence[Tensor], *, learning_rate: float
    ) -> TrainedPart:
        """Return what is there after a step of AdamW on the parameters' gradients.

        Parameters
        ----------
        parameters : mapping
            This end's, with gradients.
        norms : sequence of Tensor
            Norms of the gradients of all parameters of both ends, in the model's order.
        learning_rate : float
            η.
        """
        values = list(parameters.values())
        total = torch.linalg.vector_norm(torch.cat([part.to(values[0].device) for part in norms]))
        nn.utils.clip_grads_with_norm_(values, MAX_NORM, total)
        optimizer = torch.optim.AdamW(values, lr=learning_rate, weight_decay=0.0)
        if self.optimizer:
            optimizer.load_state_dict(dict(self.optimizer))
        optimizer.step()
        return TrainedPart(copied(parameters), optimizer.state_dict(), {})


def copied(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return parameters' values on the CPU, by name."""
    return {name: parameter.detach().cpu().clone() for name, parameter in parameters.items()}


def gradient_norms(parameters: Mapping[str, nn.Parameter]) -> Tensor:
    """Return the norm of each parameter's gradient, [n] float32 on the CPU."""
    norms = [torch.linalg.vector_norm(value.grad) for value in parameters.values() if value.grad is not None]
    return torch.stack(norms).float().cpu()


@contextmanager
def _dropout(model: nn.Module, seed: int) -> Iterator[None]:
    """Train inside with dropout drawn from a seed; torch's own generator is left as it was."""
    model.train()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        model.eval()
