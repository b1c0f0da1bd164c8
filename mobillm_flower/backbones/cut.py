"""A stack of layers that is left, or entered, between two of them; around it the model's own code runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mobillm_flower.backbones.backbone import Backbone
from mobillm_flower.backbones.engine import handing_over
from mobillm_flower.errors import SettingsError, UnsupportedError


class Cut:
    """A cut after layer ℓ of a backbone.

    Parameters
    ----------
    backbone : Backbone
        Where the layers are.
    layer : int
        ℓ, from 1 to L − 1.
    setting : str
        What chose ℓ, for the message where it does not fit.

    Raises
    ------
    SettingsError
        No layer would be left on one side.
    UnsupportedError
        The backbone is an encoder-decoder: its decoder reads more than the hidden states at the cut; or its layers are
        not in memory, but on disk or in ONNX Runtime.
    """

    def __init__(self, backbone: Backbone, layer: int, *, setting: str) -> None:
        if not 1 <= layer < len(backbone.stack):
            raise SettingsError(
                f"{setting}={layer} of {len(backbone.stack)} layers; give 1 to {len(backbone.stack) - 1}"
            )
        if "decoder_input_ids" in backbone.pad([{"input_ids": [0]}]):
            raise UnsupportedError(f"{backbone.info.name} is an encoder-decoder, which cannot be cut between layers")
        if any(parameter.is_meta for parameter in backbone.model.parameters()):
            raise UnsupportedError(
                f"{backbone.info.name} runs from disk or by ONNX Runtime, and {setting}={layer} needs its layers in "
                "memory; set backbone.memory-budget-mib=0 and backbone.engine=torch"
            )
        self.backbone, self.layer = backbone, layer
        self.below, self.above = backbone.stack[:layer], backbone.stack[layer:]
        self._extra = self._tuple_size()

    @torch.no_grad()
    def _tuple_size(self) -> int:
        """Return how many things a layer gives beside its hidden states; -1: it gives them bare."""
        sizes: list[int] = []

        def look(_module: nn.Module, _inputs: Any, output: Any) -> None:
            sizes.append(len(output) - 1 if isinstance(output, tuple) else -1)

        with self.below[0].register_forward_hook(look):
            self.backbone.model(**self.backbone.pad([{"input_ids": [0]}]))
        return sizes[0]

    @contextmanager
    def leaving(self) -> Iterator[list[Tensor]]:
        """End a forward pass inside at the cut; what layer ℓ + 1 would read, [B, T, d_b], is put into the list."""
        taken: list[Tensor] = []
        with handing_over(self.backbone.stack, (self.layer,), taken.append, stop=True):
            yield taken

    @contextmanager
    def entering(self, hidden: Tensor, *, prepare: Callable[[], object] = lambda: None) -> Iterator[None]:
        """Let a forward pass inside begin at the cut with `hidden`, [B, T, d_b]; the layers below do not run.

        `prepare` is called just before layer ℓ + 1 runs.
        """

        def put(_module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
            prepare()
            if arguments:
                return (hidden, *arguments[1:]), named
            return arguments, {**named, "hidden_states": hidden}

        with self.above[0].register_forward_pre_hook(put, with_kwargs=True), _skipped(self.below, self._extra):
            yield


class UpperLayers:
    """The layers above a cut, with something between them: see `mobillm_flower.core.side_networks.Upper`.

    Attributes
    ----------
    causal : bool
        Whether tokens see only their left.

    Parameters
    ----------
    cut : Cut
        Where they begin.
    """

    def __init__(self, cut: Cut) -> None:
        self._cut, self._model = cut, cut.backbone.model
        self._dtype = _dtype(cut.above)
        self.causal = cut.backbone.info.causal

    def __call__(self, hidden: Tensor, mask: Tensor, between: Callable[[int, Tensor], Tensor]) -> Tensor:
        """Return what the last layer leaves, before any final norm; differentiable.

        States come to `between`, and are returned, where `hidden` is.
        """
        device = self._cut.backbone.device
        left: list[Tensor] = []

        def hook(place: int) -> Callable[..., Any]:
            def after(_module: nn.Module, _inputs: Any, output: Any) -> Any:
                states = output[0] if isinstance(output, tuple) else output
                left[:] = [between(place, states.float().to(hidden.device))]
                made = left[0].to(device, self._dtype)
                return (made, *output[1:]) if isinstance(output, tuple) else made

            return after

        inputs = {"input_ids": torch.zeros_like(mask), "attention_mask": mask}
        with ExitStack() as stack:
            stack.enter_context(self._cut.entering(hidden.to(device, self._dtype)))
            for place, layer in enumerate(self._cut.above):
                stack.enter_context(layer.register_forward_hook(hook(place)))
            self._model(**{name: value.to(device) for name, value in inputs.items()})
        return left[0]


def _dtype(layers: Sequence[nn.Module]) -> torch.dtype:
    """Return what layers compute in; packed weights are no numbers of it, norms and biases are."""
    return next(p.dtype for layer in layers for p in layer.parameters() if p.dtype.is_floating_point)


@contextmanager
def _skipped(layers: Sequence[nn.Module], extra: int) -> Iterator[None]:
    """Let layers pass on what they read, in the form in which they would."""

    def passed_on(hidden_states: Tensor, *_arguments: Any, **_named: Any) -> Any:
        return hidden_states if extra < 0 else (hidden_states, *[None] * extra)

    for layer in layers:
        layer.forward = passed_on
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
