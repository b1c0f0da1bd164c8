"""The frozen end of a causal language model: what follows its last layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mobillm_flower.errors import UnsupportedError


class LanguageHead:
    """Final norm, output projection and output embedding of a model, run by the model's own code.

    The model runs on one token, and hooks put given tensors in place of what the last layer returns or of what the
    output embedding reads. So a family's own way from the last layer to logits (which norm, a projection, a scale, a
    cap on logits) is taken as it is, and differentiated through, without a list of families.

    Parameters
    ----------
    model
        transformers' causal model, frozen and in evaluation mode.
    last_layer : nn.Module
        Layer L.

    Raises
    ------
    UnsupportedError
        The model has no output embedding.
    """

    def __init__(self, model: Any, last_layer: nn.Module) -> None:
        self._model, self._last = model, last_layer
        self._output = model.get_output_embeddings()
        if self._output is None:
            raise UnsupportedError(f"{type(model).__name__} has no output embedding that gives logits of tokens")
        self.vocabulary, self.width = int(self._output.out_features), int(self._output.in_features)
        self.device, self._dtype = model.device, model.dtype

    def inputs(self, hidden: Tensor) -> Tensor:
        """Return what the output embedding reads, [N, d_u] float32, of last hidden states [N, d_b].

        These are taken as they leave the last layer, before the final norm. Differentiable.
        """
        taken: list[Tensor] = []

        def take(_module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            taken.append(arguments[0])
            return arguments[0][:1], *arguments[1:]

        given = hidden[:, None].to(self.device, self._dtype)  # [N, 1, d_b]: N texts of one token
        with self._last.register_forward_hook(_replacing(given)), self._output.register_forward_pre_hook(take):
            self._run()
        return taken[0][:, 0].float()

    def logits(self, inputs: Tensor) -> Tensor:
        """Return logits [N, V] float32 of what the output embedding reads, [N, d_u]. Differentiable."""

        def put(_module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            return inputs[:, None].to(self.device, self._dtype), *arguments[1:]

        with self._output.register_forward_pre_hook(put):
            logits: Tensor = self._run().logits[:, 0].float()
        return logits

    def _run(self) -> Any:
        token = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        return self._model(input_ids=token, attention_mask=torch.ones_like(token), use_cache=False)


def _replacing(hidden: Tensor) -> Callable[..., Any]:
    """Return a hook that lets a layer return `hidden`, [N, 1, d_b], in place of its own hidden states."""
    return lambda _module, _inputs, output: (hidden, *output[1:]) if isinstance(output, tuple) else hidden
