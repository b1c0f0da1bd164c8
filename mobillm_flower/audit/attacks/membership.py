"""Membership inference on the released side network: which texts it was trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mobillm_flower.audit.finding import Measured, of_auc, of_scores

FALSE_POSITIVES = 0.01
"""The rate at which true positives are counted."""


def losses(scores: Tensor, labels: Tensor) -> NDArray[np.float64]:
    """Return a loss a sample: minus the margin of the true class over the best other one.

    It orders samples as cross-entropy does where there are two classes, and needs no calibrated scores.

    Parameters
    ----------
    scores : Tensor
        [N, K], of the released model on clean texts.
    labels : Tensor
        [N] int64.
    """
    true = scores.gather(1, labels[:, None]).squeeze(1)
    others = scores.scatter(1, labels[:, None], float("-inf")).max(1).values
    return np.asarray((others - true).double().numpy(), np.float64)


def loss_threshold(
    members: NDArray[np.floating[Any]], others: NDArray[np.floating[Any]], *, seed: int = 0
) -> dict[str, Measured]:
    """Call a text a member where its loss is low (Yeom et al. 2018, arXiv 1709.01604).

    The threshold for 1 % false positives comes from a calibration half of the non-members. True positives are counted
    at it, and the false positives of the other half are the baseline.

    Parameters
    ----------
    members, others : ndarray
        Losses of texts that were trained on, [N], and of texts that were not, [M].
    seed : int
        Draws the calibration half.

    Returns
    -------
    dict
        "membership AUC" and "membership TPR at 1 % FPR".
    """
    order = np.random.default_rng(seed).permutation(len(others))
    calibration, fresh = others[order[::2]], others[order[1::2]]
    threshold = np.quantile(calibration, FALSE_POSITIVES, method="lower")
    false_positives = float((fresh < threshold).mean())
    return {
        "membership AUC": of_auc(-np.asarray(members), -np.asarray(others)),
        "membership TPR at 1 % FPR": of_scores(members < threshold, max(FALSE_POSITIVES, false_positives)),
    }
