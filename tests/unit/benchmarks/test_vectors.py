"""The study of which vectors of a forward pass serve a solution, on tiny models."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from benchmarks.studies import vectors
from mobillm_flower.backbones import Backbone, load_backbone
from tests.support.tiny_models import TEXTS, save_tiny

FAMILIES = ("bert", "opt", "smollm")


@pytest.fixture(scope="module", params=FAMILIES)
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = save_tiny(tmp_path_factory.mktemp("backbone"), request.param)
    return load_backbone(str(folder), device="cpu", token_budget=64)


def kept(backbone: Backbone, texts: list[str]) -> vectors.Kept:
    values = vectors.extract(backbone, [[text] for text in texts], "", 32)
    return vectors.Kept(*[*values, torch.arange(len(texts)) % 2])


def test_what_is_kept_is_what_the_package_uploads_and_no_padding(backbone: Backbone) -> None:
    found = kept(backbone, TEXTS)
    tokens = backbone.tokenize(TEXTS, None, 32)
    for name in ("first", "last", "mean"):
        uploaded = torch.cat(backbone.extract(tokens, layers=[1, 3], pivot=name).activations)
        ours = vectors.of_tokens([1, 3], name)(found)
        assert_close(ours.float(), uploaded.flatten(1, 2).float(), atol=2e-3, rtol=2e-3)
    alone = torch.stack([kept(backbone, [text]).pools[0] for text in TEXTS])
    assert_close(found.pools.float(), alone.float(), atol=2e-3, rtol=2e-3)
    alone = torch.stack([kept(backbone, [text]).moments[0] for text in TEXTS])
    assert_close(found.moments.float(), alone.float(), atol=2e-3, rtol=2e-3)
    alone = torch.stack([kept(backbone, [text]).inner[0] for text in TEXTS])
    assert_close(found.inner.float(), alone.float(), atol=2e-3, rtol=2e-3)


def told_by(layer: int, name: str, rows: int = 200) -> vectors.Kept:
    """Rows whose label is one vector's first sign, and noise elsewhere."""
    values = torch.randn(rows, 4, 5, 16, generator=torch.Generator().manual_seed(0))
    labels = (values[:, layer, vectors.OVER_TOKENS.index(name), 0] > 0).long()
    values[:, 0, 0] = 1.0  # as the embedding of [CLS] is
    rest = [torch.randn(rows, *shape) for shape in ((3, 24), (4, 4, 16), (4, 300))]
    return vectors.Kept(*[values, *rest, labels])


def test_the_server_chooses_what_tells_the_labels_and_nothing_that_is_always_the_same() -> None:
    found = told_by(2, "maximum")
    one = vectors.chosen_by_server(found, 3, 1, normed=False)
    assert torch.equal(torch.cat([group(found) for group in one], 1), vectors.of_tokens([2], "maximum")(found))
    every = vectors.chosen_by_server(found, 3, 15, normed=False)
    assert all(float(group(found).float().var(0).max()) > 0 for group in every)


@pytest.mark.parametrize("normed", [False, True])
def test_a_variant_with_the_vector_that_tells_is_better(normed: bool) -> None:
    found = told_by(3, "mean", 400)
    rows = torch.arange(400)
    train, check = found[rows[:300]], found[rows[300:]]
    good, bad = (
        vectors.solve([vectors.of_tokens([3], name)], train, check, "accuracy", normed=normed)
        for name in ("mean", "last")
    )
    assert good["metric"] > 0.85 > 0.65 > bad["metric"]
    assert good["bytes"] == bad["bytes"] > 0


def test_every_variant_can_be_joined_for_shallow_and_deep() -> None:
    for depth in (6, 30):
        sampled, upper, three = vectors.layers_of(depth)
        assert upper[0] == three[0] == 0
        assert max(sampled) == max(upper) == max(three) == depth
        assert len(sampled) == min(depth, 10)
        shapes = ((depth + 1, 5, 8), (depth, 12), (depth + 1, 4, 8), (depth + 1, 300))
        found = vectors.Kept(*[*(torch.randn(3, *shape) for shape in shapes), torch.zeros(3)])
        for groups in vectors.variants(depth).values():
            joined, widths = vectors.joined(groups, found, normed=False)
            assert joined.shape == (3, sum(widths))
