from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mobillm_flower import SideTunedModel
from mobillm_flower.backbones import Backbone, load_backbone
from mobillm_flower.backbones.onnx_engine import TOLERANCE, graphs_folder
from mobillm_flower.clients.device import Device
from mobillm_flower.config import load_settings
from mobillm_flower.core.pivots import PIVOTS, pivot
from mobillm_flower.errors import SettingsError
from mobillm_flower.privacy.device_folder import DeviceFolder
from mobillm_flower.tasks import load_local_data
from mobillm_flower.tasks.extraction import extraction_spec
from tests.support.runs import tiny_config, tiny_run
from tests.support.tiny_models import CONFIGS, TEXTS, save_tiny

pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")

SOME = ("bert", "gpt2", "opt", "llama", "t5")
LAYERS = (0, 1, 3)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return graphs_folder()


def pivots(backbone: Backbone, name: str, texts: list[str] = TEXTS) -> Tensor:
    found = backbone.extract(backbone.tokenize(texts, None, 32), layers=LAYERS, pivot=name).activations
    return torch.cat([sample.flatten() for sample in found])


def check_parity(folder: Path, name: str) -> None:
    eager = load_backbone(str(folder), device="cpu")
    onnx = load_backbone(str(folder), engine="onnx")
    assert onnx.computed_by(LAYERS, name) == "onnx"
    torch.testing.assert_close(pivots(onnx, name), pivots(eager, name), rtol=1e-4, atol=1e-4)
    long = [" ".join(TEXTS)[:100]]
    torch.testing.assert_close(pivots(onnx, name, long), pivots(eager, name, long), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SOME)
def test_the_graph_computes_what_torch_does(tmp_path: Path, name: str) -> None:
    folder = save_tiny(tmp_path / name, name)
    for kind in {load_backbone(str(folder), device="cpu").info.default_pivot, "all"}:
        check_parity(folder, kind)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_the_graph_computes_what_torch_does_in_every_family(tmp_path: Path, name: str) -> None:
    check_parity(save_tiny(tmp_path / name, name), "first+mean")


@pytest.mark.parametrize("name", ["opt", "t5"])
def test_base_logits_come_from_the_graph_too(tmp_path: Path, name: str) -> None:
    folder = str(save_tiny(tmp_path / name, name))
    options: dict[str, Any] = {"num_labels": 2, "label_words": ("good", "bad")}
    sides = [load_backbone(folder, device="cpu", engine=engine, **options) for engine in ("torch", "onnx")]
    eager, onnx = (
        side.extract(side.tokenize(TEXTS, None, 32), layers=LAYERS, pivot="last").base_logits for side in sides
    )
    assert eager is not None
    assert onnx is not None
    torch.testing.assert_close(onnx, eager, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_int8_is_near_and_smaller(tmp_path: Path, cache: Path, name: str) -> None:
    folder = str(save_tiny(tmp_path / name, name, widen=8))
    eager = pivots(load_backbone(folder, device="cpu"), "mean")
    full = load_backbone(folder, engine="onnx")
    assert full.computed_by(LAYERS, "mean") == "onnx"
    whole = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())
    small = load_backbone(folder, engine="onnx", precision="int8")
    apart = float((pivots(small, "mean") - eager).norm() / eager.norm())
    assert small.info.precision == "int8"
    assert small.computed_by(LAYERS, "mean") == "onnx"
    assert 1e-5 < apart < TOLERANCE["int8"]
    assert sum(file.stat().st_size for file in cache.rglob("*") if file.is_file()) < 1.6 * whole


def test_a_graph_is_exported_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(save_tiny(tmp_path / "bert", "bert"))
    first = pivots(load_backbone(folder, engine="onnx"), "mean")
    (graph,) = cache.rglob("graph.onnx")
    monkeypatch.setattr(torch.onnx, "export", None)
    again = load_backbone(folder, engine="onnx")
    assert torch.equal(pivots(again, "mean"), first)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    graph.write_bytes(graph.read_bytes()[:1000])  # a damaged one is made anew
    assert torch.equal(pivots(load_backbone(folder, engine="onnx"), "mean"), first)


def test_other_weights_have_another_graph(tmp_path: Path, cache: Path) -> None:
    for seed in (0, 1):
        folder = str(save_tiny(tmp_path / f"bert-{seed}", "bert", seed=seed))
        torch.testing.assert_close(
            pivots(load_backbone(folder, engine="onnx"), "mean"),
            pivots(load_backbone(folder, device="cpu"), "mean"),
            rtol=1e-4,
            atol=1e-4,
        )
    assert len(list(cache.rglob("graph.onnx"))) == 2


def test_weights_are_in_memory_once(tmp_path: Path) -> None:
    backbone = load_backbone(str(save_tiny(tmp_path / "opt", "opt")), engine="onnx")
    pivots(backbone, "last")
    assert all(parameter.device.type == "meta" for parameter in backbone.model.parameters())
    assert backbone.positions == 64


def test_a_language_model_keeps_its_head(tmp_path: Path) -> None:
    backbone = load_backbone(str(save_tiny(tmp_path / "opt", "opt")), engine="onnx", language_model=True)
    assert backbone.head is not None
    found = backbone.extract(backbone.tokenize(TEXTS[:1], None, 32), layers=LAYERS, pivot="all").activations[0]
    assert backbone.computed_by(LAYERS, "all") == "onnx"
    assert backbone.head.logits(backbone.head.inputs(found[:, -1, 0])).isfinite().all()


@PIVOTS.register("test-branching")
@pivot(num_vectors=1)
def branching(hidden: Tensor, mask: Tensor) -> Tensor:
    """A pivot that asks a tensor for a number, which a trace remembers."""
    return hidden[:, int(mask.sum(1).min()) - 1].unsqueeze(1)


def test_a_pivot_that_cannot_be_exported_falls_back_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(save_tiny(tmp_path / "bert", "bert"))
    backbone = load_backbone(folder, engine="onnx")
    with caplog.at_level(logging.WARNING):
        assert backbone.computed_by(LAYERS, "test-branching") == "torch"
    assert "torch computes, since there is no graph: " in caplog.text
    assert backbone.computed_by(LAYERS, "mean") == "onnx"  # the pivot alone is at fault
    eager = load_backbone(folder, device="cpu")
    assert torch.equal(pivots(backbone, "test-branching"), pivots(eager, "test-branching"))
    monkeypatch.setattr(torch.onnx, "export", None)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert load_backbone(folder, engine="onnx").computed_by(LAYERS, "test-branching") == "torch"
    assert "(remembered in " in caplog.text


def test_without_the_package_torch_computes_in_the_precision_that_was_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    folder = str(save_tiny(tmp_path / "bert", "bert"))
    with caplog.at_level(logging.WARNING):
        backbone = load_backbone(folder, engine="onnx", device="cpu")
    assert "onnxruntime not installed, torch computes; pip install 'mobillm-flower[onnx]'" in caplog.text
    assert backbone.computed_by(LAYERS, "mean") == "torch"
    assert torch.equal(pivots(backbone, "mean"), pivots(load_backbone(folder, device="cpu"), "mean"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"backbone.precision": "bf16"}, "backbone.precision=bf16 must be fp32 or int8"),
        ({"backbone.device": "cuda"}, "backbone.device='cuda' must be auto or cpu"),
        ({"backbone.precision": "int8", "privacy.activation-epsilon": 4.0, "activations.projection": 8}, "choose fp32"),
    ],
)
def test_settings_that_the_engine_cannot_keep_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        load_settings({"backbone.engine": "onnx", **changes})


def test_loading_refuses_them_too(tmp_path: Path) -> None:
    folder = str(save_tiny(tmp_path / "bert", "bert"))
    with pytest.raises(SettingsError, match=r"backbone.precision=nf4 must be fp32 or int8"):
        load_backbone(folder, engine="onnx", precision="nf4")
    with pytest.raises(SettingsError, match=r"backbone.device='cuda' must be auto or cpu"):
        load_backbone(folder, engine="onnx", device="cuda")


def test_the_release_id_names_engine_and_precision(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "bert", "bert")
    said = []
    for engine, precision, name in [
        ("torch", "fp32", "mean"),
        ("onnx", "fp32", "mean"),
        ("onnx", "int8", "mean"),
        ("onnx", "fp32", "test-branching"),
        ("torch", "fp32", "test-branching"),
    ]:
        changes = {"backbone__engine": engine, "backbone__precision": precision, "activations__pivot": name}
        settings = load_settings(tiny_config(tmp_path / "run", folder, **changes))
        device = Device(settings, load_local_data(settings, 0, 3), DeviceFolder(tmp_path / "device"))
        said.append(device.shaping(extraction_spec(device.backbone.info, settings, num_blocks=2, num_outputs=1)))
    assert said[3] == said[4]  # what fell back to torch is what torch computes, and the same release
    assert len(set(said)) == 4


def test_a_whole_run_with_the_engine(tmp_path: Path) -> None:
    tiny_run(tmp_path, backbone__engine="onnx")
    model = SideTunedModel.from_pretrained(
        tmp_path / "run" / "side_network", backbone=load_backbone(str(tmp_path / "backbone"), engine="onnx")
    )
    assert len(model.predict(["wake me at six", "play some music"]).labels) == 2
    assert list(graphs_folder().rglob("graph.onnx"))
