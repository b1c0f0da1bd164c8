"""What a whole fleet must agree on: the task, and what of the forward pass is uploaded."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from mobillm_flower.core.layers import sample_layers
from mobillm_flower.core.side_networks import AlignmentSpec
from mobillm_flower.errors import MismatchError
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
    """A frozen set of values with a canonical JSON form, compared field by field.

    Fields in `_LATER` are left out of it at their defaults, so that whoever does not use them has the form of before.
    """

    _TITLE: ClassVar[str]
    _LATER: ClassVar[frozenset[str]] = frozenset()

    def to_json(self) -> str:
        """Return canonical JSON: sorted keys, no spaces."""
        values = {name: value for name, value in dataclasses.asdict(self).items() if value or name not in self._LATER}
        return json.dumps(values, sort_keys=True, separators=(",", ":"))

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
            annotations = {item.name: str(item.type) for item in dataclasses.fields(cls)}
            if not isinstance(values, dict) or not annotations.keys() - cls._LATER <= set(values) <= set(annotations):
                raise ValueError
            if not all(_fits(value, annotations[name]) for name, value in values.items()):
                raise ValueError
        except (ValueError, RecursionError) as error:
            raise MismatchError(f"{cls._TITLE} is not of the form that this version reads") from error
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
            raise MismatchError(f"{self._TITLE} differs: {'; '.join(different)}; give both sides the same settings")


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
    chat_template : bool
        The prompt is a user's message in the model's chat template, where it has one.
    calibration : str
        What the base prediction of label words is divided by: "content-free" or "public"; empty: nothing.
    whole_words : bool
        All tokens of a label word count in the base prediction, not the first alone.
    """

    _TITLE = "the task contract"
    _LATER = frozenset({"chat_template", "calibration", "whole_words"})

    kind: str
    labels: tuple[str, ...]
    prompt: str
    label_words: tuple[str, ...]
    max_length: int
    label_range: tuple[float, ...]
    metric: str
    per_token: bool = False
    chat_template: bool = False
    calibration: str = ""
    whole_words: bool = False

    @property
    def num_outputs(self) -> int:
        """K: the number of labels, 1 for regression and for language modelling."""
        return len(self.labels) or 1

    @property
    def is_regression(self) -> bool:
        """Whether the target is a number."""
        return not self.labels and not self.per_token


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
        Sampled layers, M of them, counted from 1; 0 are the embeddings.
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
        (as in `standardise`); empty: off. "d principal of TEXT": not whitened, for sums.
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

    _TITLE = "what is uploaded"

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
    def scheme(self) -> str:
        """What `activations.sampling=auto` means where these layers are sampled."""
        if not self.layers or self.layers[0] or list(self.layers) != sorted(set(self.layers)):
            return "uniform"
        depth, blocks = self.layers[-1], len(self.layers)
        fitting = [name for name in ("upper", "spread") if self.layers == sample_layers(depth, blocks, scheme=name)]
        if len(fitting) == 1:
            return fitting[0]
        return "spread" if fitting and self.pivot == "last+mean" else "upper"  # of few layers both may fit

    @property
    def alignment(self) -> AlignmentSpec:
        """What the side network takes of this type."""
        _, vectors, width = self.row_shape
        return AlignmentSpec(width, vectors, self.layers_above)

    @property
    def whole_texts(self) -> bool:
        """Whether tokens are predicted from the states of all tokens before them, those of the prompt included."""
        return bool(self.vocabulary and self.layers_above)

    @property
    def vectors_per_row(self) -> int:
        """Vectors in a packed row."""
        blocks, vectors, _ = self.row_shape
        return blocks * vectors

    def protection(self, contract: TaskContract) -> Protection:
        """Return what is done to activations and labels before they are sent."""
        return Protection(
            classes=contract.num_outputs,
            joint_epsilon=self.joint_epsilon,
            label_epsilon=self.label_epsilon,
            clip_norm=self.clip_norm,
            sigma=self.sigma,
        )

    @property
    def labels_protected(self) -> bool:
        """Whether the server can read no label, or one that may not be the sample's own."""
        return self.joint_epsilon > 0 or self.label_epsilon > 0 or bool(self.mixing)
