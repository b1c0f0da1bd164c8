"""Label inference: what of the labels a server reads from its uploads."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from mobillm_flower.audit.attacks.linear import components
from mobillm_flower.audit.finding import Measured, of_scores
from mobillm_flower.core.targets import difference
from mobillm_flower.privacy.mixing import MixingKey
from mobillm_flower.privacy.protect import Protection
from mobillm_flower.wire.target_bytes import TargetBatch

_CLUSTER_FEATURES = 32
_TEMPERATURES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0)


def majority_share(labels: Tensor) -> float:
    """Return the share of the most frequent class: what one reaches without any upload."""
    return float(torch.bincount(labels).max()) / len(labels)


def read_targets(targets: TargetBatch) -> Tensor:
    """Return the label that each target names, [N] int64: argmax(Δy), or the label itself where it was sent."""
    if targets.differences is not None:
        return targets.differences.argmax(1)
    assert targets.labels is not None
    return targets.labels


def argmax_difference(targets: TargetBatch, labels: Tensor, *, theory: float | None = None) -> Measured:
    """Take argmax(Δy) for the label.

    Parameters
    ----------
    targets : TargetBatch
        As the server decodes them.
    labels : Tensor
        The truth, [N] int64.
    theory : float or None
        P[the released label is the true one] under the mechanism.
    """
    return of_scores((read_targets(targets) == labels).numpy(), majority_share(labels), theory=theory)


def argmax_of_draws(protection: Protection, *, draws: int) -> Measured:
    """Protect as many random labels, make Δy of them, take its argmax, and compare with the mechanism's theory.

    Parameters
    ----------
    protection : Protection
        What devices do; activations are random unit vectors of eight values.
    draws : int
        Labels.
    """
    generator = np.random.default_rng(0)
    truth = torch.from_numpy(generator.integers(protection.classes, size=draws))
    vectors = torch.nn.functional.normalize(torch.from_numpy(generator.standard_normal((draws, 8))), dim=1)
    keys = [generator.bytes(32) for _ in range(draws)]
    _, said = protection([row.reshape(1, 1, 1, -1) for row in vectors], truth, keys)
    delta = difference(said, torch.full((draws, protection.classes), 1 / protection.classes))
    return argmax_difference(TargetBatch(delta, None, None), truth, theory=protection.label_rates[0])


def clusters_by_priors(rows: Tensor, labels: Tensor, *, seed: int = 0) -> Measured:
    """Cluster uploads and name the clusters by known class shares: the largest is the most frequent class.

    Parameters
    ----------
    rows : Tensor
        Activations or Δy, [N, D].
    labels : Tensor
        The truth, [N] int64; only its counts are used by the attack.
    seed : int
        Of k-means.
    """
    classes = int(labels.max()) + 1
    clusters = _clusters(rows, classes, seed)
    shares = np.bincount(labels.numpy(), minlength=classes)
    sizes = np.bincount(clusters, minlength=classes)
    name = np.empty(classes, np.int64)
    name[np.argsort(-sizes, kind="stable")] = np.argsort(-shares, kind="stable")
    return of_scores(name[clusters] == labels.numpy(), majority_share(labels))


def clusters_by_leaked_pairs(rows: Tensor, labels: Tensor, *, leaked: int = 1, seed: int = 0) -> Measured:
    """Cluster activations and name the clusters by `leaked` known (upload, label) pairs a class.

    Clusters are matched to classes so that the distance from each class's leaked uploads to its cluster's centre is
    least in sum; the leaked samples themselves are not scored.
    """
    classes, generator = int(labels.max()) + 1, np.random.default_rng(seed)
    truth = labels.numpy()
    known = [generator.permutation(np.flatnonzero(truth == k))[:leaked] for k in range(classes)]
    features = _features(rows, seed)
    clusters = _clusters(rows, classes, seed)
    empty = np.full(features.shape[1], 1e6)  # far from everything, where there are fewer distinct rows than classes
    centres = np.stack([features[clusters == c].mean(0) if (clusters == c).any() else empty for c in range(classes)])
    distance = np.full((classes, classes), 1e9)
    for k, places in enumerate(known):
        if len(places):
            distance[k] = np.linalg.norm(features[places].mean(0) - centres, axis=1)
    of_class, of_cluster = linear_sum_assignment(distance)
    name = np.empty(classes, np.int64)
    name[of_cluster] = of_class
    scored = np.ones(len(truth), bool)
    scored[np.concatenate(known)] = False
    return of_scores((name[clusters] == truth)[scored], majority_share(labels))


def rotated(differences: Tensor, *, seed: int = 0) -> Tensor:
    """Return Δy [N, K] under a drawn secret rotation, which hides the largest entry and not which are alike."""
    return MixingKey(seed.to_bytes(32, "big")).targets(differences)


def nearest_leaked(rows: Tensor, labels: Tensor, *, seed: int = 0) -> Measured:
    """Name each row by the nearest of one leaked (row, label) pair a class: no key need be recovered.

    Parameters
    ----------
    rows : Tensor
        Rotated Δy, or a side network's rotated outputs, [N, K].
    labels : Tensor
        The truth, [N] int64. Classes without a sample leak none, and the leaked samples are not scored.
    seed : int
        Of which pairs leak.
    """
    truth, generator = labels.numpy(), np.random.default_rng(seed)
    known = torch.from_numpy(np.array([generator.choice(np.flatnonzero(truth == k)) for k in np.unique(truth)]))
    hidden = torch.ones(len(labels), dtype=torch.bool)
    hidden[known] = False
    guessed = labels[known][torch.cdist(rows[hidden], rows[known]).argmin(1)]
    return of_scores((guessed == labels[hidden]).numpy(), majority_share(labels))


def side_network_oracle(scores: Tensor, labels: Tensor) -> Measured:
    """Take the trained side network's prediction on the uploads: the floor that no protection of labels removes.

    Parameters
    ----------
    scores : Tensor
        [N, K], of the uploaded activations.
    labels : Tensor
        [N] int64.
    """
    return of_scores((scores.argmax(1) == labels).numpy(), majority_share(labels))


def side_network_and_released(scores: Tensor, targets: TargetBatch, labels: Tensor, *, kept: float) -> Measured:
    """Weigh the side network's prediction against the released label, whose chance to be true is known.

    The posterior of label k is softmax(scores / T)_k · P[released | k], with P = `kept` where both agree and (1 − kept)
    / (K − 1) elsewhere. The temperature T is the one under which the released labels are likeliest: it takes no truth.
    """
    classes = scores.shape[1]
    released = torch.nn.functional.one_hot(read_targets(targets), classes).float()
    other = (1 - kept) / max(1, classes - 1)
    chance = (released * kept + (1 - released) * other).clamp_min(1e-9).log()  # [N, K]
    posteriors = [(scores / temperature).log_softmax(1) + chance for temperature in _TEMPERATURES]
    likeliest = max(posteriors, key=lambda posterior: float(posterior.logsumexp(1).sum()))
    return of_scores((likeliest.argmax(1) == labels).numpy(), majority_share(labels))


def _features(rows: Tensor, seed: int) -> NDArray[np.float32]:
    return np.asarray(components(rows, _CLUSTER_FEATURES, seed=seed)(rows).numpy(), np.float32)


def _clusters(rows: Tensor, classes: int, seed: int) -> NDArray[np.int64]:
    """Return a cluster number a row."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct rows than classes
        clusters = KMeans(classes, n_init=4, random_state=seed).fit_predict(_features(rows, seed))
    return np.asarray(clusters, np.int64)
