"""What side-tuning and FedLoRA would cost a device, before anything is spent: `mobillm plan`.

Operations and memory come from a dry run of the real model code without weights, bytes from really encoding samples
of the right shape and from counting parameters. Time is modelled.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from mobillm_flower.backbones import load_tokenizer
from mobillm_flower.backbones.backbone import batches_by_length
from mobillm_flower.backbones.dry_run import dry_run
from mobillm_flower.backbones.label_words import LabelWords, label_tokens
from mobillm_flower.backbones.options import LoadOptions
from mobillm_flower.backbones.positions import check_positions
from mobillm_flower.backbones.public import public_text
from mobillm_flower.backbones.skeleton import skeleton
from mobillm_flower.clients.releases import samples_at_once
from mobillm_flower.config import Settings
from mobillm_flower.config.parts.run import BaselineSettings
from mobillm_flower.core.codecs import CODECS
from mobillm_flower.core.language import LOGIT_BYTES
from mobillm_flower.core.pivots import PIVOTS
from mobillm_flower.core.projection import principal_bytes
from mobillm_flower.core.side_networks import SideNetworkConfig
from mobillm_flower.core.sparse import encode_sample
from mobillm_flower.errors import SettingsError
from mobillm_flower.evaluation.compare.cost_to_target import Link
from mobillm_flower.models.fine_tuned import with_lora
from mobillm_flower.strategies.run_plan import arguments_named, make_plan
from mobillm_flower.tasks import LocalData, chunks_of, render
from mobillm_flower.wire.contract import ExtractionSpec, TaskContract
from mobillm_flower.wire.target_bytes import target_size
from mobillm_flower.wire.window import RELEASE_BYTES

_LENGTHS = 8  # bytes of a sample in a window beside its payload and its release id
_WINDOW_HEADER = 1600  # bytes of a window's contract, spec, names and hash
_CACHE_ROW = 120  # bytes of a row of the cache beside its payload
_MEASURE_S = 1.0
_TEXTS = 500  # of which lengths are read
_MARGIN = 1.1
"""Two costs nearer than this are called equal."""


@dataclass(frozen=True)
class Workload:
    """What is to be learned from, and on what.

    Parameters
    ----------
    num_samples, num_devices : int
        Training samples of the fleet, and its devices.
    lengths : sequence of int
        Tokens of a draw of the samples; in language modelling of their chunks.
    loss_tokens : sequence of int
        In language modelling, those of each that are in the loss.
    chunks : float
        In language modelling, chunks of a sample.
    rounds : int
        Of FedLoRA, each one pass over a device's samples.
    link : Link
        Of a device.
    gflops : float
        Thousand million operations that a device does in a second.
    memory_mib : float
        What a device has for the model and its work; 0: not given.
    """

    num_samples: int
    num_devices: int
    lengths: Sequence[int]
    rounds: int
    link: Link
    gflops: float
    memory_mib: float = 0.0
    loss_tokens: Sequence[int] = ()
    chunks: float = 1.0


@dataclass(frozen=True)
class Estimate:
    """What one way costs a device, on average.

    Parameters
    ----------
    flops : float
        Operations, evaluation left out.
    peak_bytes, model_bytes : int
        Memory above the loaded model, and the model's weights in fp32.
    bytes_up, bytes_down : float
        Both of the whole training; down with the last download.
    device_seconds, wall_seconds : float
        Modelled: operations by `gflops`; the same with the link.
    """

    flops: float
    peak_bytes: int
    model_bytes: int
    bytes_up: float
    bytes_down: float
    device_seconds: float
    wall_seconds: float


@dataclass(frozen=True)
class Forecast:
    """Side-tuning beside FedLoRA.

    Parameters
    ----------
    side_tuning, fed_lora : Estimate
        Costs of a device.
    cache_bytes : float
        What the server stores.
    bytes_a_sample : float
        Up, with its share of headers.
    adapter_bytes : int
        LoRA and head: up and down in every round.
    side_network_bytes : int
        What goes down once.
    rounds : int
        Rounds of FedLoRA that are predicted.
    even_rounds, even_samples : float
        Rounds of FedLoRA, and with `rounds` of them samples of a device, at which bytes both ways are equal.
    recommended, reasons
        "side-tuning" or "FedLoRA", and why.
    """

    side_tuning: Estimate
    fed_lora: Estimate
    cache_bytes: float
    bytes_a_sample: float
    adapter_bytes: int
    side_network_bytes: int
    rounds: int
    even_rounds: float
    even_samples: float
    recommended: str
    reasons: Sequence[str]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


def forecast(settings: Settings, contract: TaskContract, work: Workload) -> Forecast:
    """Predict the costs of a run with these settings.

    Parameters
    ----------
    settings : Settings
        Backbone, activations, side network, and of `peer` batch size and rank.
    contract : TaskContract
        Its labels and length.
    work : Workload
        Data, devices, link.

    Raises
    ------
    UnsupportedError
        The backbone cannot be described or takes no LoRA.
    SettingsError
        `task.max-length` is beyond its positions.
    """
    named, per_token = settings.backbone, contract.per_token
    whole, info = skeleton(named.name, revision=named.revision, layers=named.layers, language_model=per_token)
    model = getattr(whole, "base_model", whole)
    share = work.num_samples / work.num_devices
    weights = sum(parameter.numel() for parameter in model.parameters()) * 4
    plan = make_plan(settings, contract, {info.fingerprint: info}, [math.ceil(share)])
    (spec,) = plan.specs.values()
    network = _network_bytes(plan.side_config, settings.side_network.codec)
    rows = _rows_of_a_sample(spec, work)
    per_sample = _sample_bytes(spec, contract, rows)
    window = settings.rounds.window or share
    up = share * (per_sample + RELEASE_BYTES + _LENGTHS) + math.ceil(share / window) * _WINDOW_HEADER
    cached = work.num_samples * (per_sample + _CACHE_ROW)
    if plan.sums:  # one message, however many samples there are
        (sums,) = plan.sums.values()
        up, cached = sums.num_bytes + 2 * _WINDOW_HEADER, work.num_devices * (sums.num_bytes + _CACHE_ROW)

    lengths = _drawn(work.lengths, math.ceil(share * work.chunks))
    longest = max(lengths)
    batches = []
    at_once = samples_at_once(spec, token_budget=named.token_budget, max_length=contract.max_length)
    for start in range(0, len(lengths), at_once):
        part = lengths[start : start + at_once]
        batches += [(len(batch), part[batch[-1]]) for batch in batches_by_length(part, named.token_budget)]
    run = model
    if spec.layers_above and not contract.label_words:  # nothing above the cut runs, unless the model predicts
        run, _ = skeleton(named.name, revision=named.revision, layers=spec.layers[-1])
    beginnings = _beginnings(settings, contract)
    check_positions(model, named.name, contract.max_length, words=max(beginnings))
    of_sample = _sample_flops(run, longest)
    flops = sum(count * of_sample(tokens + more) for count, tokens in batches for more in beginnings)
    fitting = 0
    if plan.sums:
        of_public_text, fitting = _of_public_text(settings, contract, spec, of_sample)
        flops += of_public_text
    widest = max(batches, key=lambda batch: batch[0] * batch[1])
    peak = max(dry_run(run, batch=widest[0], tokens=widest[1]).peak_bytes, fitting)
    if PIVOTS[spec.pivot].per_token:
        peak += 4 * min(at_once, math.ceil(share)) * rows * math.prod(spec.row_shape)
    if per_token and spec.objective == "difference":  # the head alone, forward and backward
        flops += share * rows * 4 * spec.vocabulary * spec.head_width
        peak += 6 * min(LOGIT_BYTES, 4 * at_once * rows * spec.vocabulary)
    seconds = flops / 1e9 / work.gflops
    ours = Estimate(flops, peak, weights, up, network, seconds, seconds + work.link.seconds(up, network))

    head = 0 if per_token else contract.num_outputs * (info.width + 1)
    lora, adapter = _lora(settings.peer, work, whole, lengths, head=head, weights=weights)
    both = work.rounds * adapter
    a_sample = up / share
    return Forecast(
        ours,
        lora,
        cache_bytes=cached,
        bytes_a_sample=a_sample,
        adapter_bytes=adapter,
        side_network_bytes=network,
        rounds=work.rounds,
        even_rounds=(up + network - adapter) / (2 * adapter),
        even_samples=max(0.0, (2 * both + adapter - network) / a_sample),
        **_advice(ours, lora, work),
    )


def _lora(
    peer: BaselineSettings, work: Workload, whole: nn.Module, lengths: Sequence[int], *, head: int, weights: int
) -> tuple[Estimate, int]:
    """Return what LoRA by FedAvg costs on a device with texts of these lengths, and the bytes of its adapter."""
    trained = with_lora(whole, peer.rank, 0)
    adapter = 4 * (head + sum(p.numel() for p in trained.parameters() if p.requires_grad))
    batch = max(1, min(peer.batch_size, len(lengths)))
    step = dry_run(trained, batch=batch, tokens=_padded(lengths, batch), train=True)
    flops = work.rounds * len(lengths) / batch * step.flops
    peak = dry_run(trained, batch=batch, tokens=max(lengths), train=True).peak_bytes
    both, seconds = work.rounds * adapter, flops / 1e9 / work.gflops
    wall = seconds + work.link.seconds(both, both + adapter)
    return Estimate(flops, peak, weights, both, both + adapter, seconds, wall), adapter


def even_bytes(forecast: Forecast, other: str) -> str:
    """Say where the bytes both ways equal those of LoRA by federated averaging, as the caller calls it."""
    at = f"equal at {forecast.even_rounds:,.1f} rounds" if forecast.even_rounds > 0 else "fewer from round 1 on"
    samples = f"{forecast.even_samples:,.0f} samples a device with {forecast.rounds} rounds"
    return f"Beside {other}, bytes both ways are {at}, or equal at {samples}."


def sample_lengths(
    settings: Settings, data: LocalData | None, *, tokens: int = 0, loss_tokens: int = 0
) -> dict[str, Any]:
    """Return a workload's tokens, and of language modelling those in the loss and chunks of a sample.

    Parameters
    ----------
    settings : Settings
        Of the backbone, and the length that samples are cut to.
    data : LocalData or None
        All rows, of which some are read; None: what is given counts.
    tokens, loss_tokens : int
        Tokens of each sample, and those in the loss; 0: as the data have.

    Raises
    ------
    SettingsError
        Samples would be cut to fewer tokens.
    """
    longest = settings.task.max_length
    if tokens > longest:
        raise SettingsError(
            f"tokens={tokens} a sample, but task.max-length={longest} cuts them; set it to {tokens}, too"
        )
    if data is None:
        return {"lengths": [tokens], "loss_tokens": [loss_tokens] if loss_tokens else []}
    drawn = data.train.take(range(min(_TEXTS, len(data.train))))
    tokenizer = load_tokenizer(settings.backbone.name, revision=settings.backbone.revision)
    if data.contract.per_token:
        read = [chunk for chunks in chunks_of(tokenizer, drawn, data.contract) for chunk in chunks]
        return {
            "lengths": [tokens] if tokens else [len(chunk.ids) for chunk in read],
            "loss_tokens": [loss_tokens] if loss_tokens else [len(chunk.ids) - chunk.first for chunk in read],
            "chunks": len(read) / len(drawn),
        }
    texts, pairs = render(drawn, data.contract)
    given = [list(texts)] + ([list(pairs)] if pairs is not None else [])
    encoded = tokenizer(*given, truncation=True, max_length=settings.task.max_length)
    return {"lengths": [tokens] if tokens else [len(ids) for ids in encoded["input_ids"]]}


def measured_gflops() -> float:
    """Return thousand million operations a second of matrix products of a layer's size on this machine's CPU."""
    left, right = torch.randn(512, 768), torch.randn(768, 3072)
    left @ right  # the first one warms up
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < _MEASURE_S:
        left @ right
        count += 1
    return 2 * 512 * 768 * 3072 * count / (time.perf_counter() - started) / 1e9


def _of_public_text(
    settings: Settings, contract: TaskContract, spec: ExtractionSpec, of_sample: Callable[[int], float]
) -> tuple[float, int]:
    """Return operations and memory of fitting the map to z of sums, once a device."""
    named, sentences = settings.backbone, public_text(settings.activations.public_text)
    tokenizer = load_tokenizer(named.name, revision=named.revision)
    read = tokenizer(list(sentences), truncation=True, max_length=contract.max_length)["input_ids"]
    values = len(spec.layers) * spec.num_vectors * spec.width
    return sum(of_sample(len(ids)) for ids in read), principal_bytes(len(sentences), values, spec.row_shape[2])


def _drawn(lengths: Sequence[int], count: int) -> list[int]:
    """Return the lengths of a device's samples: a draw, evenly over the order of lengths, with the longest in it."""
    places = np.linspace(0, len(lengths) - 1, count) if count > 1 else [len(lengths) - 1]
    ordered = sorted(lengths)
    return [ordered[round(float(place))] for place in places]


def _beginnings(settings: Settings, contract: TaskContract) -> list[int]:
    """Return the tokens that follow a text in each of its forward passes: none, and of whole label words some."""
    if not contract.whole_words:
        return [0]
    tokenizer = load_tokenizer(settings.backbone.name, revision=settings.backbone.revision)
    options = LoadOptions(settings.backbone.name).for_task(contract)
    tokens = label_tokens(tokenizer, contract.label_words, spaced=options.spaced(tokenizer))
    return [len(one) for one in LabelWords(tuple(map(tuple, tokens))).beginnings]


def _sample_flops(model: nn.Module, longest: int) -> Callable[[int], float]:
    """Return operations of a sample by its tokens: a line for products with weights, a square for attention."""
    half = max(1, longest // 2)
    at_half, at_most = (dry_run(model, batch=1, tokens=tokens).flops for tokens in (half, longest))
    if half == longest:
        return lambda tokens: at_most * tokens / longest
    square = (at_most / longest - at_half / half) / (longest - half)
    line = at_most / longest - square * longest
    return lambda tokens: line * tokens + square * tokens**2


def _padded(lengths: Sequence[int], batch: int) -> int:
    """Return the mean length of random batches: each is padded to its longest sample."""
    draws = np.random.default_rng(0).choice(np.asarray(lengths), size=(256, batch))
    return max(1, round(float(draws.max(1).mean())))


def _rows_of_a_sample(spec: ExtractionSpec, work: Workload) -> int:
    """Return rows of a sample: one, or its tokens; of language modelling those in the loss, or all but the last."""
    if not PIVOTS[spec.pivot].per_token:
        return 1
    kept = [n - 1 for n in work.lengths] if spec.whole_texts else work.loss_tokens or work.lengths
    return max(1, round(work.chunks * sum(kept) / len(kept)))


def _sample_bytes(spec: ExtractionSpec, contract: TaskContract, rows: int) -> int:
    """Return a sample's encoded bytes, target included: of random values, since sizes depend on shapes alone."""
    values = torch.randn(rows, *spec.row_shape, generator=torch.Generator().manual_seed(0))
    return len(encode_sample(values, CODECS[spec.codec], spec.keep)) + target_size(spec, contract, rows)


def _network_bytes(config: SideNetworkConfig, codec: str) -> int:
    """Return what goes down: matrices under the codec, other values in float32."""
    with torch.device("meta"), arguments_named():
        parameters = list(config.build().parameters())
    return sum(CODECS[codec].num_bytes(p.numel()) if p.dim() > 1 else 4 * p.numel() for p in parameters)


def _advice(ours: Estimate, lora: Estimate, work: Workload) -> dict[str, Any]:
    """Return what is recommended, and why."""
    both_ours, both_lora = ours.bytes_up + ours.bytes_down, lora.bytes_up + lora.bytes_down
    limit = work.memory_mib * 2**20
    fits = [limit == 0 or one.model_bytes + one.peak_bytes <= limit for one in (ours, lora)]
    less_bytes = both_ours * _MARGIN < both_lora
    faster = ours.wall_seconds * _MARGIN < lora.wall_seconds
    reasons = [
        f"memory above the model: {ours.peak_bytes / 1e6:,.0f} MB beside {lora.peak_bytes / 1e6:,.0f} MB",
        f"computing: {ours.flops / 1e9:,.0f} GFLOP beside {lora.flops / 1e9:,.0f} GFLOP",
        f"bytes both ways: {both_ours / 1e6:,.2f} MB beside {both_lora / 1e6:,.2f} MB",
        f"modelled time: {ours.wall_seconds:,.0f} s beside {lora.wall_seconds:,.0f} s",
    ]
    if not any(fits):
        best, why = "neither", f"neither fits into {work.memory_mib:,.0f} MiB; take a smaller model or fewer layers"
    elif not fits[1]:
        best, why = "side-tuning", f"training LoRA does not fit into {work.memory_mib:,.0f} MiB"
    elif not faster and not less_bytes:
        best, why = "FedLoRA", "it costs no more time and no more bytes, and what it uploads does not grow with samples"
    elif not faster:
        best, why = "FedLoRA", "on this link it takes no longer, though it sends more bytes and needs more memory"
    else:
        best, why = "side-tuning", "it is faster" + ("" if less_bytes else ", though it sends more bytes")
    return {"recommended": best, "reasons": [why, *reasons]}
