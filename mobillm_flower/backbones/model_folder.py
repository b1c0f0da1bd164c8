"""A model folder as people keep it: where in it the model is, and whether its files are all there and whole."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mobillm_flower.backbones.git_lfs import is_pointer
from mobillm_flower.errors import MobiLLMError, UnsupportedError

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_AGAIN = "fetch the model anew"


def model_folder(folder: Path) -> Path:
    """Return the folder that holds transformers' model.

    Of a sentence-transformers model that is the folder of its transformer, of PEFT adapters the one where they are
    merged onto their base.

    Raises
    ------
    UnsupportedError
        There is no model, or a file of it is missing, cut short, or a Git LFS pointer.
    """
    if not (folder / "config.json").is_file() and (folder / "modules.json").is_file():
        folder = _first_module(folder)
    for file in sorted(folder.iterdir()):
        if file.is_file() and is_pointer(file):
            raise UnsupportedError(f"{file} is a Git LFS pointer, not the file itself; run `git lfs pull` in {folder}")
    if (folder / "adapter_config.json").is_file() and not list(folder.glob("model*.safetensors")):
        from mobillm_flower.backbones.adapters import merged_folder

        return merged_folder(folder)
    if not (folder / "config.json").is_file():
        packed = sorted(folder.glob("*.gguf"))
        hint = f"; give one of its GGUF files, such as {packed[0]}" if packed else ""
        raise UnsupportedError(
            f"{folder} holds no config.json; a model's folder is what save_pretrained of transformers writes{hint}"
        )
    check_weights(folder)
    return folder


def check_weights(folder: Path) -> None:
    """Refuse weight files that are missing or cut short, as far as their indices and headers tell."""
    for index in folder.glob("*.index.json"):
        shards = sorted(set(map(str, _mapping(_mapping(read_json(index), index).get("weight_map"), index).values())))
        missing = [name for name in shards if not (folder / Path(name).name).is_file()]
        if missing:
            raise UnsupportedError(
                f"{folder} lacks {len(missing)} of the {len(shards)} files that {index.name} names, {missing[0]} for "
                f"one; {_AGAIN}"
            )
    for file in folder.glob("*.safetensors"):
        _check_safetensors(file)


def _check_safetensors(file: Path) -> None:
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        content = stream.read(length) if 8 + length <= size else b""
    try:
        entries = [entry for name, entry in json.loads(content).items() if name != "__metadata__"]
        end = 8 + length + max((int(entry["data_offsets"][1]) for entry in entries), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise UnsupportedError(f"{file} is no whole safetensors file: its header cannot be read; {_AGAIN}") from error
    if end != size:
        raise UnsupportedError(f"{file} has {size:,} bytes where its header names {end:,}; {_AGAIN}")


def read_json(file: Path) -> Any:
    """Return the content of a model's JSON file; raises UnsupportedError where it cannot be read."""
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UnsupportedError(f"{file} is no JSON ({type(error).__name__}); {_AGAIN}") from error


def _mapping(value: Any, file: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UnsupportedError(f"{file} does not hold what transformers writes there; {_AGAIN}")
    return value


def _first_module(folder: Path) -> Path:
    """Return the folder of the transformer in a folder of sentence-transformers."""
    modules = read_json(folder / "modules.json")
    for module in modules if isinstance(modules, list) else []:
        path = module.get("path") if isinstance(module, dict) else None
        inner = folder / path if isinstance(path, str) else folder
        inside = inner.resolve().is_relative_to(folder.resolve()) and (inner / "config.json").is_file()
        if inside and any(list(inner.glob(pattern)) for pattern in _WEIGHTS):
            return inner
    raise UnsupportedError(
        f"{folder} is a folder of sentence-transformers, but none of the modules in its modules.json is a transformer"
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars and notes about unused heads off the terminal while a model loads."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


@contextlib.contextmanager
def reading(folder: Path, what: str) -> Iterator[None]:
    """Say in one sentence what transformers cannot load, whatever it raises about it.

    Raises
    ------
    UnsupportedError
        Of any error but our own and a lack of memory.
    """
    try:
        yield
    except (MobiLLMError, MemoryError):
        raise
    except Exception as error:  # of a damaged file transformers, tokenizers and torch raise many things
        said = (str(error).strip().splitlines() or [""])[0][:300]
        raise UnsupportedError(
            f"{folder.name}: transformers cannot load its {what} ({type(error).__name__}: {said}); if a file is "
            f"damaged, {_AGAIN}"
        ) from error
