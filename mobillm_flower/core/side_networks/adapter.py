"""The adapter that side networks are made of, and what its weights are drawn from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mobillm_flower.errors import ArgumentError

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "identity": nn.Identity,
}


def activation_named(name: str) -> Callable[[], nn.Module]:
    """Return what makes an activation function; raises ArgumentError where it is unknown."""
    if name not in ACTIVATIONS:
        raise ArgumentError("activation", name, f"is not known; choose one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def zero_linear(width: int, num_outputs: int) -> nn.Linear:
    """Return W and b that start at zero."""
    linear = nn.Linear(width, num_outputs)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


class Adapter(nn.Module):
    """h = s + W_up φ(W_down LN(s)); W_up starts at zero, so that a fresh adapter passes its input on."""

    def __init__(self, width: int, bottleneck: int, activation: nn.Module, generator: torch.Generator) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.down = nn.Linear(width, bottleneck)
        self.activation = activation
        self.up = nn.Linear(bottleneck, width)
        with torch.no_grad():
            self.down.weight.copy_(torch.randn(bottleneck, width, generator=generator) / width**0.5)
            self.down.bias.zero_()
            self.up.weight.zero_()
            self.up.bias.zero_()

    def forward(self, state: Tensor, mix: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Return h, [..., d], of s, [..., d]; `mix` works on the narrow vectors [..., r]."""
        narrow = self.down(self.norm(state))
        out: Tensor = state + self.up(self.activation(mix(narrow) if mix else narrow))
        return out


def own_generator(seed: int, name: str) -> torch.Generator:
    """Return a generator that depends on a seed and a name alone."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
