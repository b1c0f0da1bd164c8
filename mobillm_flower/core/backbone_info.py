"""What is known of a backbone without its weights."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BackboneInfo:
    """A backbone as it is loaded.

    Parameters
    ----------
    name : str
        As named in the settings.
    family : str
        transformers' model type ("bert", "opt").
    causal : bool
        Whether tokens see only their left; decides the default pivot.
    depth : int
        L, the layers that were loaded; of an encoder-decoder those of the decoder.
    width : int
        d_b.
    precision : str
        Number format of the weights.
    fingerprint : str
        64 hex digits over the weight files and the layers kept: the backbone's type, whatever its precision.
    base_prediction : str
        Where p_b comes from: "label-words", "classifier" or "constant"; "head" where tokens are predicted.
    revision : str
        Of a hub model, where the settings name one.
    vocabulary, head_width : int
        V and d_u, what the language-model head that was loaded with it maps to and from; 0 without one.
    """

    name: str
    family: str
    causal: bool
    depth: int
    width: int
    precision: str
    fingerprint: str
    base_prediction: str
    revision: str = ""
    vocabulary: int = 0
    head_width: int = 0

    @property
    def default_pivot(self) -> str:
        """`last` for causal models, whose last token is in the loss; `first+mean` for encoders; `all` with a head."""
        if self.vocabulary:
            return "all"
        return "last" if self.causal else "first+mean"
