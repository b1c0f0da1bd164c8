"""What of a forward pass is uploaded: from settings and a backbone to the spec, its fitted constants, its guarantee."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from mobillm_flower.backbones.backbone import Backbone
from mobillm_flower.backbones.public import public_transform, text_hash
from mobillm_flower.config import EngineName, Settings
from mobillm_flower.core.backbone_info import BackboneInfo
from mobillm_flower.core.codecs import CODECS
from mobillm_flower.core.layers import cut_layer, sample_layers
from mobillm_flower.core.pivots import PIVOTS
from mobillm_flower.core.side_networks import upper_layers as upper
from mobillm_flower.errors import MismatchError, SettingsError
from mobillm_flower.privacy.accounting import Guarantee, gaussian_sigma, guarantee
from mobillm_flower.wire.contract import ExtractionSpec, TaskContract


def extraction_spec(backbone: BackboneInfo, settings: Settings, *, num_blocks: int) -> ExtractionSpec:
    """Return what a device with this backbone uploads under these settings.

    Server and device both derive it, and compare.

    Parameters
    ----------
    backbone : BackboneInfo
        The device's.
    settings : Settings
        The server's or the device's own.
    num_blocks : int
        M of the run, fixed when it starts.

    Raises
    ------
    SettingsError
        A name is not registered, or the layers do not fit the backbone.
    """
    wanted = settings.activations
    every_token = settings.side_network.name == upper.NAME
    name = wanted.pivot if wanted.pivot != "auto" else "all" if every_token else backbone.default_pivot
    CODECS[wanted.codec]
    standardise = not wanted.projection and (wanted.standardise or wanted.clip_norm > 0 or wanted.noise_sigma > 0)
    text = text_hash(wanted.public_text)
    if wanted.projection and PIVOTS[name].per_token:
        raise SettingsError(
            f"activations.projection={wanted.projection} makes one vector of a sample, activations.pivot={name} gives "
            "one a token; choose another pivot, such as mean"
        )
    if backbone.vocabulary:
        _check_tokens(settings, name)
    if wanted.bi_encoder:
        _check_pairs(settings, name, standardise=standardise)
    if every_token:
        _check_upper(settings, backbone, name)
        layers: tuple[int, ...] = cut_layer(backbone.depth, wanted.layers)
    else:
        layers = sample_layers(backbone.depth, num_blocks, scheme=wanted.sampling, layers=wanted.layers)
    private = settings.privacy
    clip_norm, sigma = float(wanted.clip_norm), float(wanted.noise_sigma)
    if private.activation_epsilon:
        clip_norm = 1.0 if wanted.projection else clip_norm  # a projection's vectors have norm 1
        exact = gaussian_sigma(private.activation_epsilon, private.delta, 2 * clip_norm)
        sigma = math.ceil(exact * 1e4) / 1e4  # so that machines that round differently agree
    return ExtractionSpec(
        backbone=backbone.fingerprint,
        width=backbone.width,
        num_vectors=PIVOTS[name].vectors_per_token * (2 if wanted.bi_encoder else 1),
        layers=layers,
        pivot=name,
        codec=wanted.codec,
        standardise=text if standardise else "",
        clip_norm=clip_norm,
        sigma=sigma,
        keep=float(wanted.keep),
        objective=settings.loss.objective.value,
        send_base=settings.loss.send_base and settings.loss.objective.value == "label" and not backbone.vocabulary,
        projection=f"{wanted.projection} of {text}" if wanted.projection else "",
        joint_epsilon=float(private.joint_epsilon),
        label_epsilon=float(private.label_epsilon),
        mixing=private.mixing,
        constant_base=bool(
            private.joint_epsilon or private.activation_epsilon or private.label_epsilon or wanted.bi_encoder
        ),
        bi_encoder=wanted.bi_encoder,
        vocabulary=backbone.vocabulary,
        head_width=backbone.head_width,
        layers_above=backbone.depth - layers[-1],
    )


def _check_upper(settings: Settings, backbone: BackboneInfo, pivot: str) -> None:
    """Refuse what layers cannot go on from: they need each token's states as the layer below leaves them."""
    acts, private = settings.activations, settings.privacy
    refused = {
        f"activations.pivot={pivot} makes a few vectors of a text: choose all": not PIVOTS[pivot].per_token,
        f"activations.num-blocks={acts.num_blocks} asks for several layers": acts.num_blocks > 1,
        "task.kind=language-modelling has no labels": bool(backbone.vocabulary),
        "backbone.engine=onnx has them elsewhere: choose torch": settings.backbone.engine is EngineName.onnx,
        "activations.standardise, clip-norm and noise-sigma change them": bool(
            acts.standardise or acts.clip_norm or acts.noise_sigma
        ),
        f"activations.projection={acts.projection} changes them": bool(acts.projection),
        "privacy.joint-epsilon and privacy.activation-epsilon change them": bool(
            private.joint_epsilon or private.activation_epsilon
        ),
        f"privacy.mixing={private.mixing} changes them": bool(private.mixing),
    }
    for reason, holds in refused.items():
        if holds:
            raise SettingsError(
                f"side-network.name={upper.NAME} runs the backbone's upper layers from the states of a lower one, but "
                f"{reason}"
            )


def _check_pairs(settings: Settings, pivot: str, *, standardise: bool) -> None:
    """Refuse what a comparison of two texts that ran by themselves cannot be combined with."""
    acts = settings.activations
    refused = {
        "data.pair-column is empty": not settings.data.pair_column,
        f"activations.pivot={pivot} keeps every token, and two texts have not as many": PIVOTS[pivot].per_token,
        f"task.prompt={settings.task.prompt!r} makes one text of both": bool(settings.task.prompt),
        "activations.standardise, clip-norm and noise-sigma fit public texts, not pairs": standardise,
        f"activations.projection={acts.projection} fits public texts, not pairs": bool(acts.projection),
    }
    for reason, holds in refused.items():
        if holds:
            raise SettingsError(f"activations.bi-encoder=true compares the two texts of a pair, but {reason}")


def _check_tokens(settings: Settings, pivot: str) -> None:
    """Refuse what language modelling cannot be combined with: the server needs each token's last hidden state."""
    acts, private = settings.activations, settings.privacy
    if not PIVOTS[pivot].per_token:
        raise SettingsError(
            f"activations.pivot={pivot} makes a few vectors of a text; language modelling takes every token in the "
            "loss: choose activations.pivot=all or auto"
        )
    changed = {
        "activations.standardise": acts.standardise,
        "activations.clip-norm": acts.clip_norm,
        "activations.noise-sigma": acts.noise_sigma,
        "activations.projection": acts.projection,
        "activations.keep": acts.keep < 1 and acts.keep,
        "privacy.joint-epsilon": private.joint_epsilon,
        "privacy.activation-epsilon": private.activation_epsilon,
        "privacy.label-epsilon": private.label_epsilon,
        "privacy.mixing": private.mixing,
    }
    for key, value in changed.items():
        if value:
            raise SettingsError(
                f"{key}={value!r} cannot be used with language modelling: the server adds the side network's output to "
                "the last hidden state as the model has it, which this would change; leave it out"
            )


def fitted_transform(
    spec: ExtractionSpec, backbone: Backbone, *, max_length: int, file: str = "", remembered_in: Path | None = None
) -> Callable[[Tensor], Tensor] | None:
    """Return what is applied to activations before anything private is done to them, or None.

    Parameters
    ----------
    spec : ExtractionSpec
        What is uploaded.
    backbone, max_length, file, remembered_in
        See `public_transform`.

    Raises
    ------
    MismatchError
        The public text is another than what was agreed on.
    """
    fitted_on = spec.projection.split()[-1] if spec.projection else spec.standardise
    if not fitted_on:
        return None
    if text_hash(file) != fitted_on:
        raise MismatchError(
            f"shift, scale or projection were fitted on the public text {fitted_on}, activations.public-text="
            f"{file!r} is {text_hash(file)}; give the same file on the server, on devices and for predictions"
        )
    return public_transform(
        backbone,
        layers=spec.layers,
        pivot=spec.pivot,
        max_length=max_length,
        dimensions=spec.row_shape[2] if spec.projection else 0,
        file=file,
        remembered_in=remembered_in,
    )


def release_guarantee(spec: ExtractionSpec, contract: TaskContract, *, delta: float) -> Guarantee:
    """Return what one release of one sample guarantees, or why no ε can be named.

    Parameters
    ----------
    spec : ExtractionSpec
        What is uploaded.
    contract : TaskContract
        The task.
    delta : float
        δ of the Gaussian mechanism.
    """
    promised = guarantee(
        joint_epsilon=spec.joint_epsilon,
        activation_sigma=spec.sigma,
        clip_norm=spec.clip_norm,
        delta=delta,
        label_epsilon=spec.label_epsilon,
        labels_sent=True,
        base_is_constant=spec.constant_base or (spec.objective == "label" and not spec.send_base),
        classes=len(contract.labels),
    )
    if promised.epsilon is not None and PIVOTS[spec.pivot].per_token:
        return dataclasses.replace(promised, epsilon=None, reason="the number of tokens of each text is plain")
    return promised
