"""All attacks on one cell of the grid under one seed, and what its uploads are worth."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mobillm_flower.audit.attacks import devices, labels, membership, secret_mixing
from mobillm_flower.audit.attacks.linear import signal
from mobillm_flower.audit.attacks.texts import Attacker, attack_texts
from mobillm_flower.audit.finding import Measured
from mobillm_flower.audit.uploads import RememberingBackbone, Uploads, clean_rows, make_uploads
from mobillm_flower.config import Settings
from mobillm_flower.core.prediction import PredictionRule
from mobillm_flower.core.side_networks import ActivationBatch
from mobillm_flower.models.side_tuned import SideTunedModel
from mobillm_flower.privacy.mixing import mixing_key
from mobillm_flower.server import ActivationCache
from mobillm_flower.strategies.run_plan import make_plan, prediction_rule
from mobillm_flower.tasks import LocalData, measure
from mobillm_flower.wire.contract import ExtractionSpec


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
        For each sampled layer by itself: "words", "sequence", "nearest".
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
    attacker: Attacker,
    settings: Settings,
    *,
    folder: Path,
    each_layer: bool,
    given: tuple[Uploads, ActivationCache] | None = None,
    released: Trained | None = None,
) -> Attacked:
    """Make uploads under settings, train a side network from them, and attack both.

    Parameters
    ----------
    attacker : Attacker
        Attacks his draw.
    settings : Settings
        Of the cell.
    folder : path
        Empty; for devices and caches.
    each_layer : bool
        Whether to attack each sampled layer by itself too.
    given : tuple, optional
        Uploads that are there already (a run's cache), instead of made ones.
    released : Trained, optional
        The side network that was trained from them, instead of training one here.
    """
    drawn, backbone, seed = attacker.drawn, attacker.backbone, attacker.seed
    with ExitStack() as stack:
        uploads, cache = given or stack.enter_context(make_uploads(settings, drawn.fleet, backbone, folder / "fleet"))
        own = {0: LocalData(drawn.contract, drawn.public, drawn.public.take([]))}
        keyless = replace(settings, privacy=replace(settings.privacy, mixing="", mixing_key=""))
        public, _ = stack.enter_context(make_uploads(keyless, own, backbone, folder / "attacker"))
        trained = released or _train(settings, uploads, cache, backbone, seed)
    model = SideTunedModel(
        backbone,
        trained.network,
        spec=uploads.spec,
        contract=drawn.contract,
        rule=trained.rule,
        public_text=settings.activations.public_text,
        mixing=mixing_key(settings.privacy.mixing, settings.privacy.mixing_key),
    )
    recovered, layers = attack_texts(attacker, settings, uploads, public, each_layer=each_layer)
    measured = {**_labels(uploads, trained, seed, drawn.contract.num_outputs), **recovered}
    if uploads.spec.mixing:
        measured |= _key(settings, uploads, public, backbone, seed)
    if len(drawn.fleet) > 1:
        owners = np.unique(uploads.devices, return_inverse=True)[1].astype(np.int64)  # from 0 on, without gaps
        measured["device: which one"] = devices.infer_attribute(uploads.features, owners, seed=seed)
        measured["device: two uploads of one"] = devices.link_uploads(uploads.features, owners, seed=seed)
    held_out, members = model.scores(drawn.test), drawn.attacked
    measured |= membership.loss_threshold(
        membership.losses(model.scores(members), members.labels),
        membership.losses(held_out, drawn.test.labels),
        seed=seed,
    )
    right = labels.side_network_oracle(held_out, drawn.test.labels)
    quality = replace(right, value=measure(held_out, drawn.test.labels, drawn.contract))
    seconds = backbone.seconds_a_sample + uploads.device_seconds_a_sample
    return Attacked(measured, quality, uploads.bytes_a_sample, seconds, uploads.spec, layers)


def _labels(uploads: Uploads, trained: Trained, seed: int, classes: int) -> dict[str, Measured]:
    truth, rows, mixed = uploads.samples.labels, uploads.features, bool(uploads.spec.mixing)
    with torch.inference_mode():
        side = trained.network([ActivationBatch(uploads.spec.backbone, uploads.rows)])
    scores = trained.rule.scores(side, torch.full((len(rows), classes), 1 / classes))
    kept = uploads.spec.protection(uploads.contract).label_rates[0]
    measured = {
        "label: argmax Δy": labels.argmax_difference(uploads.targets, truth, theory=None if mixed else kept),
        "label: clusters and class shares": labels.clusters_by_priors(rows, truth, seed=seed),
        "label: clusters and one leaked pair a class": labels.clusters_by_leaked_pairs(rows, truth, seed=seed),
        "label: trained side network": labels.side_network_oracle(scores, truth),
    }
    if uploads.targets.differences is not None:
        rotated = labels.rotated(uploads.targets.differences, seed=seed)
        measured |= {
            "label: rotated Δy, clusters and class shares": labels.clusters_by_priors(rotated, truth, seed=seed),
            "label: rotated Δy, one leaked pair a class": labels.nearest_leaked(rotated, truth, seed=seed),
        }
    if mixed:  # the network's outputs are rotated as Δy is
        measured["label: trained side network, one leaked pair a class"] = labels.nearest_leaked(side, truth, seed=seed)
    elif kept < 1:
        both = labels.side_network_and_released(scores, uploads.targets, truth, kept=kept)
        measured["label: side network and released label"] = both
    return measured


def _key(
    settings: Settings, uploads: Uploads, public: Uploads, backbone: RememberingBackbone, seed: int
) -> dict[str, Measured]:
    """Recover the secret rotation of uploads, from leaked pairs and without any, and look texts up."""
    clean, suspected = (
        clean_rows(settings, uploads.spec, uploads.contract, samples, backbone).flatten(1)
        for samples in (uploads.samples, public.samples)
    )
    scale = signal(public.features, suspected)[0]
    width = uploads.rows.shape[2] if uploads.spec.projection else uploads.spec.width
    plain, mixed, others = (
        rows.reshape(len(rows), -1, width) for rows in (clean, uploads.features / scale, suspected)
    )  # [N, M·P, d]: one rotation for all layers and pivots
    by_leaked = secret_mixing.matches_by_leaked_pairs(plain, mixed, others, seed=seed)
    aligned = secret_mixing.align_unsupervised(others[:, -1], mixed[:, -1])
    without = secret_mixing.exact_matches(aligned, mixed[:, -1:], torch.cat([plain, others])[:, -1:])
    named = {f"key: texts looked up after {m} leaked pairs": replace(one, leaked=m) for m, one in by_leaked.items()}
    return {"key: texts looked up, aligned to public text": without, **named}


def _train(
    settings: Settings, uploads: Uploads, cache: ActivationCache, backbone: RememberingBackbone, seed: int
) -> Trained:
    """Train as a server would, by the settings' own schedule."""
    fresh = replace(settings, run=replace(settings.run, seed=seed))
    plan = make_plan(fresh, uploads.contract, {uploads.spec.backbone: backbone.info}, [len(uploads.samples)])
    plan = replace(plan, num_threads=torch.get_num_threads())
    rule = prediction_rule(plan, send_base=settings.loss.send_base)
    trainer = plan.trainer(cache, scores=rule.scores, memory_bytes=settings.cache.memory_mib << 20)
    trainer.run_epochs()
    trainer.network.eval()
    return Trained(trainer.network, rule)
