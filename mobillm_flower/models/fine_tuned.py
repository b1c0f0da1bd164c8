"""A backbone that is trained: what the baselines' devices do, and a forward-only device cannot.

LoRA (arXiv 2106.09685), BitFit (2106.10199) or all layers, under a linear head.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from mobillm_flower.backbones.backbone import Backbone
from mobillm_flower.backbones.engine import output_mask
from mobillm_flower.backbones.options import LoadOptions
from mobillm_flower.config import Settings
from mobillm_flower.core.zeroth_order import replay
from mobillm_flower.errors import SettingsError, UnsupportedError
from mobillm_flower.tasks import Samples, measure, tokenize
from mobillm_flower.wire.contract import TaskContract

METHODS = ("lora", "bitfit", "full")
"""What `FineTunedModel` can train."""

_ATTENTION = (("query", "value"), ("q_proj", "v_proj"), ("q_lin", "v_lin"), ("c_attn",), ("query_key_value",))
_PARAMETRIZED = "parametrizations.bias.original0"
MAX_NORM = 1.0
"""To which gradients are clipped."""


@dataclass(frozen=True)
class Work:
    """What a call cost the machine that made it.

    Parameters
    ----------
    flops : int
        Floating-point operations, counted on the real call (each batch shape once, then multiplied).
    seconds : float
        On the wall's clock.
    samples : int
        Samples that passed, repeated ones too.
    loss : float
        Mean loss over them, in nats (squared error for regression).
    """

    flops: int = 0
    seconds: float = 0.0
    samples: int = 0
    loss: float = 0.0


class FineTunedModel(nn.Module):
    """A backbone with trainable parts and a linear head on its pooled last layer.

    The head starts at zero, or where the backbone predicts by label words at their rows of the LM head, so that
    training starts from the backbone's own prediction.

    Parameters
    ----------
    backbone : Backbone
        Its modules are changed in place: load one for this alone.
    contract : TaskContract
        The task: K outputs, prompt, length, metric.
    method : {"lora", "bitfit", "full"}
        LoRA on the attention's query and value (α = 2r, no dropout); the layers' biases; all of the layers. The head
        is always trained.
    rank : int
        r of LoRA.
    seed : int
        Draws LoRA's initial weights.

    Raises
    ------
    SettingsError
        The method is unknown.
    UnsupportedError
        LoRA finds no attention projections, BitFit no biases, or the backbone has a classification head of its own.
    """

    def __init__(
        self, backbone: Backbone, contract: TaskContract, *, method: str = "lora", rank: int = 8, seed: int = 0
    ) -> None:
        super().__init__()
        if backbone.info.base_prediction == "classifier":
            raise UnsupportedError(
                f"{backbone.info.name} has a classification head of its own, which the baselines do not train; give "
                "a bare backbone"
            )
        self.backbone, self.contract = backbone, contract
        self.model = _made_trainable(backbone, method, rank, seed)
        self._add_head()
        self._flops: dict[tuple[Any, ...], int] = {}
        self._initial: dict[str, Tensor] | None = None

    def _add_head(self) -> None:
        backbone = self.backbone
        self.head = nn.Linear(self._output_width(), self.contract.num_outputs, device=backbone.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        if backbone.predictor is not None:
            words: Any = backbone.predictor.get_output_embeddings()  # type: ignore[operator]
            self.head.weight.data.copy_(words.weight)
            if words.bias is not None:
                self.head.bias.data.copy_(words.bias)

    @torch.no_grad()
    def _output_width(self) -> int:
        """Return the width of the last hidden state: not d_b in models that project it (OPT-350M)."""
        return int(self.model(**self.backbone.pad([{"input_ids": [0]}])).last_hidden_state.shape[-1])

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return scores [B, K] float32 of padded inputs: the head on the last layer's mean, or last token (causal)."""
        return self.pooled(self.model(**inputs).last_hidden_state, output_mask(inputs))

    def pooled(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return the head's scores [B, K] of last hidden states [B, T, d_b]."""
        if self.backbone.info.causal:
            pooled = hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]
        else:
            weights = mask.unsqueeze(2).to(hidden.dtype)
            pooled = (hidden * weights).sum(1) / weights.sum(1)
        return self.head(pooled.float())  # type: ignore[no-any-return]

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy, or squared error for regression, of a batch."""
        if self.contract.is_regression:
            return nn.functional.mse_loss(scores[:, 0], labels)
        return nn.functional.cross_entropy(scores, labels)

    def batch_loss(self, inputs: Mapping[str, Tensor], labels: Tensor) -> float:
        """Return the loss of a batch as a number, from one forward pass."""
        return float(self.loss(self(inputs), labels).detach())

    # ---- parameters ----------------------------------------------------------------------------------------------

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the parameters that are trained, by name; a bias has the same in every number format."""
        trained = {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {name.replace(_PARAMETRIZED, "bias"): parameter for name, parameter in trained.items()}

    def trained_state(self) -> dict[str, Tensor]:
        """Return a copy of the trained parameters on the CPU, by name: what FedAvg averages."""
        return {name: parameter.detach().cpu().clone() for name, parameter in self.trained().items()}

    def load_trained(self, state: Mapping[str, Tensor]) -> None:
        """Set the trained parameters; raises UnsupportedError where the names are not exactly theirs."""
        mine = self.trained()
        if mine.keys() != state.keys():
            odd = sorted(mine.keys() ^ state.keys())
            raise UnsupportedError(
                f"the weights are of another model or method: {odd[0]} and {len(odd) - 1} more differ"
            )
        with torch.no_grad():
            for name, parameter in mine.items():
                parameter.copy_(state[name])

    def replay(self, sums: Mapping[int, float], *, learning_rate: float) -> None:
        """Set the trained parameters to w_0 − η Σ_k a_k z_k of a pool of seeds (FedKSeed); w_0 is how it was made."""
        if self._initial is None:
            self._initial = self.trained_state()
        self.load_trained(self._initial)
        replay(list(self.trained().values()), sums, learning_rate=learning_rate)

    # ---- data ----------------------------------------------------------------------------------------------------

    def tokens(self, samples: Samples) -> list[dict[str, list[int]]]:
        """Return samples as tokens, in the task's prompt."""
        return tokenize(self.backbone, samples, self.contract)

    def batches(self, samples: Samples, batch_size: int, seed: int) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """Yield padded inputs and labels of one epoch in a random order that the seed draws."""
        tokens = self.tokens(samples)
        order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed)).tolist()
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            inputs = self.backbone.pad([tokens[i] for i in chosen])
            yield inputs, samples.labels[chosen].to(self.backbone.device)

    def by_length(self, samples: Samples) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """Yield padded inputs and labels, shortest first, in the batches that a forward pass alone would have."""
        tokens = self.tokens(samples)
        for places in self.backbone.batches(tokens):
            inputs = self.backbone.pad([tokens[i] for i in places])
            yield inputs, samples.labels[places].to(self.backbone.device)

    # ---- training and predicting ---------------------------------------------------------------------------------

    def fit(self, samples: Samples, *, epochs: int, batch_size: int, learning_rate: float, seed: int) -> Work:
        """Train by AdamW, with gradients clipped to norm 1 and dropout as the backbone has it.

        Order and dropout are drawn from the seed alone; torch's own generator is left as it was.
        """
        optimizer = self.optimizer(learning_rate)
        flops, total, rows, started = 0, 0.0, 0, time.perf_counter()
        self.train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for epoch in range(epochs):
                for inputs, labels in self.batches(samples, batch_size, seed + epoch):
                    with self.counted("fit", *inputs["input_ids"].shape) as counted:
                        loss = self.step(inputs, labels, optimizer)
                    flops += counted()
                    total += loss * len(labels)
                    rows += len(labels)
        self.eval()
        return Work(flops, time.perf_counter() - started, epochs * len(samples), total / max(1, rows))

    def optimizer(self, learning_rate: float) -> torch.optim.Optimizer:
        """Return AdamW over the trained parameters, without weight decay."""
        return torch.optim.AdamW(self.trained().values(), lr=learning_rate, weight_decay=0.0)

    def step(self, inputs: Mapping[str, Tensor], labels: Tensor, optimizer: torch.optim.Optimizer) -> float:
        """Take one step on padded inputs [B, T] and labels [B], gradients clipped to norm 1; return the loss before."""
        loss = self.loss(self(inputs), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.trained().values(), MAX_NORM)
        optimizer.step()
        return float(loss.detach())

    @torch.inference_mode()
    def scores(self, samples: Samples) -> Tensor:
        """Return scores [B, K] float32 on the CPU, in the samples' order."""
        self.eval()
        tokens = self.tokens(samples)
        scores = torch.zeros(len(tokens), self.contract.num_outputs)
        for batch in self.backbone.batches(tokens):
            scores[batch] = self(self.backbone.pad([tokens[i] for i in batch])).float().cpu()
        return scores

    def evaluate(self, samples: Samples) -> float:
        """Return the contract's metric on samples."""
        return measure(self.scores(samples), samples.labels, self.contract)

    @contextmanager
    def counted(self, *shape: Any) -> Iterator[Callable[[], int]]:
        """Count the operations of what runs inside, each shape once; what is yielded returns them afterwards."""
        with nullcontext() if shape in self._flops else FlopCounterMode(display=False) as counter:
            yield lambda: self._flops[shape]
        if counter is not None:
            self._flops[shape] = int(counter.get_total_flops())


_BASELINE_METHODS = {
    "fed-lora": "lora",
    "fed-bitfit": "bitfit",
    "fed-kseed": "full",
    "upload-all": "lora",
    "split-fed": "lora",
}
_BASELINE_MODELS: dict[str, FineTunedModel] = {}


def baseline_model(settings: Settings, contract: TaskContract) -> FineTunedModel:
    """Return the model that a baseline trains, made once per process; server and devices begin with the same.

    Raises
    ------
    SettingsError
        The strategy is no baseline that trains this model.
    """
    if settings.strategy not in _BASELINE_METHODS:
        known = ", ".join(_BASELINE_METHODS)
        raise SettingsError(f"strategy={settings.strategy!r} is no baseline; give one of {known}")
    named, rank = settings.backbone, settings.peer.rank
    key = repr((named, rank, settings.run.seed, settings.strategy, contract))
    if key not in _BASELINE_MODELS:
        from mobillm_flower.backbones.load import load_with  # loads transformers

        backbone = load_with(LoadOptions.of(named, engine="torch").for_task(contract))
        method = _BASELINE_METHODS[settings.strategy]
        _BASELINE_MODELS.clear()  # one at a time: a device has memory for one
        _BASELINE_MODELS[key] = fine_tuned(backbone, contract, method=method, rank=rank, seed=settings.run.seed)
    return _BASELINE_MODELS[key]


def fine_tuned(
    backbone: Backbone, contract: TaskContract, *, method: str = "lora", rank: int = 8, seed: int = 0
) -> FineTunedModel:
    """Return the model that is trained for a task: of language modelling a `FineTunedLanguageModel`."""
    if not contract.per_token:
        return FineTunedModel(backbone, contract, method=method, rank=rank, seed=seed)
    from mobillm_flower.models.fine_tuned_language import FineTunedLanguageModel

    return FineTunedLanguageModel(backbone, contract, method=method, rank=rank, seed=seed)


def with_lora(model: nn.Module, rank: int, seed: int) -> nn.Module:
    """Put LoRA on the attention's query and value (α = 2r, no dropout); on a skeleton too.

    Raises
    ------
    UnsupportedError
        No attention projections are found, or peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise UnsupportedError("LoRA needs `peft`: pip install mobillm-flower") from error

    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    targets: Sequence[str] | None = next(
        (candidates for candidates in _ATTENTION if names.issuperset(candidates)), None
    )
    if targets is None:
        raise UnsupportedError(
            f"{type(model).__name__}: looked for {_ATTENTION} among its modules, to put LoRA on, and found none"
        )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an attribute's old name
        torch.manual_seed(seed)
        config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=list(targets))
        without_weights = next(model.parameters()).is_meta
        return get_peft_model(model, config, low_cpu_mem_usage=without_weights)  # type: ignore[no-any-return]


def _made_trainable(backbone: Backbone, method: str, rank: int, seed: int) -> nn.Module:
    model = backbone.model
    if method == "lora":
        return with_lora(model, rank, seed)
    if method not in METHODS:
        raise SettingsError(f"method={method!r} must be one of {', '.join(METHODS)}")
    if method == "full":
        for layer in backbone.stack:
            layer.requires_grad_(True)
        return model
    parts = [part for layer in backbone.stack for part in layer.modules()]
    biased = [part for part in parts if any(name == "bias" for name, _ in part.named_parameters(recurse=False))]
    if not biased:
        raise UnsupportedError(f"{backbone.info.family}: its layers have no biases for BitFit to train")
    for part in biased:
        bias = part.get_parameter("bias").requires_grad_(True)
        if bias.dtype != torch.float32:
            parametrize.register_parametrization(part, "bias", _ReadAs(bias.dtype), unsafe=True)
    return model


class _ReadAs(nn.Module):
    """A parameter that is kept, trained and sent in float32, as LoRA's are, and read in the layer's number format."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, parameter: Tensor) -> Tensor:
        return parameter.to(self.dtype)

    def right_inverse(self, value: Tensor) -> tuple[Tensor]:
        return (value.float(),)  # torch refuses another number format of a single tensor
