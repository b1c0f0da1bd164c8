"""What each kind of pivot says of a text: clean activations of one draw, without codec or protection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mobillm_flower.audit.attacks.sequences import SequenceDecoder
from mobillm_flower.audit.attacks.words import Vocabulary, WordDecoder, word_f1, words
from mobillm_flower.audit.draw import Draw
from mobillm_flower.audit.finding import Measured, combine, of_scores
from mobillm_flower.backbones import Backbone
from mobillm_flower.core.pivots import PIVOTS
from mobillm_flower.tasks import tokenize

_VICTIMS, _PUBLIC = 100, 600
_CHUNK = 1024  # tokens looked up at a time


def attack_pivots(drawn: Draw, backbone: Backbone, sequences: SequenceDecoder) -> list[dict[str, Any]]:
    """Recover words from each registered pivot of the backbone's first and last layer.

    With one or a few vectors a text, a ridge regression from all of them; with a vector a token, each token is taken
    for that of the nearest token vector in the attacker's texts.

    Parameters
    ----------
    drawn : Draw
        Its first texts are attacked.
    backbone : Backbone
        Of devices and attacker.
    sequences : SequenceDecoder
        Of that draw.

    Returns
    -------
    list of dict
        "pivot", "layer", "victims" and a finding of word F1; "sequence", a finding of token F1, where a sample's
        vectors are few.
    """
    samples = drawn.attacked
    order = np.random.default_rng(0).permutation(len(samples))[:_VICTIMS]
    victims = samples.take(order.tolist())
    known = drawn.public.take(list(range(min(_PUBLIC, len(drawn.public)))))
    tokens = [tokenize(backbone, part, drawn.contract) for part in (victims, known, sequences.samples)]
    layers = sorted({1, backbone.info.depth})
    results = []
    for pivot in PIVOTS:
        parts = tokens[:2] if PIVOTS[pivot].per_token else tokens
        sides = [backbone.extract(part, layers=layers, pivot=pivot).activations for part in parts]
        for block, layer in enumerate(layers):
            at = [[sample[:, block].flatten(1) for sample in side] for side in sides]  # [T, P·d] a sample
            written = {}
            if PIVOTS[pivot].per_token:
                measured = _by_token(at[0], at[1], tokens[1], victims.texts, known.texts, backbone)
            else:
                decoder = WordDecoder(torch.cat(at[1]), known.texts)
                measured = decoder.recover(torch.cat(at[0]), victims.texts).measured
                sequence = sequences.recover(torch.cat(at[0]), victims.texts, torch.cat(at[2])).f1
                written = {"sequence": combine([sequence]).to_dict()}
            results.append(
                {"pivot": pivot, "layer": layer, "victims": len(victims), **combine([measured]).to_dict(), **written}
            )
    return results


def _by_token(
    victims: Sequence[Tensor],
    known: Sequence[Tensor],
    known_tokens: Sequence[dict[str, list[int]]],
    truth: Sequence[str],
    known_texts: Sequence[str],
    backbone: Backbone,
) -> Measured:
    """Take each token vector for the token whose vector in a public text is nearest."""
    ids = np.array([number for sample in known_tokens for number in sample["input_ids"]])
    corpus, asked = torch.cat(list(known)), torch.cat(list(victims))
    nearest = [torch.cdist(asked[i : i + _CHUNK], corpus).argmin(1).numpy() for i in range(0, len(asked), _CHUNK)]
    named = ids[np.concatenate(nearest)]
    ends = np.cumsum([len(sample) for sample in victims])
    guesses = [
        words(backbone.tokenizer.decode(part.tolist(), skip_special_tokens=True)) for part in np.split(named, ends[:-1])
    ]
    scores = [word_f1(words(true), guess) for true, guess in zip(truth, guesses, strict=True)]
    frequent = words(" ".join(Vocabulary.of(known_texts).words[:5]))
    return of_scores(np.array(scores), float(np.mean([word_f1(words(true), frequent) for true in truth])))
