"""PEFT adapters as a backbone: merged once onto their base, which then is an ordinary model folder."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import warnings
from pathlib import Path
from typing import Any

from mobillm_flower.backbones.describe import fingerprint
from mobillm_flower.backbones.kept import kept_folder
from mobillm_flower.backbones.model_folder import read_json, reading
from mobillm_flower.errors import UnsupportedError


def merged_folder(folder: Path) -> Path:
    """Return the folder of a model with adapters merged into it, kept in the user's cache.

    Raises
    ------
    UnsupportedError
        `peft` is not installed, the base is not at hand, or the adapters are not of it.
    """
    from mobillm_flower.backbones.sources import resolve_folder

    said = read_json(folder / "adapter_config.json")
    name = said.get("base_model_name_or_path") if isinstance(said, dict) else None
    instead = "merge them with merge_and_unload() of peft, save that model, and name its folder"
    if not isinstance(name, str) or not name:
        raise UnsupportedError(
            f"{folder} holds PEFT adapters, and its adapter_config.json names no base model (base_model_name_or_path); "
            f"{instead}"
        )
    beside = folder / name
    try:
        base = resolve_folder(str(beside) if beside.is_dir() else name, str(said.get("revision") or ""))
    except UnsupportedError as error:
        raise UnsupportedError(
            f"{folder} holds PEFT adapters of {name!r}, which is not at hand ({error}); put that model "
            f"there, or {instead}"
        ) from error
    if importlib.util.find_spec("peft") is None:
        raise UnsupportedError(
            f"{folder} holds PEFT adapters of {name!r}, which need `peft`: pip install mobillm-flower; or {instead}"
        )
    digest = hashlib.sha256(fingerprint(base, "base", 0).encode())
    of_base = sorted(_tokenizer_files(base))
    for file in [*of_base, *sorted({*folder.glob("adapter_*"), *folder.glob("*.json"), *_tokenizer_files(folder)})]:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    with reading(folder, "adapters"):
        return kept_folder(f"merged-{digest.hexdigest()[:32]}", lambda to: _merge(base, folder, to))


def _merge(base: Path, adapters: Path, to: Path) -> None:
    import transformers
    from peft import PeftModel

    config = transformers.AutoConfig.from_pretrained(base, trust_remote_code=False)
    said: dict[str, Any] = read_json(adapters / "adapter_config.json")
    kind: Any = transformers.AutoModel
    if said.get("task_type") == "CAUSAL_LM":
        kind = transformers.AutoModelForCausalLM
    elif said.get("task_type") == "SEQ_2_SEQ_LM":
        kind = transformers.AutoModelForSeq2SeqLM
    elif said.get("task_type") == "SEQ_CLS":
        kind = transformers.AutoModelForSequenceClassification
        config.num_labels = _classes(adapters) or config.num_labels
    else:
        for architecture in config.architectures or []:
            kind = getattr(transformers, architecture, kind)
    model = kind.from_pretrained(base, config=config, dtype="auto", trust_remote_code=False)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        whole = PeftModel.from_pretrained(model, adapters)
    missing = [str(w.message) for w in warned if "missing adapter keys" in str(w.message)]
    if missing:
        raise UnsupportedError(f"{adapters}: its adapters are not those of {base.name}: weights are missing")
    whole.merge_and_unload().save_pretrained(to)
    for file in [*_tokenizer_files(base), *_tokenizer_files(adapters)]:  # the adapters' own where they have one
        shutil.copyfile(file, to / file.name)


def _tokenizer_files(folder: Path) -> list[Path]:
    names = ("tokenizer", "special_tokens", "vocab", "merges", "spiece", "chat_template")
    return [
        file for file in folder.iterdir() if file.is_file() and (file.name.startswith(names) or file.suffix == ".model")
    ]


def _classes(adapters: Path) -> int:
    """Return how many classes the head has that was saved with adapters; 0 where there is none."""
    from safetensors import safe_open

    file = adapters / "adapter_model.safetensors"
    if file.is_file():
        with safe_open(file, "pt") as held:
            for name in held.keys():  # noqa: SIM118 - it is no mapping
                if name.endswith(("score.weight", "classifier.weight", "out_proj.weight")):
                    return int(held.get_slice(name).get_shape()[0])
    return 0
