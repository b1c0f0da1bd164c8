"""Git LFS pointers: what a clone holds in place of a large file that was not fetched."""

from __future__ import annotations

from pathlib import Path

_START = b"version https://git-lfs.github.com/spec/"


def is_pointer(file: Path) -> bool:
    """Whether a file is a Git LFS pointer; raises OSError where it cannot be opened."""
    with file.open("rb") as stream:
        return stream.read(len(_START)) == _START
