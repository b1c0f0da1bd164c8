"""What is fitted on public text and applied to every sample's activations: shift and scale, or a projection."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import fields
from functools import lru_cache
from importlib import resources
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from mobillm_flower.backbones.backbone import Backbone
from mobillm_flower.core.perturb import Standardisation, fit_standardisation
from mobillm_flower.core.projection import Projection, fit_principal, fit_projection
from mobillm_flower.errors import DataError

_fitted: dict[str, Standardisation | Projection] = {}  # a few per process


@lru_cache(maxsize=8)
def public_text(file: str = "") -> tuple[str, ...]:
    """Return public sentences, one a line of a file: what constants are fitted on.

    Parameters
    ----------
    file : str
        Empty: those that come with the package, written for it.

    Raises
    ------
    DataError
        The file cannot be read, or is empty.
    """
    try:
        source = Path(file).expanduser() if file else resources.files("mobillm_flower.backbones") / "public_text.txt"
        lines = tuple(line.strip() for line in source.read_text("utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"activations.public-text={file!r} cannot be read ({type(error).__name__}); give a UTF-8 file with one "
            "sentence a line, on every device the same"
        ) from error
    if not lines:
        raise DataError(f"activations.public-text={file!r} holds no sentence; write one a line")
    return lines


def text_hash(file: str = "") -> str:
    """Return 16 hex digits of the SHA-256 of `public_text`."""
    return hashlib.sha256("\n".join(public_text(file)).encode()).hexdigest()[:16]


def public_transform(
    backbone: Backbone,
    *,
    layers: tuple[int, ...],
    pivot: str,
    max_length: int,
    dimensions: int = 0,
    whitened: bool = True,
    file: str = "",
    remembered_in: Path | None = None,
) -> Standardisation | Projection:
    """Return what is applied to a backbone's activations, fitted on public text once.

    Parameters
    ----------
    backbone : Backbone
        Runs the public text forward where nothing is remembered.
    layers : tuple of int
        Sampled layers.
    pivot : str
        A name in `PIVOTS`.
    max_length : int
        Tokens a text is cut to.
    dimensions : int
        d of a projection; 0: shift and scale of each layer.
    whitened : bool
        Whether a projection is `fit_projection`'s or `fit_principal`'s.
    file : str
        See `public_text`.
    remembered_in : path, optional
        A folder that keeps the result for other processes.
    """
    texts, info = public_text(file), backbone.info
    described = json.dumps(
        [
            info.fingerprint,
            info.precision,
            backbone.computed_by(layers, pivot),
            layers,
            pivot,
            max_length,
            dimensions,
            texts,
            *([] if whitened else ["principal"]),
        ]
    )
    key = hashlib.sha256(described.encode()).hexdigest()[:32]
    if key not in _fitted:
        fitted: Standardisation | Projection
        kept = None if remembered_in is None else remembered_in / f"public-{key}.safetensors"
        if kept is not None and kept.exists():
            _fitted[key] = (Projection if dimensions else Standardisation)(**load_file(kept))
        else:
            samples = backbone.tokenize(texts, None, max_length)
            activations = torch.cat(backbone.extract(samples, layers=layers, pivot=pivot).activations)
            if dimensions:
                fitted = (fit_projection if whitened else fit_principal)(activations, dimensions)
            else:
                fitted = fit_standardisation(activations)
            if kept is not None:
                draft = kept.with_suffix(f".{os.getpid()}")
                save_file({item.name: getattr(fitted, item.name).contiguous() for item in fields(fitted)}, draft)
                draft.replace(kept)
            _fitted[key] = fitted
    return _fitted[key]
