"""Which device an upload is of: attributes of people from their uploads, and linking two uploads to one device.

Within a run the pseudonym links a device's uploads already. These attacks work without it: across runs, or after a
device took a new folder.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mobillm_flower.audit.attacks.linear import Ridge, components
from mobillm_flower.audit.finding import Measured, of_auc, of_scores

_FEATURES = 128
_LINK_FEATURES = 64
_PAIRS = 4000  # about half of them of one device


def infer_attribute(rows: Tensor, groups: NDArray[np.int64], *, seed: int = 0) -> Measured:
    """Learn from half of the uploads, whose groups are known, which group each of the other half is of.

    Parameters
    ----------
    rows : Tensor
        [N, D].
    groups : ndarray
        [N] int64: device, persona or speaker.
    seed : int
        Draws the halves.
    """
    order = np.random.default_rng(seed).permutation(len(rows))
    known, hidden = torch.from_numpy(order[::2].copy()), torch.from_numpy(order[1::2].copy())
    reduce = components(rows, _FEATURES, seed=seed)
    truth = torch.from_numpy(groups)
    wanted = torch.nn.functional.one_hot(truth, int(truth.max()) + 1).float()
    ridge = Ridge.fit(reduce(rows[known], whiten=True), wanted[known])
    guessed = ridge.predict(reduce(rows[hidden], whiten=True), 1.0).argmax(1)
    most_frequent = torch.bincount(truth[known]).argmax()
    baseline = float((truth[hidden] == most_frequent).float().mean())
    return of_scores((guessed == truth[hidden]).numpy(), baseline)


def link_uploads(rows: Tensor, groups: NDArray[np.int64], *, seed: int = 0) -> Measured:
    """Tell two uploads of one device from two of different ones by the cosine of whitened activations: AUC.

    Parameters
    ----------
    rows : Tensor
        [N, D].
    groups : ndarray
        [N] int64, the device of each.
    seed : int
        Draws pairs.
    """
    generator = np.random.default_rng(seed)
    features = torch.nn.functional.normalize(
        components(rows, _LINK_FEATURES, seed=seed)(rows, whiten=True), dim=1
    ).numpy()
    first, second = generator.integers(len(rows), size=(2, _PAIRS // 2))
    different = groups[first] != groups[second]
    by_group = np.argsort(groups, kind="stable")
    starts = np.searchsorted(groups[by_group], groups)
    sizes = np.bincount(groups)[groups]
    one = generator.integers(len(rows), size=_PAIRS // 2)
    two = by_group[starts[one] + generator.integers(sizes[one])]
    apart = one != two

    def cosine(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.asarray((features[a] * features[b]).sum(1), np.float32)

    return of_auc(cosine(one[apart], two[apart]), cosine(first[different], second[different]))
