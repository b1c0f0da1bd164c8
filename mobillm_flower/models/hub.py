"""Saved side networks on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from mobillm_flower.errors import UnsupportedError
from mobillm_flower.models.saved import CARD, CONFIG, WEIGHTS

FILES = (CONFIG, WEIGHTS, CARD)
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def saved_folder(name: str | Path, revision: str = "") -> Path:
    """Return the folder of a saved side network: the one named, or a copy of a repository of the hub.

    Parameters
    ----------
    name : path
        A folder, or "user/name" on the hub; a folder that exists is taken first.
    revision : str
        On the hub: a branch, a tag or a commit.

    Raises
    ------
    UnsupportedError
        The hub did not give it.
    """
    if Path(name).exists() or not isinstance(name, str) or not _HUB_ID.fullmatch(name):
        return Path(name)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(FILES)))
    except Exception as error:  # of requests, of the file system, of the hub
        raise UnsupportedError(
            f"{name!r} is no folder here, and the Hugging Face hub did not give it ({type(error).__name__}); check the "
            "spelling and the connection, and log in with `hf auth login` where it is private"
        ) from error


def push_folder(folder: Path, name: str, *, private: bool, token: str | None, message: str) -> str:
    """Upload a saved side network's files; returns the address of the commit.

    Raises
    ------
    UnsupportedError
        The name is not of the form user/name, or the hub refused.
    """
    from huggingface_hub import HfApi

    if not _HUB_ID.fullmatch(name):
        raise UnsupportedError(f"{name!r} is no name of a repository; give user/name")
    hub = HfApi(token=token)
    try:
        hub.create_repo(name, private=private, exist_ok=True)
        commit = hub.upload_folder(repo_id=name, folder_path=folder, commit_message=message, allow_patterns=list(FILES))
    except Exception as error:
        raise UnsupportedError(
            f"the Hugging Face hub did not take {name!r} ({type(error).__name__}); log in with `hf auth login`, with a "
            "token that may write"
        ) from error
    return str(commit.commit_url)
