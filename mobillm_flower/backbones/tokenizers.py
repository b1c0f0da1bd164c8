"""Whether a model's folder has a tokenizer, of that model: transformers makes an empty one where it has none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mobillm_flower.errors import UnsupportedError


def require_tokenizer(folder: Path, tokenizer: Any) -> None:
    """Refuse a folder without the files of its tokenizer: every text would be read as unknown words.

    Raises
    ------
    UnsupportedError
        None of the files that a tokenizer of this class is made from is there.
    """
    own = sorted({str(name) for name in getattr(tokenizer, "vocab_files_names", {}).values()})
    if own and not any((folder / name).exists() for name in ("tokenizer.json", *own)):
        files = ", ".join(dict.fromkeys(["tokenizer.json", *own]))
        raise UnsupportedError(
            f"{folder.name} has no tokenizer (none of {files}), and would read every text as unknown words; write "
            "the model's own there with tokenizer.save_pretrained(folder)"
        )


def require_embedded(samples: Sequence[Mapping[str, Sequence[int]]], tokenizer: Any, config: Any, name: str) -> None:
    """Refuse tokens and token types for which a model has no embedding.

    Raises
    ------
    UnsupportedError
        The tokenizer is another model's, or marks second texts that the model cannot tell from first ones. The token's
        number is named, not its text.
    """
    known, types = getattr(config, "vocab_size", None), getattr(config, "type_vocab_size", None)
    most = max((max(sample["input_ids"], default=0) for sample in samples), default=0)
    if isinstance(known, int) and most >= known:
        raise UnsupportedError(
            f"{name}: its tokenizer gives token {most}, and the model has embeddings for {known} tokens, 0 to "
            f"{known - 1}: the tokenizer ({len(tokenizer)} tokens) is not this model's; put the model's own into its "
            "folder, or resize the model's embeddings with the training that goes with it"
        )
    kind = max((max(sample.get("token_type_ids", ()), default=0) for sample in samples), default=0)
    if isinstance(types, int) and 0 < types <= kind:
        raise UnsupportedError(
            f"{name}: its tokenizer gives token type {kind}, and the model has embeddings for {types} token type(s); "
            "let a prompt hold both texts, task.prompt='{text} {text_pair}', or put the model's own tokenizer into its "
            "folder"
        )
