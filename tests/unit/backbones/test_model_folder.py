"""Model folders as people keep them: whole, damaged, of adapters, of sentence-transformers."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, AutoModelForCausalLM

from mobillm_flower.backbones import load_backbone, resolve_folder
from mobillm_flower.errors import MobiLLMError, UnsupportedError
from tests.support.tiny_models import save_tiny

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 90868376\n"


def hidden(folder: Path) -> torch.Tensor:
    backbone = load_backbone(str(folder), device="cpu")
    samples = backbone.tokenize(["the dog"], None, 8)
    return backbone.extract(samples, layers=[1], pivot="last").activations[0]


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def shards(folder: Path) -> Path:
    AutoModel.from_pretrained(folder).save_pretrained(folder, max_shard_size="40KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    return sorted(folder.glob("model-*.safetensors"))[0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: (f / "model.safetensors").write_text(POINTER),
            r"model\.safetensors is a Git LFS pointer, .*git lfs p",
        ),
        (lambda f: (f / "tokenizer.json").write_text(POINTER), r"tokenizer\.json is a Git LFS pointer"),
        (
            lambda f: cut(f / "model.safetensors"),
            r"model\.safetensors has [\d,]+ bytes where its header names [\d,]+; fetch",
        ),
        (lambda f: (f / "model.safetensors").write_bytes(b"\0" * 4), r"is no whole safetensors file: its header"),
        (
            lambda f: shards(f).unlink(),
            r"lacks 1 of the \d files that model\.safetensors\.index\.json names, model-00001-of",
        ),
        (lambda f: (f / "config.json").unlink(), r"holds no config\.json; a model's folder is what save_pretrained"),
        (lambda f: (f / "config.json").write_text("{"), r"cannot load its configuration"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), r"cannot load its tokenizer"),
        (
            lambda f: ((f / "model.safetensors").unlink(), (f / "pytorch_model.bin").write_bytes(b"no pickle")),
            r"cannot load its weights as bert",
        ),
    ],
)
def test_damage_is_a_sentence_that_names_the_file(tmp_path: Path, damage: Callable[[Path], Any], message: str) -> None:
    folder = save_tiny(tmp_path / "model", "bert")
    damage(folder)
    with pytest.raises(UnsupportedError, match=message):
        load_backbone(str(folder), device="cpu")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
def test_any_damage_to_a_file_is_an_error_of_ours_or_none(tmp_path: Path, name: str) -> None:
    folder = save_tiny(tmp_path / "model", "bert")
    whole, drawn = (folder / name).read_bytes(), random.Random(name)
    others = [b"", b"[]", b"null", b'{"a": 1}', whole[: len(whole) // 2]]
    if name == "config.json":
        config = json.loads(whole)
        others += [
            json.dumps(config | {key: "x"}).encode() for key in ("num_hidden_layers", "hidden_size", "model_type")
        ]
    for _ in range(12):
        damaged = bytearray(whole)
        damaged[drawn.randrange(min(len(whole), 400))] ^= 1 << drawn.randrange(7)
        others.append(bytes(damaged))
    for content in others:
        (folder / name).write_bytes(content)
        try:
            load_backbone(str(folder), device="cpu")
        except MobiLLMError:
            continue


def adapters(folder: Path, base: Path, **config: Any) -> Path:
    """Save random adapters of a base, and return what the merged model computes."""
    kind = AutoModelForCausalLM if config.get("task_type") == "CAUSAL_LM" else AutoModel
    tuned = get_peft_model(kind.from_pretrained(base), LoraConfig(r=2, init_lora_weights=False, **config))
    tuned.save_pretrained(folder / "adapters")
    tuned.merge_and_unload().save_pretrained(folder / "by-hand")
    for file in base.glob("token*"):
        shutil.copy(file, folder / "by-hand")
    return folder / "adapters"


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("bert", {"target_modules": ["query", "value"]}),
        ("llama", {"target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}),
    ],
)
def test_adapters_are_merged_onto_their_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, config: dict[str, Any]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    base = save_tiny(tmp_path / "base", name)
    folder = adapters(tmp_path, base, **config)
    torch.testing.assert_close(hidden(folder), hidden(tmp_path / "by-hand"))
    assert not torch.allclose(hidden(folder), hidden(base))
    assert resolve_folder(str(folder)) == resolve_folder(str(folder))
    assert len(list((tmp_path / "cache/mobillm-flower").glob("merged-*"))) == 1
    for number, changed in enumerate((base, folder), start=2):  # all that was taken over is looked at
        (changed / "chat_template.jinja").write_text(f"template {number}")
        assert (resolve_folder(str(folder)) / "chat_template.jinja").read_text() == f"template {number}"


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (None, "names no base model"),
        ("gone/away", r"holds PEFT adapters of 'gone/away', which is not at hand .*merge_and_"),
    ],
)
def test_adapters_without_their_base(tmp_path: Path, base: str | None, message: str) -> None:
    folder = adapters(tmp_path, save_tiny(tmp_path / "base", "bert"), target_modules=["query"])
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": base}))
    with pytest.raises(UnsupportedError, match=message):
        load_backbone(str(folder), device="cpu")


def test_adapters_of_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = adapters(tmp_path, save_tiny(tmp_path / "base", "bert"), target_modules=["query"])
    save_tiny(tmp_path / "base", "bert", hidden_size=64)
    with pytest.raises(UnsupportedError, match="adapters"):
        load_backbone(str(folder), device="cpu")
    assert not list((tmp_path / "cache/mobillm-flower").glob("merged-*"))


def test_a_folder_of_sentence_transformers(tmp_path: Path) -> None:
    inner = save_tiny(tmp_path / "model/0_Transformer", "bert")
    modules = [{"idx": 0, "path": "0_Transformer"}, {"idx": 1, "path": "1_Pooling"}]
    (tmp_path / "model/modules.json").write_text(json.dumps(modules))
    assert resolve_folder(str(tmp_path / "model")) == inner
    for damaged in ("{", "[]", json.dumps([{"path": "../elsewhere"}, {"path": 5}, 3])):
        (tmp_path / "model/modules.json").write_text(damaged)
        with pytest.raises(UnsupportedError, match=r"modules\.json"):
            resolve_folder(str(tmp_path / "model"))
