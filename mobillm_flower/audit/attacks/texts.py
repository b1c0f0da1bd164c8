"""All attacks on the texts of one cell's uploads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mobillm_flower.audit.attacks.linear import signal
from mobillm_flower.audit.attacks.lookup import Lookup, nearest_text
from mobillm_flower.audit.attacks.sequences import SequenceDecoder, Written
from mobillm_flower.audit.attacks.words import Recovered, WordDecoder, word_f1, words
from mobillm_flower.audit.draw import Draw
from mobillm_flower.audit.finding import Measured, of_scores
from mobillm_flower.audit.uploads import RememberingBackbone, Uploads, clean_rows, joined, spec_of
from mobillm_flower.backbones import public_text
from mobillm_flower.config import Settings
from mobillm_flower.tasks import Samples, tokenize

Embed = Callable[[Sequence[str]], Tensor]
"""Texts to sentence embeddings [B, D]."""

_EMBEDDED = 100  # victims whose recovered text is compared by meaning


def read_public_texts(
    settings: Settings, drawn: Draw, *, backbone: RememberingBackbone, sentences: int, seed: int
) -> SequenceDecoder:
    """Train a sequence decoder on the attacker's texts and public sentences, by the mean of each sampled layer.

    Parameters
    ----------
    settings : Settings
        Those audited, for layers and public text.
    drawn : Draw
        It has the attacker's texts.
    backbone : RememberingBackbone
        Of devices and attacker.
    sentences : int
        Most public sentences; none with text pairs.
    seed : int
        Of the training.
    """
    samples = drawn.public
    if samples.pairs is None:
        more = list(public_text(settings.activations.public_text)[:sentences])
        samples = joined([samples, Samples(more, None, torch.zeros(len(more), dtype=samples.labels.dtype))])
    tokens = tokenize(backbone, samples, drawn.contract)
    rows = backbone.extract(tokens, layers=spec_of(settings, backbone, drawn.contract).layers, pivot="mean").activations
    return SequenceDecoder(torch.stack([row.flatten() for row in rows]), samples, seed=seed)


@dataclass(frozen=True)
class Attacker:
    """Who attacks the uploads of one draw.

    Parameters
    ----------
    drawn : Draw
        What is attacked, and texts of his own.
    backbone : RememberingBackbone
        Of devices and attacker.
    sequences : SequenceDecoder
        From `read_public_texts`.
    embed : callable or None
        For similarity of meaning; None leaves it out.
    victims : int
        Most texts that he recovers.
    seed : int
        Of attacks and training, and of which texts.
    """

    drawn: Draw
    backbone: RememberingBackbone
    sequences: SequenceDecoder
    embed: Embed | None
    victims: int
    seed: int


def attack_texts(
    attacker: Attacker, settings: Settings, uploads: Uploads, public: Uploads, *, each_layer: bool
) -> tuple[dict[str, Measured], list[dict[str, Measured]]]:
    """Recover words, sequences and whole texts of some uploads.

    Parameters
    ----------
    attacker : Attacker
        Recovers them.
    settings : Settings
        Of the cell.
    uploads, public : Uploads
        The devices', and those that the attacker made of his own texts, without a secret rotation.
    each_layer : bool
        Whether to attack each sampled layer by itself too.

    Returns
    -------
    tuple
        What was reached by the attack's name; and for each layer "words", "sequence" and "nearest", or nothing.
    """
    generator, seed, sequences = np.random.default_rng(attacker.seed), attacker.seed, attacker.sequences
    attacked = uploads.take(generator.permutation(len(uploads.samples.texts))[: attacker.victims])
    truth, known, itself = attacked.samples, public.samples, np.arange(len(attacked.samples))
    own, others, learned = (
        clean_rows(settings, uploads.spec, uploads.contract, part, attacker.backbone)
        for part in (truth, known, sequences.samples)
    )
    clean_public = others.flatten(1)
    scale, variance = signal(public.features, clean_public)

    def recover(blocks: slice) -> tuple[Recovered, Written, Lookup]:
        rows, mine, clean, candidates, told = (
            part[:, blocks].flatten(1) for part in (attacked.rows, public.rows, own, others, learned)
        )
        bag = WordDecoder(mine, known.texts, seed=seed).recover(rows, truth.texts)
        said = sequences.recover(rows, truth.texts, told, scale=scale, variance=variance, frequent=bag.frequent)
        return bag, said, nearest_text(rows, torch.cat([clean, candidates]), itself, scale=scale)

    recovered, written, lookup = recover(slice(None))
    other = nearest_text(attacked.features, clean_public, itself, scale=scale)
    overlap = [
        word_f1(words(true), words(known.texts[place])) for true, place in zip(truth.texts, other.nearest, strict=True)
    ]
    measured = {
        "text: words": recovered.measured,
        "text: sequence": written.f1,
        "text: sequence, exact match": written.exact,
        "text: nearest of candidates": lookup.measured,
        "text: words of the nearest other text": of_scores(np.array(overlap), recovered.measured.baseline),
    }
    if uploads.is_noisy:
        naive, rows = WordDecoder(clean_public, known.texts, seed=seed), attacked.features / scale
        measured["text: words, decoder of clean text"] = naive.recover(rows, truth.texts).measured
        aware = naive.recover(rows, truth.texts, variance=variance / scale**2, tuning=public.features / scale)
        measured["text: words, decoder that knows the noise"] = aware.measured
    if attacker.embed is not None:
        some, usual = slice(0, _EMBEDDED), [" ".join(recovered.frequent)]
        chance = [known.texts[place] for place in generator.integers(len(known), size=len(truth.texts[some]))]
        guesses = {
            "the words": ([" ".join(sorted(guess)) for guess in recovered.guesses[some]], usual),
            "the sequence": ([" ".join(text) for text in written.texts[some]], usual),
            "the nearest other text": ([known.texts[place] for place in other.nearest[some]], chance),
        }
        measured |= _meanings(attacker.embed, truth.texts[some], guesses)
    blocks = uploads.rows.shape[1]
    alone = [recover(slice(block, block + 1)) for block in range(blocks if each_layer and blocks > 1 else 0)]
    return measured, [{"words": w.measured, "sequence": s.f1, "nearest": n.measured} for w, s, n in alone]


def _meanings(
    embed: Embed, texts: Sequence[str], guesses: Mapping[str, tuple[Sequence[str], Sequence[str]]]
) -> dict[str, Measured]:
    """Compare texts by meaning with what was recovered of them, and with what is said without looking at uploads."""
    true = embed(texts)
    return {
        f"text: meaning of {what}": cosine_scores(true, embed(said), embed(blind).expand(len(true), -1))
        for what, (said, blind) in guesses.items()
    }


def cosine_scores(truth: Tensor, recovered: Tensor, baseline: Tensor) -> Measured:
    """Return the mean cosine of sentence embeddings [B, D] of true and recovered texts, negative ones taken as 0.

    `baseline` [B, D] are embeddings of what was guessed without the uploads.
    """

    def mean(other: Tensor) -> NDArray[np.float64]:
        return np.asarray(torch.nn.functional.cosine_similarity(truth, other).clamp_min(0).double().numpy(), np.float64)

    return of_scores(mean(recovered), float(mean(baseline).mean()))
