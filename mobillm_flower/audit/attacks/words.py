"""Text recovery: which words a server reads out of uploaded activations.

The attacker knows the public backbone, so that he can make uploads of texts of his own under the same settings and
learn from them what an upload says.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mobillm_flower.audit.attacks.linear import Ridge, components
from mobillm_flower.audit.finding import Measured, of_scores

MAX_WORDS = 1000
"""Words of the attacker's vocabulary."""
_HELD_OUT = 5  # one of so many public texts chooses strength and threshold
_WORD = re.compile(r"\w+(?:'\w+)?")


def word_list(text: str) -> tuple[str, ...]:
    """Return a text's words in lower case, in order."""
    return tuple(_WORD.findall(text.lower()))


def words(text: str) -> frozenset[str]:
    """Return a text's words in lower case, each once."""
    return frozenset(word_list(text))


def word_f1(true: frozenset[str], guessed: frozenset[str]) -> float:
    """Return F1 of a guessed set of words against the true one."""
    common = len(true & guessed)
    return 2 * common / (len(true) + len(guessed)) if common else 0.0


@dataclass(frozen=True)
class Vocabulary:
    """The most frequent words of public texts, the most frequent first."""

    words: tuple[str, ...]

    @classmethod
    def of(cls, texts: Sequence[str]) -> Vocabulary:
        """Count words over texts; ties go by the alphabet."""
        counts = Counter(word for text in texts for word in words(text))
        ordered = sorted(counts, key=lambda word: (-counts[word], word))
        return cls(tuple(ordered[:MAX_WORDS]))

    def marks(self, texts: Sequence[str]) -> Tensor:
        """Return which words a text has, [N, V] float32."""
        place = {word: i for i, word in enumerate(self.words)}
        marked = torch.zeros(len(texts), len(self.words))
        for row, text in enumerate(texts):
            marked[row, [place[word] for word in words(text) if word in place]] = 1.0
        return marked


@dataclass(frozen=True)
class Recovered:
    """What a decoder made of each victim's upload.

    Parameters
    ----------
    guesses : list of frozenset of str
        Words, one set a victim.
    measured : Measured
        Word F1 and its baseline, the most frequent words for everybody.
    frequent : list of str
        These words, by the alphabet.
    """

    guesses: list[frozenset[str]]
    measured: Measured
    frequent: list[str]


class WordDecoder:
    """A ridge regression from activations to the words of a text.

    Parameters
    ----------
    rows : Tensor
        [N, D], uploads (or clean activations) of public texts.
    texts : sequence of str
        These texts.
    seed : int
        Of the principal components and of the held-out share.
    """

    def __init__(self, rows: Tensor, texts: Sequence[str], *, seed: int = 0) -> None:
        self.vocabulary = Vocabulary.of(texts)
        self._truth = [words(text) for text in texts]
        self._reduce = components(rows, seed=seed)
        order = np.random.default_rng(seed).permutation(len(texts))
        self._held = order[: max(1, len(texts) // _HELD_OUT)]
        fitted = torch.from_numpy(order[len(self._held) :].copy())
        marks = self.vocabulary.marks(texts)
        self._ridge = Ridge.fit(self._reduce(rows)[fitted], marks[fitted])
        self._frequent = self._tune(marks.mean(0).expand(len(self._held), -1))[1]
        self._rows = rows

    def recover(
        self, victims: Tensor, texts: Sequence[str], *, variance: float | None = None, tuning: Tensor | None = None
    ) -> Recovered:
        """Recover words of victims' uploads.

        Parameters
        ----------
        victims : Tensor
            [B, D].
        texts : sequence of str
            The truth.
        variance : float, optional
            Known variance of the noise on each value: the strength of the ridge is then that, as the best linear
            estimate from a noisy input has it; otherwise it is chosen on held-out public texts.
        tuning : Tensor, optional
            [N, D], uploads of the public texts that the threshold is chosen on; by default those fitted on.
        """
        held = self._reduce((self._rows if tuning is None else tuning)[torch.from_numpy(self._held.copy())])
        strengths = self._ridge.strengths if variance is None else [variance]
        tuned = [(*self._tune(self._ridge.predict(held, strength)), strength) for strength in strengths]
        _, threshold, strength = max(tuned)
        guesses = self._guess(self._ridge.predict(self._reduce(victims), strength), threshold)
        truth = [words(text) for text in texts]
        prior = self._guess(self._ridge.mean_out.expand(1, -1), self._frequent)[0]
        scores = np.array([word_f1(true, guess) for true, guess in zip(truth, guesses, strict=True)])
        baseline = float(np.mean([word_f1(true, prior) for true in truth]))
        return Recovered(guesses, of_scores(scores, baseline), sorted(prior))

    def _guess(self, scores: Tensor, threshold: float) -> list[frozenset[str]]:
        """Return the words above a threshold; the best one where there is none."""
        above = (scores >= torch.minimum(torch.full((len(scores), 1), threshold), scores.amax(1, keepdim=True))).numpy()
        return [frozenset(self.vocabulary.words[i] for i in np.flatnonzero(row)) for row in above]

    def _tune(self, scores: Tensor) -> tuple[float, float]:
        """Return (F1, threshold) of the best threshold on the held-out public texts."""
        truth = [self._truth[i] for i in self._held]
        marks = self.vocabulary.marks([" ".join(text) for text in truth])
        sizes = torch.tensor([float(len(text)) for text in truth])
        best = (0.0, 1.0)
        for threshold in (0.02, 0.05, 0.08, 0.1, 0.12, 0.15, 0.2, 0.25, 0.3, 0.4):
            guessed = scores >= threshold
            common = (guessed * marks).sum(1)
            f1 = float((2 * common / (sizes + guessed.sum(1)).clamp_min(1)).mean())
            best = max(best, (f1, threshold))
        return best
