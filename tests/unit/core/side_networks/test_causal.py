"""The causal mixer: what it reads, and that a text token by token gives what the whole text gives."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from mobillm_flower import SideTunedModel, load_settings
from mobillm_flower.backbones import load_backbone
from mobillm_flower.core.prediction import PredictionRule
from mobillm_flower.core.side_networks import ActivationBatch, AlignmentSpec, SideNetworkConfig
from mobillm_flower.errors import UnsupportedError
from mobillm_flower.strategies.run_plan import make_plan
from mobillm_flower.tasks import Samples, read_tokens
from mobillm_flower.tasks.extraction import extraction_spec
from tests.support.packets import make_contract
from tests.support.tiny_models import DECODERS, TEXTS, save_tiny

BLOCKS, WIDTH, BOTTLENECK, OUTPUTS = 3, 8, 5, 4
TYPES = {"b": AlignmentSpec(WIDTH, 1)}


def make(name: str = "causal", *, random: bool = True, outputs: int = OUTPUTS, **changes: Any) -> Any:
    values = {"types": TYPES, "num_blocks": BLOCKS, "bottleneck": BOTTLENECK, **changes}
    network = SideNetworkConfig.of(name=name, num_outputs=outputs, **values).build()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters() if random else ():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    return network


def tokens(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, BLOCKS, WIDTH, generator=torch.Generator().manual_seed(seed))


def whole(network: Any, rows: Any, *lengths: Any) -> Any:
    return network([ActivationBatch("b", rows, sequences=torch.tensor(lengths or [len(rows)]))])


def test_it_starts_as_the_additive_network() -> None:
    causal, additive = make(), make("additive", random=False)
    with torch.no_grad():
        causal.taps.zero_()
    state = causal.state_dict()
    del state["taps"]
    additive.load_state_dict(state)
    rows = tokens(7)
    assert torch.equal(whole(causal, rows), additive([ActivationBatch("b", rows)]))
    assert not whole(make(random=False), rows).any()


def test_an_adapter_is_the_equation() -> None:
    network = make(num_blocks=1)
    rows = tokens(6)[:, :1]
    adapter, x = network.adapters[0], torch.nn.functional.layer_norm(rows[:, 0], (WIDTH,))
    narrow = adapter.down(adapter.norm(x))
    for t in range(6):
        z = narrow[t] + sum(network.taps[0, j - 1] * narrow[t - j] for j in range(1, network.num_taps + 1) if t >= j)
        h = x[t] + adapter.up(torch.nn.functional.gelu(z))
        expected = network.output(network.output_norm(h))
        assert torch.allclose(whole(network, rows)[t], expected, atol=1e-5)


def test_texts_of_a_batch_are_apart_and_later_tokens_change_nothing() -> None:
    network, rows = make(), tokens(12)
    parts = torch.split(rows, [1, 6, 5])
    together = whole(network, rows, 1, 6, 5)
    assert torch.allclose(together, torch.cat([whole(network, part) for part in parts]), atol=1e-6)
    assert not torch.allclose(together, whole(network, rows), atol=1e-3)
    changed = rows.clone()
    (changed[9],) = tokens(1, seed=2)
    assert torch.equal(whole(network, changed)[:9], whole(network, rows)[:9])
    assert (whole(network, changed)[9:] != whole(network, rows)[9:]).any(1).all()


def test_with_pivot_all_a_samples_tokens_are_mixed_and_averaged() -> None:
    network, rows = make(), tokens(9)
    found = network([ActivationBatch("b", rows, torch.tensor([4, 5]))])
    alone = [network([ActivationBatch("b", part, torch.tensor([len(part)]))]) for part in (rows[:4], rows[4:])]
    assert found.shape == (2, OUTPUTS)
    assert torch.allclose(found, torch.cat(alone), atol=1e-6)
    assert not torch.allclose(found[1], network([ActivationBatch("b", rows[4:].flip(0), torch.tensor([5]))])[0])


@pytest.mark.parametrize("steps", [[1] * 9, [5, 1, 3], [9]])
def test_token_by_token_is_the_whole_text(steps: Any) -> None:
    network, rows = make(), tokens(18).unflatten(0, (2, 9))
    before, found, start = None, [], 0
    for count in steps:
        part = rows[:, start : start + count].flatten(0, 1)
        side, left = network.step(ActivationBatch("b", part), before, torch.ones(2, count, dtype=torch.bool))
        before = left if before is None else torch.cat([before, left], 2)
        found.append(side.unflatten(0, (2, count)))
        start += count
    expected = whole(network, rows.flatten(0, 1), 9, 9).unflatten(0, (2, 9))
    assert torch.allclose(torch.cat(found, 1), expected, atol=1e-5)


def test_what_is_not_seen_is_as_if_it_were_not_there() -> None:
    network, rows = make(), tokens(8)
    seen = torch.tensor([[False] * 3 + [True] * 5])
    side, _ = network.step(ActivationBatch("b", rows), None, seen)
    assert torch.allclose(side[3:], whole(network, rows[3:]), atol=1e-5)


def test_it_learns_what_the_token_before_says() -> None:
    """The target is the sign of a value of the token before, of which the token itself knows nothing."""
    losses = {}
    for name in ("additive", "causal"):
        network = make(name, random=False, outputs=1, num_blocks=1)
        rows = tokens(2000)[:, :1]
        target = torch.cat([torch.zeros(1, 1), rows[:-1, 0, :1].sign()])
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
        for _ in range(200):
            loss = (whole(network, rows) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses[name] = loss.item()
    assert losses["causal"] < 0.5 < 0.9 < losses["additive"]


# in a language model -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    base = tmp_path_factory.mktemp("models")
    return {name: str(save_tiny(base / name, name)) for name in DECODERS}


def tuned_model(folder: str, prompt: str) -> SideTunedModel:
    backbone = load_backbone(folder, device="cpu", language_model=True)
    settings = load_settings({"backbone.name": folder, "loss.objective": "label", "side-network.name": "causal"})
    spec = extraction_spec(backbone.info, settings, num_blocks=2, num_outputs=1)
    network = make(types={spec.backbone: spec.alignment}, num_blocks=2, outputs=spec.width)
    contract = make_contract(kind="language-modelling", labels=(), metric="cross-entropy", per_token=True)
    contract = dataclasses.replace(contract, max_length=32, prompt=prompt)
    return SideTunedModel(backbone, network, spec=spec, contract=contract, rule=PredictionRule("square", 1.0))


def generate(model: Any, ids: Any, **options: Any) -> Any:
    return model.language_model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=8,
        min_new_tokens=8,
        pad_token_id=0,
        **{"do_sample": False, **options},
    )


@pytest.mark.parametrize("prompt", ["", "{text}"])
@pytest.mark.parametrize("name", DECODERS)
def test_each_generated_token_has_the_logits_that_training_computes(folders: Any, name: str, prompt: str) -> None:
    """Training and evaluation see a response's tokens from the one before it on, or the whole of a plain text."""
    model = tuned_model(folders[name], prompt)
    ids = torch.tensor([model.tokenizer(TEXTS[2])["input_ids"]])
    made = generate(model, ids, output_logits=True, return_dict_in_generate=True)
    sequence = made.sequences[0].tolist()
    found = model.backbone.extract([{"input_ids": sequence}], layers=model.spec.layers, pivot="all").activations[0]
    start = ids.shape[1] - 1
    rows = found.flatten(2)[start if prompt else 0 :]
    with torch.inference_mode():
        expected = model.head.logits(model.head.inputs(model.tuned_states(rows, torch.tensor([len(rows)]))))
        unmixed = model.head.logits(
            model.head.inputs(model.tuned_states(rows, torch.ones(len(rows), dtype=torch.long)))
        )
    first = 0 if prompt else start
    steps = torch.cat(made.logits)  # [8, V]
    assert torch.allclose(steps, expected[first : first + 8], atol=1e-4)
    assert not torch.allclose(steps, unmixed[first : first + 8], atol=1e-3)


@pytest.mark.parametrize("prompt", ["", "{text}"])
def test_texts_of_different_lengths_are_continued_as_each_alone(folders: Any, prompt: str) -> None:
    model = tuned_model(folders["llama"], prompt)
    alone = [model.generate(text, max_new_tokens=8) for text in TEXTS[:3]]
    assert model.generate(TEXTS[:3], max_new_tokens=8) == alone


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"prompt_lookup_num_tokens": 3}], ids=["beams", "lookup"])
def test_the_memory_follows_the_key_value_cache(folders: Any, options: Any) -> None:
    """Beams are reordered, and guesses that were wrong are taken back."""
    model = tuned_model(folders["llama"], "")
    ids = torch.tensor([model.tokenizer(TEXTS[2])["input_ids"] * 2])
    made = generate(model, ids, **options)
    if "num_beams" not in options:
        assert torch.equal(made, generate(model, ids))
        return
    beams = generate(model, ids, output_scores=True, return_dict_in_generate=True, length_penalty=0.0, **options)
    (sequence,) = beams.sequences.tolist()
    rows = model.backbone.extract([{"input_ids": sequence}], layers=model.spec.layers, pivot="all").activations[0]
    with torch.inference_mode():
        inputs = model.head.inputs(model.tuned_states(rows.flatten(2), torch.tensor([len(rows)])))
        logs = model.head.logits(inputs).log_softmax(1)
    picked = [float(logs[i - 1, sequence[i]]) for i in range(ids.shape[1], len(sequence))]
    assert sum(picked) == pytest.approx(float(beams.sequences_scores[0]), abs=1e-3)


def test_a_network_that_remembers_responses_needs_the_cache(folders: Any) -> None:
    model = tuned_model(folders["opt"], "{text}")
    with pytest.raises(UnsupportedError, match="leave use_cache on"):
        model.generate(TEXTS[0], max_new_tokens=8, use_cache=False)
    plain = tuned_model(folders["opt"], "")
    found = [plain.generate(TEXTS[0], max_new_tokens=8, use_cache=use) for use in (False, True)]
    assert found[0] == found[1]


def test_evaluation_sees_each_text_by_itself(folders: Any) -> None:
    model = tuned_model(folders["opt"], "{text}")
    samples = Samples([TEXTS[0], TEXTS[3]], ["the dog sat", TEXTS[2]], torch.zeros(2))
    together = torch.from_numpy(model.token_scores(samples).log_probabilities)
    alone = [torch.from_numpy(model.token_scores(samples.take([i])).log_probabilities) for i in range(2)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)
    activations, _ = read_tokens(model.backbone, samples, model.contract, model.spec)
    assert [len(a) for a in activations] == [len(a) for a in alone]


def test_one_vector_a_text_is_refused(folders: Any) -> None:
    backbone = load_backbone(folders["opt"], device="cpu")
    settings = load_settings({"side-network.name": "causal", "activations.pivot": "mean"})
    with pytest.raises(UnsupportedError, match=r"use activations\.pivot=all"):
        make_plan(
            settings,
            make_contract(),
            {backbone.info.fingerprint: backbone.info},
            [8],
        )
