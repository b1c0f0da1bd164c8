"""Breaking a secret orthogonal mixing of activations: z = x R with R secret and shared by the devices.

Such a key is obfuscation. Known pairs (x, z) give it away by orthogonal Procrustes: exactly by d pairs, and by fewer
where the activations lie near a subspace. Without any pair it is found from the distribution of public text.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mobillm_flower.audit.attacks.linear import eigen
from mobillm_flower.audit.finding import Measured, of_scores

LEAKED = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Numbers of leaked samples that the key is recovered from."""


def recover_key(plain: Tensor, mixed: Tensor) -> Tensor:
    """Return the orthogonal R that makes ‖plain R − mixed‖ least (Schönemann 1966).

    Parameters
    ----------
    plain, mixed : Tensor
        m leaked pairs, [m, d]. With m < d only what R does to their span is determined; the rest is arbitrary.

    Returns
    -------
    Tensor
        [d, d], orthogonal.
    """
    u, _, v = torch.linalg.svd(plain.double().T @ mixed.double())
    key: Tensor = (u @ v).to(plain.dtype)
    return key


def align_unsupervised(public: Tensor, mixed: Tensor, *, rounds: int = 30) -> Tensor:
    """Return an orthogonal R without any leaked pair, from public activations of other texts.

    Principal axes of both sides are matched by their variance, each sign by the third moment; then nearest neighbours
    and Procrustes are taken in turns.

    Parameters
    ----------
    public, mixed : Tensor
        [n, d] and [N, d]; both are used about their means.
    rounds : int
        Of the refinement.
    """
    x, z = public - public.mean(0), mixed - mixed.mean(0)
    axes = []
    for rows in (x, z):
        _, vectors = eigen(rows.T @ rows / len(rows))
        skew = ((rows @ vectors) ** 3).mean(0).sign()
        axes.append(vectors * torch.where(skew == 0, 1.0, skew))
    key: Tensor = axes[0] @ axes[1].T
    for _ in range(rounds):
        nearest = torch.cdist(x @ key, z).argmin(1)
        fresh = recover_key(x, z[nearest])
        if torch.allclose(fresh, key, atol=1e-6):
            break
        key = fresh
    return key


def exact_matches(key: Tensor, mixed: Tensor, candidates: Tensor) -> Measured:
    """Undo a key and look each sample up among candidates: candidate i is the truth of sample i.

    Parameters
    ----------
    key : Tensor
        Recovered R, [d, d].
    mixed : Tensor
        [N, V, d], V vectors a sample.
    candidates : Tensor
        Clean activations, [C, V, d] with C ≥ N.
    """
    nearest = torch.cdist((mixed @ key.T).flatten(1), candidates.flatten(1)).argmin(1)
    return of_scores((nearest == torch.arange(len(mixed))).numpy(), 1 / len(candidates))


def matches_by_leaked_pairs(
    plain: Tensor, mixed: Tensor, candidates: Tensor, *, leaked: Sequence[int] = LEAKED, seed: int = 0
) -> dict[int, Measured]:
    """Recover the key from m leaked samples, and look the others up; for each m.

    A sample gives V pairs of vectors, since one rotation is for all its layers and pivots: d / V leaked samples
    determine it.

    Parameters
    ----------
    plain, mixed : Tensor
        [N, V, d], clean activations and the uploads of the same samples.
    candidates : Tensor
        [C, V, d]: clean ones that are not among `plain`, which the truth is hidden in.
    leaked : sequence of int
        Numbers m; those of 0.8 N and more are left out.
    seed : int
        Of which samples leak.
    """
    order = torch.randperm(len(plain), generator=torch.Generator().manual_seed(seed))
    by_leaked = {}
    for m in (m for m in leaked if m < 0.8 * len(plain)):
        known, hidden = order[:m], order[m:]
        recovered = recover_key(plain[known].flatten(0, 1), mixed[known].flatten(0, 1))
        by_leaked[m] = exact_matches(recovered, mixed[hidden], torch.cat([plain[hidden], candidates]))
    return by_leaked
