"""Next-token losses in chunks, corrections, and the head of each family."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from mobillm_flower import load_settings
from mobillm_flower.backbones import load_backbone
from mobillm_flower.backbones.load import load_head
from mobillm_flower.core import language
from mobillm_flower.errors import ArgumentError, SettingsError, UnsupportedError
from mobillm_flower.server.objective import make_loss
from mobillm_flower.tasks import TOKEN_METRICS, Samples, TokenScores, read_tokens
from mobillm_flower.tasks.extraction import extraction_spec
from mobillm_flower.tasks.metrics import RANGES
from mobillm_flower.tasks.words import NEVER
from mobillm_flower.wire.target_bytes import (
    TargetBatch,
    check_token_targets,
    decode_targets,
    encode_corrections,
    encode_token_labels,
    target_size,
)
from tests.support.packets import make_contract, make_packet, make_spec, random_activations
from tests.support.present import present
from tests.support.tiny_models import DECODERS, TEXTS, save_tiny

TOKENS, WIDTH, VOCABULARY = 23, 6, 40
CONTRACT = make_contract(kind="language-modelling", labels=(), metric="cross-entropy", per_token=True)


class LinearHead:
    """A norm, then W·u."""

    def __init__(self, *, norm: bool = True) -> None:
        generator = torch.Generator().manual_seed(0)
        self.vocabulary, self.norm = VOCABULARY, norm
        self.weight = torch.randn(VOCABULARY, WIDTH, generator=generator)
        self.largest_chunk = 0

    def inputs(self, hidden: Any) -> Any:
        return functional.layer_norm(hidden, (WIDTH,)) if self.norm else hidden

    def logits(self, inputs: Any) -> Any:
        self.largest_chunk = max(self.largest_chunk, len(inputs))
        return inputs @ self.weight.T


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "LOGIT_BYTES", 5 * 4 * VOCABULARY)


def example() -> Any:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(TOKENS, WIDTH, generator=generator)
    return inputs, torch.randint(VOCABULARY, (TOKENS,), generator=generator)


def test_cross_entropy_in_chunks_is_that_of_whole_logits_and_so_is_its_gradient(small_chunks: Any) -> None:
    inputs, labels = example()
    head = LinearHead()
    whole, parts = inputs.clone().requires_grad_(), inputs.clone().requires_grad_()
    expected = functional.cross_entropy(head.logits(whole), labels)
    head.largest_chunk = 0
    found = language.cross_entropy(parts, labels, head)
    assert head.largest_chunk == 5
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    (3 * expected).backward()
    (3 * found).backward()
    assert torch.allclose(parts.grad, whole.grad, atol=1e-7)
    assert torch.allclose(language.token_scores(inputs, labels, head)[0].mean(), -expected, atol=1e-6)


def test_the_divergence_loss_is_the_change_of_the_cross_entropy(small_chunks: Any) -> None:
    base, labels = example()
    head = LinearHead()
    corrections, weights = language.correction(base, labels, head)
    moved = (base + torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(2))).requires_grad_()
    found = language.divergence_loss(moved, base, corrections, weights, head)
    other = moved.detach().clone().requires_grad_()
    expected = functional.cross_entropy(head.logits(other), labels)
    expected.backward()
    found.backward()
    change = expected.item() - float(functional.cross_entropy(head.logits(base), labels))
    assert found.item() == pytest.approx(change, rel=1e-5)
    assert torch.allclose(moved.grad, other.grad, atol=1e-6)


def test_a_correction_lowers_its_own_tokens_loss_and_is_bounded() -> None:
    inputs, labels = example()
    head = LinearHead()
    corrections, weights = language.correction(inputs, labels, head)
    lengths = torch.linalg.vector_norm(corrections, dim=1) / torch.linalg.vector_norm(inputs, dim=1)
    assert float(lengths.max()) <= language.REACH + 1e-6
    before, after = (language.token_scores(u, labels, head)[0] for u in (inputs, inputs + 0.1 * corrections))
    assert bool((after > before).all())
    leaf = inputs.clone().requires_grad_()
    functional.cross_entropy(head.logits(leaf), labels, reduction="sum").backward()
    assert torch.allclose(-weights[:, None] * corrections, leaf.grad, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("cross-entropy", 1.0397), ("perplexity", 8**0.5), ("next-word-top-1", 0.25), ("next-word-top-3", 0.5)],
)
def test_token_metrics(name: str, expected: float) -> None:
    scores = TokenScores(torch.tensor([0.5, 0.25]).log().numpy(), np.array([1, 3, 4, NEVER]))
    assert TOKEN_METRICS[name](scores) == pytest.approx(expected, rel=1e-4)
    low, high = RANGES[name]
    assert low <= expected <= high
    no_word = TOKEN_METRICS[name](dataclasses.replace(scores, word_ranks=np.zeros(0, np.int64)))
    assert no_word == (0.0 if "word" in name else pytest.approx(expected, rel=1e-4))


def test_token_scores_are_those_of_the_whole_table(small_chunks: None) -> None:
    head, generator = LinearHead(), torch.Generator().manual_seed(3)
    inputs = torch.randn(TOKENS, WIDTH, generator=generator)
    labels = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    candidates = torch.arange(VOCABULARY) % 3 == 0
    log_p, ranks, best = language.token_scores(inputs, labels, head, candidates)
    table = (inputs @ head.weight.T).log_softmax(1)
    assert torch.allclose(log_p, table[torch.arange(TOKENS), labels], atol=1e-6)
    assert torch.equal(best, table.argmax(1))
    expected = [
        1 + sum(bool(row[j] > row[label]) for j in range(0, VOCABULARY, 3))
        for row, label in zip(table, labels, strict=True)
    ]
    assert ranks.tolist() == expected


# heads -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    base = tmp_path_factory.mktemp("models")
    return {name: str(save_tiny(base / name, name)) for name in DECODERS}


@pytest.mark.parametrize("name", DECODERS)
def test_the_head_gives_the_models_own_logits(folders: Any, name: str) -> None:
    backbone = load_backbone(folders[name], device="cpu", language_model=True)
    (sample,) = backbone.tokenize([TEXTS[0]], None, 32)
    found = backbone.extract([sample], layers=[3], pivot="all").activations[0][:, 0, 0]  # [T, d]
    expected = backbone.language_model(input_ids=torch.tensor([sample["input_ids"]])).logits[0]
    server = load_head(folders[name])  # of the layers, the first alone
    for head in (present(backbone.head), server):
        assert head.vocabulary == backbone.info.vocabulary == expected.shape[1]
        inputs = head.inputs(found)
        assert inputs.shape == (len(found), backbone.info.head_width)
        assert torch.allclose(head.logits(inputs), expected, atol=1e-5)
    leaf = found.clone().requires_grad_()
    server.logits(server.inputs(leaf)).logsumexp(1).sum().backward()
    assert float(present(leaf.grad).abs().sum()) > 0


def test_read_tokens_gives_what_the_model_reads_before_each_token_in_the_loss(folders: Any) -> None:
    backbone = load_backbone(folders["opt"], device="cpu", language_model=True)
    settings = load_settings({"backbone.name": folders["opt"], "loss.objective": "label"})
    spec = extraction_spec(backbone.info, settings, num_blocks=2, num_outputs=1)
    samples = Samples([TEXTS[0], TEXTS[3]], ["the dog", TEXTS[2]], torch.zeros(2))
    contract = dataclasses.replace(CONTRACT, max_length=64, prompt="{text} and then")
    activations, labels = read_tokens(backbone, samples, contract, spec)
    ids = [backbone.tokenizer(t)["input_ids"] for t in (f"{TEXTS[0]} and then", "the dog")]
    whole = torch.tensor([[*ids[0], *ids[1]]])
    logits = backbone.language_model(input_ids=whole).logits[0]
    expected = logits.log_softmax(1)[len(ids[0]) - 1 : -1].gather(1, torch.tensor(ids[1])[:, None])[:, 0]
    assert labels[0].tolist() == ids[1]
    assert activations[0].shape == (len(ids[1]), 2, 1, 16)
    head = present(backbone.head)
    inputs = head.inputs(activations[0][:, -1, 0])
    assert torch.allclose(language.token_scores(inputs, labels[0], head)[0], expected, atol=1e-5)


def test_an_encoder_predicts_no_next_token(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="needs a causal model"):
        load_backbone(str(save_tiny(tmp_path, "bert")), device="cpu", language_model=True)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("activations.standardise", True), ("activations.keep", 0.5), ("activations.pivot", "last")],
)
def test_what_would_change_the_last_hidden_state_is_refused(folders: Any, setting: str, value: Any) -> None:
    backbone = load_backbone(folders["opt"], device="cpu", language_model=True)
    with pytest.raises(SettingsError, match=setting):
        extraction_spec(backbone.info, load_settings({setting: value}), num_blocks=2, num_outputs=1)


# targets -----------------------------------------------------------------------------------------------------------

LABEL = make_spec(pivot="all", objective="label", vocabulary=VOCABULARY, head_width=WIDTH)
DIFFERENCE = make_spec(pivot="all", vocabulary=VOCABULARY, head_width=WIDTH, codec="fp16")


def samples_of(spec: Any, targets: Any) -> Any:
    made = make_packet(len(targets), spec=dataclasses.replace(spec, vocabulary=0), contract=make_contract()).open()
    activations = random_activations(len(targets), spec, make_contract())
    assert [s.tokens for s in made.samples] == [len(a) for a in activations]
    return [dataclasses.replace(s, target=t) for s, t in zip(made.samples, targets, strict=True)]


def token_counts(count: Any) -> Any:
    return [len(a) for a in random_activations(count, LABEL, make_contract())]


def test_tokens_pass_through_a_packet() -> None:
    counts = token_counts(3)
    labels = [torch.arange(n) + 7 * i for i, n in enumerate(counts)]
    window = make_packet(spec=LABEL, contract=CONTRACT, samples=samples_of(LABEL, encode_token_labels(labels))).open()
    found = decode_targets([s.target for s in window.samples], LABEL, CONTRACT, counts)
    assert torch.equal(present(found.labels), torch.cat(labels))
    assert [len(s.target) for s in window.samples] == [target_size(LABEL, CONTRACT, n) for n in counts]


def test_corrections_pass_through_a_packet() -> None:
    counts = token_counts(3)
    steps = [(torch.randn(n, WIDTH), torch.rand(n)) for n in counts]
    blobs = encode_corrections(steps, DIFFERENCE)
    window = make_packet(spec=DIFFERENCE, contract=CONTRACT, samples=samples_of(DIFFERENCE, blobs)).open()
    found = decode_targets([s.target for s in window.samples], DIFFERENCE, CONTRACT, counts)
    assert torch.allclose(present(found.differences), torch.cat([s for s, _ in steps]), atol=2e-3)
    assert torch.equal(present(found.weights), torch.cat([w for _, w in steps]))


@pytest.mark.parametrize(
    ("targets", "wrong"),
    [
        (TargetBatch(None, torch.tensor([3, VOCABULARY]), None), "a token is not below 40"),
        (TargetBatch(torch.tensor([[float("nan")]]), None, None, torch.ones(1)), "a correction is beyond"),
        (TargetBatch(torch.ones(1, 1), None, None, torch.tensor([-1.0])), "a curvature is negative"),
        (TargetBatch(torch.ones(1, 1), None, None, torch.tensor([float("inf")])), "a curvature is beyond"),
    ],
)
def test_impossible_token_targets_are_named(targets: Any, wrong: str) -> None:
    assert wrong in check_token_targets(targets, LABEL, CONTRACT, [1])


@pytest.mark.parametrize(
    ("objective", "name"), [("label", "square"), ("difference", "logit"), ("difference", "square")]
)
def test_every_objective_has_its_least_loss_on_the_way_to_the_label(objective: str, name: str) -> None:
    hidden, labels = example()
    head = LinearHead()
    loss = make_loss(CONTRACT, objective=objective, loss=name, scale=1.0, head=head)
    steps, weights = language.correction(head.inputs(hidden), labels, head)
    targets = TargetBatch(steps, labels, hidden, weights)
    side = torch.zeros(TOKENS, WIDTH, requires_grad=True)
    before = loss(side, targets)
    before.backward()
    slope = present(side.grad)
    after = loss(side.detach() - 0.5 * slope, targets)
    assert after.item() < before.item()
    leaf = torch.zeros(TOKENS, WIDTH, requires_grad=True)
    language.cross_entropy(head.inputs(hidden + leaf), labels, head).backward()
    assert torch.allclose(slope, present(leaf.grad), atol=1e-6)  # at s = 0 all three are the same slope


@pytest.mark.parametrize("name", ["logit", "square"])
@pytest.mark.parametrize("told", ["correction", "curvature", "both"])
def test_a_token_pulls_about_as_much_as_an_honest_one_at_most_whatever_it_says(name: str, told: str) -> None:
    hidden, labels = example()
    head = LinearHead()
    steps, weights = language.correction(head.inputs(hidden), labels, head)
    loss = make_loss(CONTRACT, objective="difference", loss=name, scale=1.0, head=head)

    def pulls(steps: Any, weights: Any) -> Any:
        side = torch.zeros(TOKENS, WIDTH, requires_grad=True)
        loss(side, TargetBatch(steps, labels, hidden, weights)).backward()
        return torch.linalg.vector_norm(present(side.grad), dim=1)

    longer, steeper = steps.clone(), weights.clone()
    if told != "curvature":
        longer[0] *= 1e4
    if told != "correction":
        steeper[0] = 9e5
    honest, lied = pulls(steps, weights), pulls(longer, steeper)
    assert lied[0] <= 8 * honest.max()
    assert torch.equal(lied[1:], honest[1:])


def test_language_modelling_needs_a_head() -> None:
    with pytest.raises(ArgumentError, match="needs the backbone's head"):
        make_loss(CONTRACT, objective="label", loss="square", scale=1.0)
