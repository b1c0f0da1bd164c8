"""All attacks on one cell of the grid under one seed, and what its uploads are worth."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mobillm_flower.audit import devices as whose
from mobillm_flower.audit import labels, membership, texts
from mobillm_flower.audit.draw import Draw, Size
from mobillm_flower.audit.finding import Measured, of_scores
from mobillm_flower.audit.uploads import RememberingBackbone, Uploads, clean_rows, joined, make_uploads
from mobillm_flower.config import Settings
from mobillm_flower.core.side_network import ActivationBatch
from mobillm_flower.model import PredictionRule, SideTunedModel
from mobillm_flower.server import ActivationCache
from mobillm_flower.strategies.run_plan import make_plan, prediction_rule
from mobillm_flower.tasks import LocalData, measure
from mobillm_flower.wire.contract import ExtractionSpec

Embed = Callable[[Sequence[str]], Tensor]
"""Texts to sentence embeddings [B, D]."""

_EMBEDDED = 100  # victims whose recovered text is compared by meaning


@dataclass(frozen=True)
class Trained:
    """A released side network and how it predicts."""

    network: nn.Module
    rule: PredictionRule


@dataclass(frozen=True)
class Attacked:
    """What one cell gave under one seed.

    Parameters
    ----------
    measured : dict of str to Measured
        By the attack's name.
    layers : list of dict
        For each sampled layer by itself: "layer", "words", "nearest".
    quality : Measured
        The task's metric of the side network on held-out texts.
    bytes_a_sample, device_seconds_a_sample : float
        Uploaded, and computed on the device, forward pass included.
    spec : ExtractionSpec
        What was uploaded.
    """

    measured: dict[str, Measured]
    quality: Measured
    bytes_a_sample: float
    device_seconds_a_sample: float
    spec: ExtractionSpec
    layers: list[dict[str, Measured]] = field(default_factory=list)


def attack(
    settings: Settings,
    drawn: Draw,
    *,
    backbone: RememberingBackbone,
    embed: Embed | None,
    size: Size,
    seed: int,
    folder: Path,
    each_layer: bool,
    given: tuple[Uploads, ActivationCache] | None = None,
    released: Trained | None = None,
) -> Attacked:
    """Make uploads under settings, train a side network from them, and attack both.

    Parameters
    ----------
    settings : Settings
        Of the cell.
    drawn : Draw
        Samples.
    backbone : RememberingBackbone
        Of devices and attacker.
    embed : callable or None
        For similarity of meaning; None leaves it out.
    size : Size
        How many victims.
    seed : int
        Of attacks and training.
    folder : path
        Empty; for devices and caches.
    each_layer : bool
        Whether to attack each sampled layer by itself too.
    given : tuple, optional
        Uploads that are there already (a run's cache), instead of made ones.
    released : Trained, optional
        The side network that was trained from them, instead of training one here.
    """
    contract = next(iter(drawn.fleet.values())).contract
    with ExitStack() as stack:
        if given is None:
            (folder / "devices").mkdir()
            given = stack.enter_context(make_uploads(settings, drawn.fleet, backbone, folder / "devices"))
        uploads, cache = given
        (folder / "attacker").mkdir()
        attacker = {0: LocalData(contract, drawn.public, drawn.public.take([]))}
        public, _ = stack.enter_context(make_uploads(settings, attacker, backbone, folder / "attacker"))
        trained = released or _train(settings, uploads, cache, backbone, seed)
    model = SideTunedModel(
        backbone,
        trained.network,
        spec=uploads.spec,
        contract=contract,
        rule=trained.rule,
        public_text=settings.activations.public_text,
    )
    measured = _labels(uploads, trained, seed, contract.num_outputs)
    words, layers = _texts(settings, uploads, public, backbone, embed, size, seed, each_layer=each_layer)
    measured |= words
    if len(drawn.fleet) > 1:
        measured["device: which one"] = whose.infer_attribute(uploads.features, _numbered(uploads), seed=seed)
        measured["device: two uploads of one"] = whose.link_uploads(uploads.features, _numbered(uploads), seed=seed)
    held_out = model.scores(drawn.test)
    members = joined([data.train for data in drawn.fleet.values()])
    measured |= membership.loss_threshold(
        membership.losses(model.scores(members), members.labels),
        membership.losses(held_out, drawn.test.labels),
        seed=seed,
    )
    right = of_scores((held_out.argmax(1) == drawn.test.labels).numpy(), labels.majority_share(drawn.test.labels))
    quality = dataclasses.replace(right, value=measure(held_out, drawn.test.labels, contract))
    seconds = backbone.seconds_a_sample + uploads.device_seconds_a_sample
    return Attacked(measured, quality, uploads.bytes_a_sample, seconds, uploads.spec, layers)


def _labels(uploads: Uploads, trained: Trained, seed: int, classes: int) -> dict[str, Measured]:
    truth, rows = uploads.samples.labels, uploads.features
    with torch.inference_mode():
        side = trained.network([ActivationBatch(uploads.spec.backbone, uploads.rows)])
    scores = trained.rule.scores(side, torch.full((len(rows), classes), 1 / classes))
    kept = uploads.label_rates[0]
    found = {
        "label: argmax Δy": labels.argmax_difference(uploads.targets, truth, theory=kept),
        "label: clusters and class shares": labels.clusters_by_priors(rows, truth, seed=seed),
        "label: clusters and one leaked pair a class": labels.clusters_by_leaked_pairs(rows, truth, seed=seed),
        "label: trained side network": labels.side_network_oracle(scores, truth),
    }
    if uploads.targets.differences is not None:
        rotated = labels.rotated_difference(uploads.targets, truth, seed=seed)
        found["label: rotated Δy, one leaked pair a class"] = rotated
    if kept < 1:
        both = labels.side_network_and_released(scores, uploads.targets, truth, kept=kept)
        found["label: side network and released label"] = both
    return found


def _texts(
    settings: Settings,
    uploads: Uploads,
    public: Uploads,
    backbone: RememberingBackbone,
    embed: Embed | None,
    size: Size,
    seed: int,
    *,
    each_layer: bool,
) -> tuple[dict[str, Measured], list[dict[str, Measured]]]:
    generator = np.random.default_rng(seed)
    victims = uploads.take(generator.permutation(len(uploads.samples.texts))[: size.victims])
    truth, known = victims.samples, public.samples
    contract = uploads.contract
    clean = clean_rows(settings, uploads.spec, contract, joined([truth, known]), backbone)
    clean_victims, clean_public = clean[: len(truth)].flatten(1), clean[len(truth) :].flatten(1)
    decoder = texts.WordDecoder(public.features, known.texts, seed=seed)
    recovered = decoder.recover(victims.features, truth.texts)
    scale, variance = texts.signal(public.features, clean_public)
    itself = np.arange(len(truth))
    lookup = texts.nearest_text(victims.features, torch.cat([clean_victims, clean_public]), itself, scale=scale)
    other = texts.nearest_text(victims.features, clean_public, itself, scale=scale)
    found = {"text: words": recovered.measured, "text: nearest of candidates": lookup.measured}
    overlap = [
        texts.word_f1(texts.words(true), texts.words(known.texts[place]))
        for true, place in zip(truth.texts, other.nearest, strict=True)
    ]
    found["text: words of the nearest other text"] = of_scores(np.array(overlap), recovered.measured.baseline)
    if uploads.is_noisy:
        naive = texts.WordDecoder(clean_public, known.texts, seed=seed)
        found["text: words, decoder of clean text"] = naive.recover(victims.features / scale, truth.texts).measured
        aware = naive.recover(
            victims.features / scale, truth.texts, variance=variance / scale**2, tuning=public.features / scale
        )
        found["text: words, decoder that knows the noise"] = aware.measured
    if embed is not None:
        some = slice(0, _EMBEDDED)
        true = embed(truth.texts[some])
        by_words = embed([" ".join(sorted(guess)) for guess in recovered.guesses[some]])
        frequent = embed([decoder.most_frequent()]).expand_as(true)
        found["text: meaning of the words"] = texts.cosine_scores(true, by_words, frequent)
        nearest = embed([known.texts[place] for place in other.nearest[some]])
        chance = embed([known.texts[place] for place in generator.integers(len(known), size=len(true))])
        found["text: meaning of the nearest other text"] = texts.cosine_scores(true, nearest, chance)
    layers = []
    for block in range(uploads.rows.shape[1] if each_layer and uploads.rows.shape[1] > 1 else 0):
        one = texts.WordDecoder(public.rows[:, block], known.texts, seed=seed)
        at = torch.cat([clean[:, block]])
        layers.append(
            {
                "words": one.recover(victims.rows[:, block], truth.texts).measured,
                "nearest": texts.nearest_text(victims.rows[:, block], at, itself, scale=scale).measured,
            }
        )
    return found, layers


def _train(
    settings: Settings, uploads: Uploads, cache: ActivationCache, backbone: RememberingBackbone, seed: int
) -> Trained:
    """Train as a server would, by the settings' own schedule."""
    fresh = dataclasses.replace(settings, run=dataclasses.replace(settings.run, seed=seed))
    plan = make_plan(
        fresh,
        uploads.contract,
        {uploads.spec.backbone: backbone.info},
        [len(uploads.samples)],
        planned_rounds=0,
        overlap_steps=0,
    )
    plan = dataclasses.replace(plan, num_threads=torch.get_num_threads())
    rule = prediction_rule(plan, send_base=settings.loss.send_base)
    trainer = plan.trainer(cache, scores=rule.scores, memory_bytes=settings.cache.memory_mib << 20)
    trainer.run_epochs()
    trainer.network.eval()
    return Trained(trainer.network, rule)


def _numbered(uploads: Uploads) -> np.ndarray:
    """Return the devices' numbers from 0 on, without gaps."""
    return np.asarray(np.unique(uploads.devices, return_inverse=True)[1], np.int64)
