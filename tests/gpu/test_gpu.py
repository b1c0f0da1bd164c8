"""What must be the same on a GPU as on the CPU: `make bench-gpu` runs these there.

Without a GPU they run on the CPU on both sides, which shows that the tests themselves work, and nothing else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mobillm_flower import SideTunedModel, load_settings
from mobillm_flower.backbones import Backbone, load_backbone
from mobillm_flower.clients.device import Device
from mobillm_flower.clients.releases import make_window
from mobillm_flower.core import language
from mobillm_flower.core.codecs import CODECS
from mobillm_flower.core.sparse import encode_sample
from mobillm_flower.errors import UnsupportedError
from mobillm_flower.launch.app import read_app
from mobillm_flower.launch.run import run_app
from mobillm_flower.privacy.device_folder import DeviceFolder
from mobillm_flower.server.plan import TrainingPlan
from mobillm_flower.tasks import load_local_data
from mobillm_flower.tasks.extraction import extraction_spec
from tests.support.caches import fill, make_plan, make_samples, make_spec, train
from tests.support.pages import ROOT
from tests.support.runs import run, tiny_config
from tests.support.tiny_models import TEXTS, save_tiny

pytestmark = pytest.mark.gpu
SPEC = make_spec()
GPU = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FORWARD = {"fp32": 1e-4, "bf16": 3e-2, "fp16": 4e-3, "int8": 6e-2, "nf4": 3e-2}
"""Largest error, as a share of the CPU's values, by precision."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("opt"), "opt", hidden_size=64, word_embed_proj_dim=64, ffn_dim=128)


def pivots(backbone: Backbone) -> torch.Tensor:
    samples = backbone.tokenize(TEXTS, None, 32)
    return torch.stack(backbone.extract(samples, layers=(1, 3), pivot="mean").activations)


@pytest.mark.parametrize("precision", sorted(FORWARD))
def test_a_devices_pivots(folder: Path, precision: str) -> None:
    here, there = (pivots(load_backbone(str(folder), precision=precision, device=name)) for name in ("cpu", str(GPU)))
    assert there.device.type == "cpu"
    assert float((there - here).norm() / here.norm()) <= FORWARD[precision]


@pytest.mark.parametrize("codec", sorted(CODECS))
@pytest.mark.parametrize("keep", [1.0, 0.25])
def test_encoding_is_the_cpus_wherever_values_come_from(codec: str, keep: float) -> None:
    """A sample's bytes never depend on where it was computed, beyond the values themselves."""
    values = torch.randn(1, 3, 1, 64, generator=torch.Generator().manual_seed(0))
    assert CODECS[codec].encode(values.to(GPU)) == CODECS[codec].encode(values)
    assert encode_sample(values.to(GPU).cpu(), CODECS[codec], keep) == encode_sample(values, CODECS[codec], keep)


def test_the_noise_of_a_release_is_the_same(folder: Path, tmp_path: Path) -> None:
    """Noise comes from keys, not from a device's generator: two runs differ by the forward pass alone."""
    DeviceFolder(tmp_path / "cpu").close()
    shutil.copytree(tmp_path / "cpu", tmp_path / "gpu")  # the same secret, and so the same keys
    vectors = []
    for name, place in (("cpu", "cpu"), ("gpu", str(GPU))):
        config = tiny_config(tmp_path / "run", folder, backbone__device=place, data__max_samples=4)
        private = {"activations.clip-norm": 1.0, "activations.noise-sigma": 0.5, "activations.codec": "fp16"}
        settings, owned = load_settings(config | private), DeviceFolder(tmp_path / name)
        device = Device(settings, load_local_data(settings, 0, 3), owned)
        spec = extraction_spec(device.backbone.info, settings, num_blocks=3, num_outputs=1)
        window = make_window(device, spec, held=frozenset(), size=4, max_bytes=1 << 20)
        blobs = [sample.activations for sample in sorted(window.samples, key=lambda sample: sample.release)]
        vectors.append(CODECS["fp16"].decode(blobs, [len(blob) // 2 for blob in blobs]))
        owned.close()
    assert vectors[0].std() > 0.3  # the noise is there
    torch.testing.assert_close(vectors[0], vectors[1], atol=4e-3, rtol=0)


def plan_of(side: str, **changes: Any) -> TrainingPlan:
    """A plan of that side network without dropout, whose masks come from each device's own generator."""
    plan = make_plan([SPEC])
    return dataclasses.replace(
        plan,
        side_config=dataclasses.replace(plan.side_config, name=side, **changes),
        options=dataclasses.replace(plan.options, dropout=0.0),
    )


@pytest.mark.parametrize("side", ["additive", "low-rank", "causal", "closed-form"])
def test_the_server_trains_to_the_same(tmp_path: Path, side: str) -> None:
    plan, states = plan_of(side), []
    for name in ("cpu", str(GPU)):
        cache = fill(tmp_path / f"{name}.sqlite", make_samples(60, SPEC), SPEC)
        states.append(train(cache, plan, device=torch.device(name)).state)
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, atol=2e-3, rtol=2e-2)


def test_a_fit_from_sums_is_the_same(tmp_path: Path) -> None:
    """More samples than values: the solution comes from sums."""
    plan, states = plan_of("closed-form", random_features=0), []
    for name in ("cpu", str(GPU)):
        cache = fill(tmp_path / f"{name}.sqlite", make_samples(300, SPEC), SPEC)
        states.append(train(cache, plan, device=torch.device(name)).state)
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"preset": "upper-layers"},
        {"task.kind": "language-modelling", "data.pair-column": "text", "activations.codec": "fp16"},
    ],
    ids=["upper layers", "language modelling"],
)
def test_runs_that_need_the_backbone_on_the_server(folder: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    found = []
    for name in ("cpu", str(GPU)):
        config = tiny_config(tmp_path / name, folder, trainer__device=name, trainer__dropout=0.0, data__max_samples=8)
        measured = run(config | changes).result.evaluate_metrics_clientapp
        found.append(dict(list(measured.values())[-1]))
    assert found[0].keys() == found[1].keys()
    for key, value in found[0].items():
        if key in ("accuracy", "cross-entropy"):
            assert found[1][key] == pytest.approx(value, abs=0.15)


def test_token_losses(folder: Path) -> None:
    found = []
    for name in ("cpu", str(GPU)):
        head = load_backbone(str(folder), device=name, language_model=True).head
        assert head is not None
        inputs = torch.randn(7, head.width, generator=torch.Generator().manual_seed(0)).to(name)
        labels = torch.arange(7, device=name)
        found.append(language.cross_entropy(inputs, labels, head).cpu())
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=1e-4)


def test_a_saved_model_predicts_the_same(folder: Path, tmp_path: Path) -> None:
    run(tiny_config(tmp_path, folder))
    saved = tmp_path / "side_network"
    here, there = (SideTunedModel.from_pretrained(saved, device=name).predict(TEXTS) for name in ("cpu", str(GPU)))
    torch.testing.assert_close(there.scores.cpu(), here.scores, atol=1e-3, rtol=1e-2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU to share")
@pytest.mark.timeout(180)
def test_devices_of_a_simulation_share_a_gpu(tmp_path: Path, folder: Path) -> None:
    pytest.importorskip("ray", reason="the extra `simulation` is not installed")
    words = [f"backbone.name={folder}", "backbone.device=cuda:0", "backbone.gpu-share=0.25", "data.num-devices=4"]
    app = read_app(ROOT / "examples" / "quickstart")
    outcome = run_app(app, words, run_path=tmp_path / "run", on_event=lambda _: None)
    assert outcome.status == "finished:completed"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch cannot run out of the CPU's memory on demand")
def test_out_of_memory_halves_the_token_budget_once(folder: Path) -> None:
    backbone = load_backbone(str(folder), device=str(GPU), token_budget=1 << 20)
    samples = backbone.tokenize(TEXTS, None, 32) * 20_000
    free, _ = torch.cuda.mem_get_info()
    ballast = torch.empty(max(0, free - (1 << 30)), dtype=torch.uint8, device=GPU)
    with contextlib.suppress(UnsupportedError):  # half may be too much as well
        backbone.extract(samples, layers=(1,), pivot="mean")
    del ballast
    assert backbone.token_budget == 1 << 19
