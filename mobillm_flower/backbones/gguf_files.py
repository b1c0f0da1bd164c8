"""A GGUF file as a backbone: its weights are read once, and kept as an ordinary model folder."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
from pathlib import Path
from typing import Any

from mobillm_flower.backbones.describe import GGUF_FOLDER, file_digest, is_causal
from mobillm_flower.backbones.git_lfs import is_pointer
from mobillm_flower.backbones.kept import kept_folder
from mobillm_flower.backbones.model_folder import quiet, reading
from mobillm_flower.errors import UnsupportedError

_LARGEST_HALF = 65504.0


def is_gguf(name: str) -> bool:
    """Whether a backbone's name is that of a GGUF file, local or on the hub."""
    return name.lower().endswith(".gguf")


def gguf_file(name: str, revision: str = "") -> Path:
    """Return a GGUF file by its path, or by hub id and file name, such as `user/repository/file.gguf`.

    Raises
    ------
    UnsupportedError
        There is no such file, and the hub did not give it.
    """
    local = Path(name).expanduser()
    if local.is_file():
        return local.resolve()
    parts = name.split("/")
    if len(parts) < 3 or not all(parts):
        raise UnsupportedError(
            f"backbone.name={name!r}: there is no such file; give the path of a GGUF file, or a hub id with a file "
            "name, such as user/repository/file.gguf"
        )
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download("/".join(parts[:2]), "/".join(parts[2:]), revision=revision or None))
    except Exception as error:
        raise UnsupportedError(
            f"backbone.name={name!r} is no local file, and the hub did not give it ({type(error).__name__}); check the "
            "spelling, or give the path of a GGUF file"
        ) from error


def gguf_folder(file: Path) -> Path:
    """Return the model folder made of a GGUF file: its weights unpacked as safetensors, its tokenizer and template.

    It is made once, named by the file's SHA-256, and kept in the user's cache. Weights are kept in float16, which is
    finer than any packed format of GGUF; in float32 where one is too large for it.

    Raises
    ------
    UnsupportedError
        The package `gguf` is not installed, or transformers cannot read the file.
    """
    if is_pointer(file):
        raise UnsupportedError(f"{file} is a Git LFS pointer, not the file itself; run `git lfs pull` there")
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise UnsupportedError(f"{file} is no GGUF file; fetch it anew")
    if re.search(r"-\d{5}-of-\d{5}\.gguf$", file.name, re.IGNORECASE):
        raise UnsupportedError(
            f"{file.name} is a part of a split model; join the parts with `llama-gguf-split --merge`"
        )
    return kept_folder(f"{GGUF_FOLDER}{file_digest(file).hex()}", lambda folder: _unpack(file, folder))


def _unpack(file: Path, to: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise UnsupportedError(
            f"{file.name} needs the package `gguf` to be read: pip install 'mobillm-flower[lm]'; only once, the "
            "weights are kept afterwards"
        )
    import torch
    import transformers

    given: dict[str, Any] = {"gguf_file": file.name, "trust_remote_code": False}
    packed = getattr(transformers, "GgufConfig", None)  # without it transformers unpacks always
    # transformers draws its progress on stderr
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        config = _config(file, given)
        kind: Any = transformers.AutoModel
        if is_causal(config):
            seq2seq, causal = transformers.AutoModelForSeq2SeqLM, transformers.AutoModelForCausalLM
            kind = seq2seq if config.is_encoder_decoder else causal
        for dtype in (torch.float16, torch.float32):
            unpacked = {"quantization_config": packed(dequantize=True)} if packed else {}
            with reading(file, f"weights as {config.model_type}"):
                model, info = kind.from_pretrained(
                    file.parent, dtype=dtype, output_loading_info=True, **unpacked, **given
                )
            if all(float(value.detach().abs().amax()) <= _LARGEST_HALF for value in model.parameters()):
                break
        lacking = sorted(key for key in info["missing_keys"] if "pooler" not in key)
        if lacking:
            raise UnsupportedError(f"{file.name}: the weights lack {', '.join(lacking[:3])}; fetch the model anew")
        with reading(file, "tokenizer"):
            tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, **given)
        model.save_pretrained(to)
        tokenizer.save_pretrained(to)


def _config(file: Path, given: dict[str, Any]) -> Any:
    """Return transformers' configuration of a GGUF file, or say which architecture it does not know."""
    import transformers

    with reading(file, "configuration"):
        try:
            return transformers.AutoConfig.from_pretrained(file.parent, **given)
        except ValueError as error:
            unknown = re.search(r"architecture (\S{1,40}) is not supported", str(error))
            if unknown is None:
                raise
            raise UnsupportedError(
                f"{file.name} is a model of architecture {unknown[1]!r}, which transformers {transformers.__version__} "
                "cannot read from GGUF; give the model's own folder or hub id (safetensors), if it has one"
            ) from error
