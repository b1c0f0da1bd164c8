"""Breaking a secret orthogonal mixing of activations: z = x R with R secret and shared by the devices.

Such a key is obfuscation. Known pairs (x, z) give it away by orthogonal Procrustes: exactly by d pairs, and by fewer
where the activations lie near a subspace. Without any pair it is found from the distribution of public text.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mobillm_flower.audit.finding import Measured, of_scores


def random_key(width: int, *, seed: int) -> Tensor:
    """Return a uniformly drawn orthogonal matrix [d, d], float32."""
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))
    key: Tensor = (q * r.diagonal().sign()).float()
    return key


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
        _, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
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
    """Undo a key and look each row up among candidates: candidate i is the truth of row i.

    Parameters
    ----------
    key : Tensor
        Recovered R, [d, d].
    mixed : Tensor
        [N, d].
    candidates : Tensor
        Clean activations, [C, d] with C ≥ N.
    """
    nearest = torch.cdist(mixed @ key.T, candidates).argmin(1)
    return of_scores((nearest == torch.arange(len(mixed))).numpy(), 1 / len(candidates))


def matches_by_leaked_pairs(
    plain: Tensor, candidates: Tensor, *, leaked: Sequence[int], noise: float = 0.0, seed: int = 0
) -> dict[int, Measured]:
    """Mix activations by a random key, recover it from m leaked pairs, and look the others up; for each m.

    Parameters
    ----------
    plain : Tensor
        [N, d], clean activations.
    candidates : Tensor
        [C, d]: rows that are not among `plain`, which the truth is hidden in.
    leaked : sequence of int
        Numbers m of pairs, each below N.
    noise : float
        Standard deviation added to each mixed value.
    seed : int
        Of key, noise and of which pairs leak.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(plain), generator=generator)
    key = random_key(plain.shape[1], seed=seed)
    mixed = plain @ key + noise * torch.randn(plain.shape, generator=generator)
    found = {}
    for m in leaked:
        known, hidden = order[:m], order[m:]
        recovered = recover_key(plain[known], mixed[known])
        found[m] = exact_matches(recovered, mixed[hidden], torch.cat([plain[hidden], candidates]))
    return found
