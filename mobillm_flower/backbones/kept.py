"""Model folders that are made once and kept in the user's cache for later processes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock


def cache_folder() -> Path:
    """Return where what can be made again is kept: below XDG_CACHE_HOME, by default ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mobillm-flower"


def kept_folder(name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder of the cache; the first process that asks for it makes it, others wait.

    It comes to its place in one step, so that a folder that is there is whole. Its owner alone can read it.

    Parameters
    ----------
    name : str
        Its name, which says everything that its content depends on.
    make : callable
        Writes the content into the empty folder that it is given.
    """
    cache = cache_folder()
    kept = cache / name
    if kept.is_dir():
        return kept
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    with FileLock(cache / f".{name}.lock", mode=0o600), tempfile.TemporaryDirectory(dir=cache) as held:
        if not kept.is_dir():  # another process was faster
            draft = Path(held) / "made"
            draft.mkdir(mode=0o700)
            make(draft)
            for path in draft.rglob("*"):
                path.chmod(0o700 if path.is_dir() else 0o600)
            draft.rename(kept)
    return kept
