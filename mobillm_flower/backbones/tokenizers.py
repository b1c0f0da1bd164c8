"""Whether a model's folder has a tokenizer: transformers makes an empty one where it has none."""

from __future__ import annotations

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
