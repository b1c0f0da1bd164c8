"""What of a forward pass is uploaded: from settings and a backbone to the spec, its fitted constants, its guarantee."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from mobillm_flower.backbones.backbone import Backbone
from mobillm_flower.backbones.public import public_text, public_transform, text_hash
from mobillm_flower.config import Settings
from mobillm_flower.config.compatibility import ANALYTIC, compares_texts, prefers_closed_form, settings_of
from mobillm_flower.config.run_compatibility import check_pivot
from mobillm_flower.core.backbone_info import BackboneInfo
from mobillm_flower.core.codecs import CODECS
from mobillm_flower.core.layers import cut_layer, sample_layers
from mobillm_flower.core.pivots import PIVOTS
from mobillm_flower.core.projection import most_dimensions
from mobillm_flower.core.side_networks import needs_of
from mobillm_flower.core.sums import width_within
from mobillm_flower.errors import MismatchError, SettingsError
from mobillm_flower.privacy.accounting import Guarantee, gaussian_sigma, guarantee
from mobillm_flower.wire.contract import ExtractionSpec, TaskContract

_BOTH = "last+mean"
_PRINCIPAL = "principal"  # in a projection: not whitened


def layers_alone(backbone: BackboneInfo, settings: Settings) -> str:
    """Return the scheme that `activations.sampling` means for a backbone that is the only type of a run."""
    wanted = settings.activations
    if wanted.sampling != "auto":
        return wanted.sampling
    if wanted.num_blocks or wanted.projection or settings.strategy == ANALYTIC or not prefers_closed_form(settings):
        return "uniform"
    if backbone.default_pivot == "first+mean" and wanted.pivot in ("auto", "mean"):
        return "upper"
    # a prompt that label words answer has the answer in its last token, which then serves best
    reads = backbone.default_pivot == "last" and backbone.base_prediction == "constant"
    return "spread" if reads and wanted.pivot in ("auto", _BOTH) else "uniform"


def compares(backbone: BackboneInfo, settings: Settings) -> bool:
    """Whether a device with this backbone runs the two texts of a pair by themselves, and compares them."""
    return compares_texts(
        settings,
        causal=backbone.causal,
        every_token=PIVOTS[_pivot(backbone, settings, "")].per_token,
        predicts=backbone.base_prediction != "constant",
    )


def _pivot(backbone: BackboneInfo, settings: Settings, scheme: str) -> str:
    wanted = settings.activations.pivot
    if wanted != "auto":
        return wanted
    if needs_of(settings.side_network.name).upper_layers:
        return "all"
    if backbone.default_pivot == "last" and scheme == "spread":  # what the prompt asks for, and what the text is about
        return _BOTH
    # of a mean and the first token the mean is as good for a solution, in half the bytes
    means = backbone.default_pivot == "first+mean" and prefers_closed_form(settings)
    return "mean" if means else backbone.default_pivot


def _layers(backbone: BackboneInfo, settings: Settings, num_blocks: int, scheme: str) -> tuple[int, ...]:
    wanted = settings.activations.layers
    with settings_of(layers="activations.layers", num_blocks="activations.num-blocks", scheme="activations.sampling"):
        if needs_of(settings.side_network.name).upper_layers:
            return cut_layer(backbone.depth, wanted)
        return sample_layers(backbone.depth, num_blocks, scheme=scheme or "uniform", layers=wanted)


def extraction_spec(
    backbone: BackboneInfo, settings: Settings, *, num_blocks: int, num_outputs: int, scheme: str = ""
) -> ExtractionSpec:
    """Return what a device with this backbone uploads under these settings.

    Server and device both derive it, and compare.

    Parameters
    ----------
    backbone : BackboneInfo
        The device's.
    settings : Settings
        The server's or the device's own.
    num_blocks : int
        M of the run, fixed when it starts; 0: as a backbone that is the only type has it.
    num_outputs : int
        K of the task, which the width of sums depends on.
    scheme : str
        What `activations.sampling=auto` means in the run; empty: with `num_blocks` uniform.

    Raises
    ------
    SettingsError
        A name is not registered, or the layers do not fit the backbone.
    """
    wanted = settings.activations
    CODECS[wanted.codec]
    standardise = not wanted.projection and (wanted.standardise or wanted.clip_norm > 0 or wanted.noise_sigma > 0)
    text = text_hash(wanted.public_text)
    if wanted.layers:
        scheme = ""
    elif wanted.sampling != "auto" or not num_blocks:
        scheme = layers_alone(backbone, settings)
    name = _pivot(backbone, settings, scheme)
    check_pivot(settings, name, every_token=PIVOTS[name].per_token, predicts_tokens=bool(backbone.vocabulary))
    layers = _layers(backbone, settings, num_blocks, scheme)
    private = settings.privacy
    clip_norm, sigma = float(wanted.clip_norm), float(wanted.noise_sigma)
    if private.activation_epsilon:
        clip_norm = 1.0 if wanted.projection else clip_norm  # a projection's vectors have norm 1
        exact = gaussian_sigma(private.activation_epsilon, private.delta, 2 * clip_norm)
        sigma = math.ceil(exact * 1e4) / 1e4  # so that machines that round differently agree
    bi_encoder = compares(backbone, settings)
    num_vectors = PIVOTS[name].vectors_per_token * (2 if bi_encoder else 1)
    projection = f"{wanted.projection} of {text}" if wanted.projection else ""
    if settings.strategy == ANALYTIC:
        width = wanted.projection or _sums_width(settings, len(layers) * num_vectors * backbone.width, num_outputs)
        projection = f"{width} {_PRINCIPAL} of {text}"
    return ExtractionSpec(
        backbone=backbone.fingerprint,
        width=backbone.width,
        num_vectors=num_vectors,
        layers=layers,
        pivot=name,
        codec=wanted.codec,
        standardise=text if standardise else "",
        clip_norm=clip_norm,
        sigma=sigma,
        keep=float(wanted.keep),
        objective=settings.loss.objective.value,
        send_base=settings.loss.send_base and settings.loss.objective.value == "label" and not backbone.vocabulary,
        projection=projection,
        joint_epsilon=float(private.joint_epsilon),
        label_epsilon=float(private.label_epsilon),
        mixing=private.mixing,
        constant_base=bool(
            private.joint_epsilon
            or private.activation_epsilon
            or private.label_epsilon
            or private.central_epsilon
            or bi_encoder
            or (num_outputs > 1 and backbone.base_prediction == "constant" and not backbone.vocabulary)
        ),
        bi_encoder=bi_encoder,
        vocabulary=backbone.vocabulary,
        head_width=backbone.head_width,
        layers_above=backbone.depth - layers[-1],
    )


def _sums_width(settings: Settings, num_values: int, num_outputs: int) -> int:
    """Return D of sums that fit `activations.upload-kib`."""
    kib = settings.activations.upload_kib
    constant = 1 if settings.privacy.central_epsilon else 0
    width = width_within(kib * 1024, num_outputs) - constant
    if width < 1:
        raise SettingsError(f"activations.upload-kib={kib} has no room for sums of {num_outputs} outputs; give more")
    return min(width, most_dimensions(len(public_text(settings.activations.public_text)), num_values))


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
    with settings_of(dimensions="activations.projection"):
        return public_transform(
            backbone,
            layers=spec.layers,
            pivot=spec.pivot,
            max_length=max_length,
            dimensions=spec.row_shape[2] if spec.projection else 0,
            whitened=_PRINCIPAL not in spec.projection.split(),
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
    epsilon = "privacy.joint-epsilon" if spec.joint_epsilon else "privacy.label-epsilon"
    with settings_of(joint_epsilon=epsilon, epsilon=epsilon, delta="privacy.delta", classes="the number of classes"):
        promised = guarantee(
            joint_epsilon=spec.joint_epsilon,
            activation_sigma=spec.sigma,
            clip_norm=spec.clip_norm,
            delta=delta,
            label_epsilon=spec.label_epsilon,
            base_is_constant=spec.constant_base or (spec.objective == "label" and not spec.send_base),
            classes=len(contract.labels),
        )
    if promised.epsilon is not None and PIVOTS[spec.pivot].per_token:
        return dataclasses.replace(promised, epsilon=None, reason="the number of tokens of each text is plain")
    return promised
