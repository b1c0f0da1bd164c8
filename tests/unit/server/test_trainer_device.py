"""Training on another device than the CPU, shown on torch's meta device, where nothing is computed.

An operation with one tensor on the CPU and one on the meta device fails, as it would on a GPU.
"""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from mobillm_flower.config import load_settings
from mobillm_flower.core import language
from mobillm_flower.core.placement import moved
from mobillm_flower.errors import SettingsError
from mobillm_flower.server.objective import recovered_truth
from mobillm_flower.strategies.frozen_parts import training_device
from tests.support.caches import CONTRACT, fill, make_plan, make_samples, make_spec, scores, train
from tests.support.present import present

META = torch.device("meta")
OTHER = "b" * 64


def away(tmp_path: Path, specs: Any, **changes: Any) -> Any:
    """A trainer on the meta device, over samples of each spec."""
    for number, spec in enumerate(specs):
        cache = fill(tmp_path / "cache.sqlite", make_samples(40, spec, seed=number), spec)
    plan = make_plan(specs)
    side = dataclasses.replace(plan.side_config, name=changes.pop("side", "additive"))
    options = dataclasses.replace(plan.options, dropout=0.0, **changes.pop("options", {}))  # no generator on meta
    plan = dataclasses.replace(plan, side_config=side, options=options, **changes)
    trainer = plan.trainer(cache, scores=scores, memory_bytes=1 << 20, device=META)
    for group in trainer._weights._optimizer.param_groups:
        group["fused"] = False  # there is no fused kernel for the meta device
    return trainer, cache


@pytest.mark.parametrize("pivot", ["mean", "first+mean", "all"])
@pytest.mark.parametrize("loss", ["square", "logit"])
@pytest.mark.parametrize("side", ["additive", "low-rank", "causal"])
def test_a_step_is_taken_where_the_trainer_is(tmp_path: Path, pivot: str, loss: str, side: str) -> None:
    trainer, cache = away(tmp_path, [make_spec(pivot=pivot)], loss=loss, side=side)
    trainer._step(cache.rows().take(slice(0, 16)))
    assert {
        parameter.grad.device for parameter in trainer._weights.live.parameters() if parameter.grad is not None
    } == {META}
    assert {tensor.device for tensor in trainer.network.state_dict().values()} == {META}
    assert trainer.position.steps == 1


def test_types_of_other_widths_and_their_shift_of_labels_go_along(tmp_path: Path) -> None:
    specs = [make_spec(), make_spec(backbone=OTHER, width=24)]
    trainer, cache = away(tmp_path, specs, loss="logit", options={"adjust_types": True})
    trainer._shift.count(cache.rows(), before_round=2)
    trainer._step(cache.rows().take(slice(0, 80, 5)))
    batches, _ = trainer.loader.load(cache.rows())
    assert len(batches) == 2
    shift = trainer._shift(batches)
    assert shift is not None
    assert shift.device == META


def test_the_loader_moves_all_of_a_batch(tmp_path: Path) -> None:
    trainer, cache = away(tmp_path, [make_spec(pivot="all")])
    ((batch,), targets) = trainer.loader.load(cache.rows())
    assert {batch.rows.device, batch.lengths.device, targets.differences.device} == {META}
    labels = torch.zeros(3, dtype=torch.long, device=META)
    truth = recovered_truth(CONTRACT, dataclasses.replace(targets, differences=None, labels=labels))
    _, base = present(truth)
    assert base.device == META


class MetaHead:
    """The identity and an output embedding, on the meta device."""

    vocabulary = 7

    def inputs(self, hidden: Any) -> Any:
        return hidden

    def logits(self, inputs: Any) -> Any:
        return inputs @ torch.zeros(inputs.shape[1], self.vocabulary, device=META)


def test_losses_of_tokens_and_corrections_stay_where_the_head_is() -> None:
    inputs = torch.zeros(5, 4, device=META, requires_grad=True)
    labels = torch.zeros(5, dtype=torch.long, device=META)
    step, weight = language.correction(inputs, labels, MetaHead())
    losses = [
        language.cross_entropy(inputs, labels, MetaHead()),
        language.divergence_loss(inputs, inputs.detach(), step, weight, MetaHead()),
        language.regression_loss(inputs, step, weight),
        language.token_scores(inputs, labels, MetaHead())[0].sum(),
    ]
    assert {tensor.device for tensor in (step, weight, *losses)} == {META}


@pytest.mark.filterwarnings("ignore:for .*:UserWarning")  # weights loaded onto the meta device stay there
def test_a_state_is_on_the_cpu_and_a_checkpoint_goes_on_anywhere(tmp_path: Path) -> None:
    spec, file = make_spec(), tmp_path / "trainer.pt"
    cache = fill(tmp_path / "cache.sqlite", make_samples(40, spec), spec)
    trained = train(cache, make_plan([spec]), checkpoint=file)
    assert {tensor.device.type for tensor in trained.state.values()} == {"cpu"}
    gone_on = make_plan([spec]).trainer(cache, scores=scores, memory_bytes=0, checkpoint=file, device=META)
    moments = [value for state in gone_on._weights._optimizer.state.values() for value in state.values()]
    assert moments
    assert {value.device for value in moments} == {META}
    assert gone_on.position == trained.position


def test_moving_to_where_it_is_copies_nothing() -> None:
    tensor = torch.ones(2)
    assert moved(tensor, torch.device("cpu")) is tensor


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_a_device_that_is_not_there_is_refused_by_the_settings_name() -> None:
    with pytest.raises(SettingsError, match=r"trainer\.device='cuda' is not available on this machine; use auto"):
        training_device(load_settings({"trainer.device": "cuda"}))


def test_the_server_does_not_train_on_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert training_device(load_settings({"trainer.device": "auto"})) == torch.device("cpu")
    with pytest.raises(SettingsError, match=r"trainer\.device='mps' must be one of auto, cpu, cuda, cuda:N"):
        training_device(load_settings({"trainer.device": "mps"}))
