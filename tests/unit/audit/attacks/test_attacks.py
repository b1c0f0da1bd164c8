"""Each attack of the audit on synthetic data where its result is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from mobillm_flower.audit import finding
from mobillm_flower.audit.attacks import devices, labels, linear, lookup, membership, secret_mixing, words
from mobillm_flower.audit.attacks.linear import Ridge, components
from mobillm_flower.audit.finding import combine, of_auc, of_scores
from mobillm_flower.core.targets import difference
from mobillm_flower.privacy.mixing import MixingKey
from mobillm_flower.privacy.randomized_response import RandomizedResponse
from mobillm_flower.wire.target_bytes import TargetBatch
from tests.support.present import present


def random_key(width: int, *, seed: int) -> torch.Tensor:
    return MixingKey(seed.to_bytes(32, "big")).targets(torch.eye(width))


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def classes(count: int, number: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, number, (count,), generator=torch.Generator().manual_seed(seed))


def separated(truth: torch.Tensor, width: int = 16, *, distance: float = 8.0) -> torch.Tensor:
    """Rows around a far away centre for each class."""
    return distance * draws(int(truth.max()) + 1, width, seed=1)[truth] + draws(len(truth), width, seed=2)


def test_a_share_of_one_has_an_interval() -> None:
    found = combine([of_scores(np.ones(100), 0.5)] * 3)
    assert found.value == 1.0
    assert 0.95 < found.low < 1.0
    assert found.high == 1.0


def test_intervals_cover_the_truth_about_95_times_of_100() -> None:
    generator = np.random.default_rng(0)
    found = [combine([of_scores(generator.random(200) < 0.3, 0.0)]) for _ in range(400)]
    assert 0.92 < np.mean([one.low <= 0.3 <= one.high for one in found]) < 0.98


def test_seeds_that_differ_widen_the_interval() -> None:
    alike = combine([of_scores(np.arange(100) < 50, 0.5)] * 3)
    apart = combine([of_scores(np.arange(100) < n, 0.5) for n in (20, 50, 80)])
    assert apart.value == alike.value
    assert apart.high - apart.low > 1.5 * (alike.high - alike.low)


def test_the_number_of_leaked_samples_travels_as_a_number() -> None:
    one = replace(of_scores(np.ones(100), 0.5), leaked=16)
    assert combine([one] * 3).to_dict()["leaked"] == 16
    assert combine([of_scores(np.ones(100), 0.5)]).to_dict()["leaked"] is None


def test_auc_counts_pairs_and_ties() -> None:
    assert of_auc(np.array([1.0, 2.0]), np.array([0.0, 1.0])).value == pytest.approx(3.5 / 4)
    assert of_auc(np.zeros(5), np.zeros(7)).value == pytest.approx(0.5)


def test_argmax_of_an_unprotected_difference_is_the_label() -> None:
    truth = classes(500, 7)
    base = draws(500, 7, seed=3).mul(3).softmax(1)
    found = labels.argmax_difference(TargetBatch(difference(truth, base), None, None), truth)
    assert found.value == 1.0
    assert found.baseline < 0.25


def test_a_rotated_difference_falls_to_one_leaked_pair_a_class() -> None:
    truth = classes(300, 5)
    target = TargetBatch(difference(truth, torch.full((300, 5), 0.2)), None, None)
    rotated = labels.rotated(present(target.differences))
    assert labels.argmax_difference(TargetBatch(rotated, None, None), truth).value < 0.9
    found = labels.nearest_leaked(rotated, truth)
    assert found.value == 1.0
    assert found.count == 295
    assert labels.nearest_leaked(draws(3000, 5, seed=2), classes(3000, 5)).value < 0.25


def test_a_rotated_difference_falls_to_class_shares_without_any_pair() -> None:
    truth = torch.cat([torch.full((n,), k) for k, n in enumerate((40, 100, 60))])
    rotated = labels.rotated(difference(truth, torch.full((200, 3), 1 / 3)))
    assert labels.clusters_by_priors(rotated, truth).value == 1.0


@pytest.mark.parametrize("epsilon", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("number", [2, 8])
def test_argmax_under_randomized_response_is_as_theory_says(epsilon: float, number: int) -> None:
    truth = classes(100_000, number)
    response = RandomizedResponse(epsilon, number)
    uniforms = np.random.default_rng(5).random((len(truth), 2))
    said = torch.from_numpy(response.release(truth.numpy(), uniforms=uniforms))
    target = TargetBatch(difference(said, torch.full((len(truth), number), 1 / number)), None, None)
    found = labels.argmax_difference(target, truth, theory=response.kept)
    assert abs(found.value - response.kept) < 0.01


def test_labels_that_are_sent_are_read_as_they_are() -> None:
    truth = classes(50, 3)
    assert labels.argmax_difference(TargetBatch(None, truth, None), truth).value == 1.0


def test_clusters_tell_classes_apart_by_their_shares_or_by_a_leaked_pair() -> None:
    truth = torch.cat([torch.full((n,), k) for k, n in enumerate((400, 200, 100))])
    rows = separated(truth)
    assert labels.clusters_by_priors(rows, truth).value > 0.99
    assert labels.clusters_by_leaked_pairs(rows, truth).value > 0.99


def test_clusters_of_pure_noise_say_nothing() -> None:
    truth = classes(3000, 2)
    found = labels.clusters_by_leaked_pairs(draws(3000, 16, seed=4), truth)
    assert abs(found.value - 0.5) < 0.05


def test_the_side_network_and_a_released_label_together_beat_each() -> None:
    truth = classes(20_000, 4)
    kept, generator = 0.6, np.random.default_rng(6)
    said = torch.where(torch.from_numpy(generator.random(20_000) < kept), truth, classes(20_000, 4, seed=7))
    scores = 1.5 * torch.nn.functional.one_hot(truth, 4) + draws(20_000, 4, seed=8)
    target = TargetBatch(None, said, None)
    both = labels.side_network_and_released(scores, target, truth, kept=kept)
    assert both.value > labels.side_network_oracle(scores, truth).value + 0.02
    assert both.value > labels.argmax_difference(target, truth).value + 0.02


def sentences(count: int, seed: int) -> list[str]:
    generator = np.random.default_rng(seed)
    known = [f"word{i}" for i in range(60)]
    return [" ".join(generator.choice(known, 5, replace=False)) for _ in range(count)]


def bag(some: list[str]) -> torch.Tensor:
    """Activations that are a random linear function of the words."""
    marks = torch.zeros(len(some), 60)
    for row, text in enumerate(some):
        marks[row, [int(word[4:]) for word in text.split()]] = 1.0
    return marks @ draws(60, 80, seed=9)


def test_words_are_decoded_from_a_linear_function_of_them_and_not_from_noise() -> None:
    public, victims = sentences(1000, 1), sentences(100, 2)
    found = words.WordDecoder(bag(public), public).recover(bag(victims), victims).measured
    assert found.value > 0.95
    assert found.baseline < 0.4
    noise = words.WordDecoder(draws(1000, 80, seed=3), public).recover(draws(100, 80, seed=4), victims).measured
    assert abs(noise.value - noise.baseline) < 0.05


def test_knowing_the_noise_helps_a_decoder_of_clean_text() -> None:
    public, victims = sentences(1500, 1), sentences(200, 2)
    sigma = 8.0
    noisy, noisy_public = bag(victims) + sigma * draws(200, 80, seed=5), bag(public) + sigma * draws(1500, 80, seed=6)
    scale, variance = linear.signal(noisy_public, bag(public))
    assert scale == pytest.approx(1.0, abs=0.05)
    assert variance == pytest.approx(sigma**2, rel=0.05)
    clean = words.WordDecoder(bag(public), public)
    naive = clean.recover(noisy, victims).measured.value
    aware = clean.recover(noisy, victims, variance=variance, tuning=noisy_public).measured.value
    adaptive = words.WordDecoder(noisy_public, public).recover(noisy, victims).measured.value
    assert aware > naive + 0.02
    assert adaptive > naive + 0.02


def test_the_nearest_candidate_is_the_text_itself_unless_noise_drowns_it() -> None:
    victims, others = draws(100, 32, seed=1), draws(400, 32, seed=2)
    candidates, itself = torch.cat([victims, others]), np.arange(100)
    found = lookup.nearest_text(2 * victims + 0.01 * draws(100, 32, seed=3), candidates, itself, scale=2.0)
    assert found.measured.value == 1.0
    assert found.measured.baseline == 1 / 500
    assert lookup.nearest_text(1000 * draws(100, 32, seed=4), candidates, itself).measured.value < 0.1


def test_word_f1_counts_common_words_once() -> None:
    assert words.word_f1(words.words("The cat, the dog"), words.words("the CAT sat")) == pytest.approx(2 / 3)
    assert words.word_f1(words.words("yes"), words.words("no")) == 0.0


def test_groups_with_their_own_centres_are_told_apart_and_linked() -> None:
    groups = np.arange(600) % 6
    rows = separated(torch.from_numpy(groups), distance=4.0)
    assert devices.infer_attribute(rows, groups).value > 0.95
    assert devices.link_uploads(rows, groups).value > 0.85


def test_groups_without_centres_are_not() -> None:
    groups, rows = np.arange(2000) % 4, draws(2000, 16, seed=1)
    assert abs(devices.infer_attribute(rows, groups).value - 0.25) < 0.06
    assert abs(devices.link_uploads(rows, groups).value - 0.5) < 0.04


def test_members_with_lower_loss_are_found() -> None:
    generator = np.random.default_rng(0)
    members, others = generator.normal(-4, 1, 1000), generator.normal(0, 1, 1000)
    found = membership.loss_threshold(members, others)
    assert found["membership AUC"].value > 0.99
    assert found["membership TPR at 1 % FPR"].value > 0.9


def test_members_like_others_are_not_found() -> None:
    generator = np.random.default_rng(0)
    found = membership.loss_threshold(generator.normal(0, 1, 4000), generator.normal(0, 1, 4000))
    assert abs(found["membership AUC"].value - 0.5) < 0.03
    assert found["membership TPR at 1 % FPR"].value < 0.025


def test_a_loss_is_low_where_the_true_class_leads() -> None:
    scores = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 5.0]])
    assert membership.losses(scores, torch.tensor([0, 1])).tolist() == [-2.0, 3.0]


def by_pairs(
    plain: torch.Tensor, others: torch.Tensor, leaked: list[int], *, noise: float = 0.0
) -> dict[int, finding.Measured]:
    """Mix [N, V, d] by a key and recover it from m leaked samples."""
    mixed = plain @ random_key(plain.shape[2], seed=3)
    mixed = mixed + noise * draws(*plain.shape, seed=4)
    return secret_mixing.matches_by_leaked_pairs(plain, mixed, others, leaked=leaked)


def test_a_mixing_key_is_broken_by_as_many_pairs_as_the_width_and_not_by_few() -> None:
    plain, others = draws(300, 1, 32, seed=1), draws(500, 1, 32, seed=2)
    found = by_pairs(plain, others, [1, 4, 31, 32, 64, 280])
    assert found[1].value < 0.2
    assert found[4].value < 0.5
    assert found[32].value == found[64].value == 1.0
    assert 280 not in found  # too few others are left to look up
    key = random_key(32, seed=3)
    recovered = secret_mixing.recover_key(plain[:32, 0], plain[:32, 0] @ key)
    assert torch.allclose(recovered, key, atol=1e-4)
    assert torch.allclose(key @ key.T, torch.eye(32), atol=1e-5)


def test_one_rotation_for_all_layers_is_broken_by_as_much_fewer_samples() -> None:
    found = by_pairs(draws(300, 8, 32, seed=1), draws(500, 8, 32, seed=2), [4], noise=0.01)
    assert found[4].value == 1.0
    assert by_pairs(draws(300, 1, 32, seed=1), draws(500, 1, 32, seed=2), [4], noise=0.01)[4].value < 0.5


def test_noise_on_the_pairs_blurs_the_key_and_more_pairs_sharpen_it() -> None:
    plain, key = draws(400, 16, seed=1), random_key(16, seed=2)
    mixed = plain @ key + 0.5 * draws(400, 16, seed=3)
    few, many = (secret_mixing.recover_key(plain[:m], mixed[:m]) for m in (16, 400))
    assert float((many - key).norm()) < 0.5 * float((few - key).norm())


def test_activations_near_a_subspace_need_fewer_pairs() -> None:
    low = draws(300, 1, 6, seed=1) @ draws(6, 32, seed=2)
    others = draws(500, 1, 6, seed=3) @ draws(6, 32, seed=2)
    assert by_pairs(low, others, [6])[6].value == 1.0


def test_a_key_is_found_from_public_text_alone_where_axes_differ() -> None:
    generator = torch.Generator().manual_seed(0)
    spread = torch.linspace(6, 0.5, 10)

    def rows(count: int) -> torch.Tensor:  # skewed, so that signs can be told
        return spread * (torch.empty(count, 10).exponential_(generator=generator) - 1)

    key = random_key(10, seed=4)
    private, public = rows(1500), rows(1500)
    guessed = secret_mixing.align_unsupervised(public, private @ key)
    mixed, candidates = (private @ key)[:, None], torch.cat([private, public])[:, None]
    assert secret_mixing.exact_matches(guessed, mixed, candidates).value > 0.3
    wrong = random_key(10, seed=5)
    assert secret_mixing.exact_matches(wrong, mixed, candidates).value < 0.1


def test_ridge_and_components_agree_with_their_definitions() -> None:
    x, truth = draws(400, 8, seed=1) * torch.linspace(4, 1, 8), draws(8, 3, seed=2)
    y = x @ truth + 1
    assert torch.allclose(Ridge.fit(x, y).predict(x, 1e-6), y, atol=1e-3)
    reduced = components(x, 8)(x, whiten=True)
    assert torch.allclose(reduced.T @ reduced / 399, torch.eye(8), atol=0.02)


def test_attacks_go_on_where_float32_does_not_converge(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = torch.randn(40, 6), torch.randn(40, 2)
    expected = Ridge.fit(x, y).predict(x, 0.1)
    eigh = torch.linalg.eigh
    key = secret_mixing.align_unsupervised(x, x)

    def only_float64(matrix: torch.Tensor) -> Any:
        if matrix.dtype is not torch.float64:
            raise torch.linalg.LinAlgError("did not converge")  # type: ignore[attr-defined]
        return eigh(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", only_float64)
    found = Ridge.fit(x, y).predict(x, 0.1)
    assert found.dtype is torch.float32
    assert torch.allclose(found, expected, atol=1e-4)
    assert torch.allclose(secret_mixing.align_unsupervised(x, x), key, atol=1e-4)
