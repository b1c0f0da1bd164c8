"""What a whole fleet must agree on: the task, and what of the forward pass is uploaded."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from mobillm_flower.backbones.backbone import Backbone
from mobillm_flower.backbones.describe import BackboneInfo
from mobillm_flower.backbones.public import public_transform, text_hash
from mobillm_flower.config import EngineName, Settings
from mobillm_flower.core.codecs import CODECS
from mobillm_flower.core.layers import cut_layer, sample_layers
from mobillm_flower.core.pivots import PIVOTS
from mobillm_flower.core.side_networks import upper_layers as upper
from mobillm_flower.core.side_networks.additive import AlignmentSpec
from mobillm_flower.errors import MismatchError, SettingsError
from mobillm_flower.privacy.accounting import Guarantee, gaussian_sigma, guarantee
from mobillm_flower.privacy.protect import Protection


def _shown(agreed: object, name: str) -> str:
    """Return a field's value for a message; class names, which may be private, only as their number and a hash."""
    value = getattr(agreed, name)
    if name in ("labels", "label_words"):
        return f"{len(value)} names ({hashlib.sha256(repr(value).encode()).hexdigest()[:8]})"
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}…"


def _fits(value: object, annotation: str) -> bool:
    """Whether a JSON value is of a field's annotated type."""
    if annotation.startswith("tuple["):
        inner = annotation.removeprefix("tuple[").split(",")[0]
        return isinstance(value, list) and all(_fits(item, inner) for item in value)
    if annotation == "bool" or isinstance(value, bool):
        return annotation == "bool" and isinstance(value, bool)
    return isinstance(value, {"str": str, "int": int, "float": (int, float)}[annotation])  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Agreed:
    """A frozen set of values with a canonical JSON form, compared field by field."""

    def to_json(self) -> str:
        """Return canonical JSON: sorted keys, no spaces."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read `to_json` back.

        Raises
        ------
        MismatchError
            The text is not JSON, or has other fields.
        """
        try:
            values = json.loads(text)
            names = {item.name for item in dataclasses.fields(cls)}
            if not isinstance(values, dict) or set(values) != names:
                raise ValueError
            if not all(_fits(values[item.name], str(item.type)) for item in dataclasses.fields(cls)):
                raise ValueError
        except (ValueError, RecursionError) as error:
            raise MismatchError(f"{cls._title()} is not of the form that this version reads") from error
        made: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        return cls(**made)

    def require_same(self, other: Self, *, mine: str, theirs: str) -> None:
        """Raise where `other` differs, naming every field that does and both values.

        Raises
        ------
        MismatchError
            A field differs.
        """
        different = [
            f"{item.name} is {_shown(other, item.name)} {theirs}, {_shown(self, item.name)} {mine}"
            for item in dataclasses.fields(self)
            if getattr(self, item.name) != getattr(other, item.name)
        ]
        if different:
            raise MismatchError(f"{self._title()} differs: {'; '.join(different)}; give both sides the same settings")

    @classmethod
    def _title(cls) -> str:
        return cls.__name__


@dataclass(frozen=True)
class TaskContract(_Agreed):
    """The task, agreed fleet-wide.

    Parameters
    ----------
    kind : str
        Name of the task in the registry.
    labels : tuple of str
        Class names in order; empty for regression.
    prompt : str
        Template with ``{text}`` and ``{text_pair}``; empty: the texts as they are.
    label_words : tuple of str
        A word a label, for the base prediction of causal models.
    max_length : int
        Tokens a sample is cut to.
    label_range : tuple of float
        Lowest and highest target of a regression; empty for classification.
    metric : str
        Name of the metric that is reported first.
    per_token : bool
        Language modelling: each token in the loss has a target of its own, and there are no labels.
    """

    kind: str
    labels: tuple[str, ...]
    prompt: str
    label_words: tuple[str, ...]
    max_length: int
    label_range: tuple[float, ...]
    metric: str
    per_token: bool = False

    @property
    def num_outputs(self) -> int:
        """K: the number of labels, 1 for regression and for language modelling."""
        return len(self.labels) or 1

    @property
    def is_regression(self) -> bool:
        """Whether the target is a number."""
        return not self.labels and not self.per_token

    @classmethod
    def _title(cls) -> str:
        return "the task contract"


@dataclass(frozen=True)
class ExtractionSpec(_Agreed):
    """What of a forward pass a device uploads.

    Parameters
    ----------
    backbone : str
        Fingerprint of the backbone's type.
    width : int
        d_b.
    num_vectors : int
        P of a packed row.
    layers : tuple of int
        Sampled 1-based layers, M of them.
    pivot : str
        Name in `PIVOTS`.
    codec : str
        Name in `CODECS`.
    standardise : str
        SHA-256 (16 hex digits) of the public text that shift and scale were fitted on; empty: off.
    clip_norm : float
        C; 0: off.
    sigma : float
        σ of the noise; 0: off.
    keep : float
        Share of each vector's values that is kept.
    objective : str
        "difference" or "label".
    send_base : bool
        With objective "label", whether p_b is sent beside it.
    stage : int
        Residual refresh: 0 is the first release.
    projection : str
        "d of TEXT": all vectors of a sample become one unit vector of d values, fitted on the public text of this hash
        (as in `standardise`); empty: off.
    joint_epsilon : float
        ε of `LabelledCap` over the projected vector and the label together; 0: off.
    label_epsilon : float
        ε of the label's randomized response; 0: off.
    mixing : str
        Name of the devices' secret rotation of activations and Δy; empty: none.
    constant_base : bool
        p_b is the constant 1/K, so that Δy says nothing about the text beside its label.
    bi_encoder : bool
        The texts of a pair run by themselves, and P counts both comparisons of their vectors (`core.pairs`).
    vocabulary, head_width : int
        V and d_u of the language-model head that tokens are predicted with; 0 where labels are predicted.
    layers_above : int
        Layers of the backbone above the last sampled one; other than 0 only where the side network runs them.
    """

    backbone: str
    width: int
    num_vectors: int
    layers: tuple[int, ...]
    pivot: str
    codec: str
    standardise: str
    clip_norm: float
    sigma: float
    keep: float
    objective: str
    send_base: bool
    stage: int = 0
    projection: str = ""
    joint_epsilon: float = 0.0
    label_epsilon: float = 0.0
    mixing: str = ""
    constant_base: bool = False
    bi_encoder: bool = False
    vocabulary: int = 0
    head_width: int = 0
    layers_above: int = 0

    @property
    def row_shape(self) -> tuple[int, int, int]:
        """Blocks, vectors a block and values a vector of a packed row: (M, P, d_b), or (1, 1, d) of a projection."""
        if self.projection:
            return 1, 1, int(self.projection.split()[0])
        return len(self.layers), self.num_vectors, self.width

    @property
    def alignment(self) -> AlignmentSpec:
        """What the side network takes of this type."""
        _, vectors, width = self.row_shape
        return AlignmentSpec(width, vectors, self.layers_above)

    @property
    def vectors_per_row(self) -> int:
        """Vectors in a packed row."""
        blocks, vectors, _ = self.row_shape
        return blocks * vectors

    def transform(
        self, backbone: Backbone, *, max_length: int, file: str = "", remembered_in: Path | None = None
    ) -> Callable[[Tensor], Tensor] | None:
        """Return what is applied to activations before anything private is done to them, or None.

        Parameters
        ----------
        backbone, max_length, file, remembered_in
            See `public_transform`.

        Raises
        ------
        MismatchError
            The public text is another than what was agreed on.
        """
        fitted_on = self.projection.split()[-1] if self.projection else self.standardise
        if not fitted_on:
            return None
        if text_hash(file) != fitted_on:
            raise MismatchError(
                f"shift, scale or projection were fitted on the public text {fitted_on}, activations.public-text="
                f"{file!r} is {text_hash(file)}; give the same file on the server, on devices and for predictions"
            )
        return public_transform(
            backbone,
            layers=self.layers,
            pivot=self.pivot,
            max_length=max_length,
            dimensions=self.row_shape[2] if self.projection else 0,
            file=file,
            remembered_in=remembered_in,
        )

    def protection(self, contract: TaskContract) -> Protection:
        """Return what is done to activations and labels before they are sent."""
        return Protection(
            classes=contract.num_outputs,
            joint_epsilon=self.joint_epsilon,
            label_epsilon=self.label_epsilon,
            clip_norm=self.clip_norm,
            sigma=self.sigma,
        )

    def guarantee(self, contract: TaskContract, *, delta: float) -> Guarantee:
        """Return what one release of one sample guarantees, or why no ε can be named.

        Parameters
        ----------
        contract : TaskContract
            The task.
        delta : float
            δ of the Gaussian mechanism.
        """
        found = guarantee(
            joint_epsilon=self.joint_epsilon,
            activation_sigma=self.sigma,
            clip_norm=self.clip_norm,
            delta=delta,
            label_epsilon=self.label_epsilon,
            labels_sent=True,
            base_is_constant=self.constant_base or (self.objective == "label" and not self.send_base),
            classes=len(contract.labels),
        )
        if found.epsilon is not None and PIVOTS[self.pivot].per_token:
            return dataclasses.replace(found, epsilon=None, reason="the number of tokens of each text is plain")
        return found

    @property
    def labels_protected(self) -> bool:
        """Whether the server can read no label, or one that may not be the sample's own."""
        return self.joint_epsilon > 0 or self.label_epsilon > 0 or bool(self.mixing)

    @classmethod
    def _title(cls) -> str:
        return "what is uploaded"


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
