"""Text recovery as a sequence: a small recurrent network that writes a text down from what an upload says of it.

It is trained once a draw, on public text run through the public backbone. An upload under any settings is put into the
terms that it was trained in by the best linear estimate, so that one network reads noisy and shortened ones too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mobillm_flower.audit.attacks.linear import Ridge, components
from mobillm_flower.audit.attacks.words import Vocabulary, word_list
from mobillm_flower.audit.finding import Measured, of_scores
from mobillm_flower.core.placement import torch_threads
from mobillm_flower.tasks import Samples

_END, _OTHER = 0, 1  # end (and beginning) of a text; a word out of the vocabulary, which is read and never written
_LONGEST = 32  # words that are read and written of a text
_HIDDEN, _BATCH, _EPOCHS, _PEAK, _DROPOUT = 128, 64, 8, 3e-3, 0.2
_CLEAN_SHARE = 0.5  # of the training steps' texts that are told of without noise
_FAR = 4.0  # standard deviations beyond which a component is cut
_BEAMS, _LENGTH_POWER = 5, 0.7
_LEAST_STRENGTH = 1e-4  # of the mean eigenvalue, where uploads are not noisy


def token_f1(true: Sequence[str], guessed: Sequence[str]) -> float:
    """Return F1 of words, each as often as it stands (SQuAD's; Rajpurkar et al. 2016)."""
    common = sum((Counter(true) & Counter(guessed)).values())
    return 2 * common / (len(true) + len(guessed)) if common else 0.0


class _Writer(nn.Module):
    """logits_t = E h_t + b + (B c) · (1 − said_t), h_t = GRU(e_t + W c, h_{t−1}), h_0 = tanh(V c).

    c is what is told of the text. B is the bag of words: a word that was said does not count again.
    """

    def __init__(self, told: int, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, _HIDDEN)
        self.first, self.each = nn.Linear(told, _HIDDEN), nn.Linear(told, _HIDDEN)
        self.gru = nn.GRU(_HIDDEN, _HIDDEN, batch_first=True)
        self.bag = nn.Linear(told, vocabulary)
        self.dropout = nn.Dropout(_DROPOUT)
        nn.init.normal_(self.embedding.weight, std=0.1)

    def forward(self, told: Tensor, read: Tensor, said: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return logits [B, T, V] and the state [1, B, H] of told [B, q], words read [B, T] and said [B, T, V]."""
        state = torch.tanh(self.first(told))[None] if state is None else state
        inputs = self.dropout(self.embedding(read) + self.each(told)[:, None])
        hidden, state = self.gru(inputs, state)
        weights, bias = self.bag.weight, self.bag.bias
        bag = (told @ weights.T)[:, None] * (1 - said) + bias
        return self.dropout(hidden) @ self.embedding.weight.T + bag, state


@dataclass(frozen=True)
class Written:
    """What was written of each victim's upload.

    Parameters
    ----------
    texts : list of tuple of str
        Words in order.
    f1, exact : Measured
        Token F1, and the share of texts of which every word is right; their baselines are of the text that is written
        without an upload or of the most frequent words, whichever is better.
    """

    texts: list[tuple[str, ...]]
    f1: Measured
    exact: Measured


class SequenceDecoder:
    """A GRU that writes a text down, conditioned on principal components of the backbone's clean activations.

    Parameters
    ----------
    rows : Tensor
        [N, D], clean activations of public texts.
    samples : Samples
        These texts, which it keeps.
    seed : int
        Of components, first weights, order and noise.

    Notes
    -----
    In whitened components c the best linear estimate from a noisy c is a·c + √(a(1 − a))·ε for some 0 ≤ a ≤ 1, ε ~
    N(0, I). Half of the training texts are told of like this, a drawn evenly; so it learns how far to trust what it is
    told, and what to write when it is told nothing (a = 0).
    """

    def __init__(self, rows: Tensor, samples: Samples, *, seed: int = 0) -> None:
        self.samples = samples
        self._seed = seed
        self._told = components(rows, seed=seed)(rows, whiten=True).clamp(-_FAR, _FAR)
        self._words = ("", "", *Vocabulary.of(samples.texts).words)
        # one thread: steps are so small that a second one waits, for minutes where cores are shared
        with torch.random.fork_rng(devices=[]), torch_threads(1):
            torch.manual_seed(seed)
            self._writer = _Writer(self._told.shape[1], len(self._words))
            self._train()
        self._writer.eval()
        self.untold = self.write(torch.zeros(1, self._told.shape[1]))[0]

    def recover(
        self,
        victims: Tensor,
        texts: Sequence[str],
        clean: Tensor,
        *,
        scale: float = 1.0,
        variance: float = 0.0,
        frequent: Sequence[str] = (),
    ) -> Written:
        """Write down the texts of uploads.

        Parameters
        ----------
        victims : Tensor
            [B, D'], uploads under any settings.
        texts : sequence of str
            The truth.
        clean : Tensor
            [N, D'], what the decoder's own texts are under these settings without noise.
        scale, variance : float
            What the mechanism multiplies with, and the noise on each value; see `linear.signal`.
        frequent : sequence of str
            The most frequent words, for the baseline.
        """
        reduce = components(clean, seed=self._seed)
        ridge = Ridge.fit(reduce(clean), self._told)
        strength = max(variance / scale**2, _LEAST_STRENGTH * float(ridge.values.mean()))
        written = self.write(ridge.predict(reduce(victims / scale), strength).clamp(-_FAR, _FAR))
        truth = [word_list(text) for text in texts]
        said = (written, *([one] * len(truth) for one in (self.untold, tuple(frequent))))  # and without the upload

        def measured(score: Callable[[Sequence[str], Sequence[str]], float]) -> Measured:
            reached, *blind = (np.array([score(*pair) for pair in zip(truth, one, strict=True)]) for one in said)
            return of_scores(reached, max(float(one.mean()) for one in blind))

        return Written(written, measured(token_f1), measured(lambda true, guess: float(true == guess)))

    @torch.inference_mode()
    @torch_threads(1)
    def write(self, told: Tensor) -> list[tuple[str, ...]]:
        """Return the words of the best of five beams for each row of told [B, q], by log p / words^0.7."""
        count, size = len(told), len(self._words)
        told = told.repeat_interleave(_BEAMS, 0)
        said = torch.zeros(count * _BEAMS, size)
        read = torch.full((count * _BEAMS, 1), _END)
        state: Tensor | None = None
        score = torch.full((count, _BEAMS), float("-inf"))
        score[:, 0] = 0.0  # all beams are the same at first
        length, done = torch.ones(count, _BEAMS), torch.zeros(count, _BEAMS, dtype=torch.bool)
        out = torch.empty(count, _BEAMS, 0, dtype=torch.long)
        ended = torch.full((size,), float("-inf"))
        ended[_END] = 0.0
        for _ in range(_LONGEST):
            logits, state = self._writer(told, read, said[:, None], state)
            chance = logits[:, 0].log_softmax(1).reshape(count, _BEAMS, size)
            chance[..., _OTHER] = float("-inf")
            total = score[..., None] + torch.where(done[..., None], ended, chance)  # [B, beams, V]
            longer = length + (~done).float()
            best = (total / longer[..., None] ** _LENGTH_POWER).flatten(1).topk(_BEAMS, dim=1).indices
            parent, word = best // size, best % size
            score, length = total.flatten(1).gather(1, best), longer.gather(1, parent)
            out = torch.cat([out.gather(1, parent[..., None].expand(-1, -1, out.shape[2])), word[..., None]], 2)
            done = done.gather(1, parent) | (word == _END)
            flat = (torch.arange(count)[:, None] * _BEAMS + parent).flatten()
            state, read = state[:, flat], word.reshape(-1, 1)
            said = _with(said[flat], read)
            if bool(done.all()):
                break
        top = (score / length**_LENGTH_POWER).argmax(1)
        chosen = out[torch.arange(count), top].tolist()
        return [tuple(self._words[place] for place in row if place != _END) for row in chosen]

    def _train(self) -> None:
        place = {word: i for i, word in enumerate(self._words) if word}
        read = torch.full((len(self.samples), _LONGEST + 2), _END)
        lengths = torch.zeros(len(self.samples), dtype=torch.long)
        for row, text in enumerate(self.samples.texts):
            known = [place.get(word, _OTHER) for word in word_list(text)[:_LONGEST]]
            read[row, 1 : 1 + len(known)] = torch.tensor(known, dtype=torch.long)
            lengths[row] = len(known) + 1
        self._start_bag(read)
        generator = torch.Generator().manual_seed(self._seed)
        batches = list(_batches(len(read), generator))
        optimizer = torch.optim.AdamW(self._writer.parameters(), lr=_PEAK)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _PEAK, total_steps=len(batches))
        for batch in batches:
            steps = int(lengths[batch].max())
            words, wanted = read[batch, :steps], read[batch, 1 : steps + 1]
            said = _with(torch.zeros(*words.shape, len(self._words)), words[..., None]).cumsum(1).clamp_max(1)
            logits, _ = self._writer(_blurred(self._told[batch], generator), words, said)
            counts = torch.arange(steps) < lengths[batch, None]
            loss = nn.functional.cross_entropy(logits[counts], wanted[counts])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(self._writer.parameters(), 1.0)
            optimizer.step()
            schedule.step()

    @torch.no_grad()
    def _start_bag(self, read: Tensor) -> None:
        """Start the bag of words from a ridge regression, in units of each word's own standard deviation."""
        marks = _with(torch.zeros(len(read), len(self._words)), read)
        ridge, shares = Ridge.fit(self._told, marks), marks.mean(0).clamp_min(1e-3)
        self._writer.bag.weight.copy_((ridge.weight(1.0) / shares.sqrt()).T)  # [q, V] -> [V, q]
        self._writer.bag.bias.copy_(shares.log())


def _with(said: Tensor, words: Tensor) -> Tensor:
    """Mark words [..., n] in said [..., V]; the end and unknown words are never marked."""
    said.scatter_(-1, words, 1.0)
    said[..., [_END, _OTHER]] = 0.0
    return said


def _batches(count: int, generator: torch.Generator) -> Iterator[Tensor]:
    for _ in range(_EPOCHS):
        yield from torch.split(torch.randperm(count, generator=generator), _BATCH)


def _blurred(told: Tensor, generator: torch.Generator) -> Tensor:
    """Return the best linear estimate of told [B, q] as it would be from noise of a drawn strength."""
    sure = torch.rand(len(told), 1, generator=generator)
    sure[torch.rand(len(told), generator=generator) < _CLEAN_SHARE] = 1.0
    return sure * told + (sure * (1 - sure)).sqrt() * torch.randn(told.shape, generator=generator)
