"""A checkpoint of the trainer: written atomically, read back for the same options alone."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from mobillm_flower.core.placement import CPU
from mobillm_flower.errors import CacheError
from mobillm_flower.runs.files import write_atomically
from mobillm_flower.server.options import Position, TrainerOptions

_MAGIC = b"mobillm checkpoint\n"  # then 32 bytes of SHA-256 over what follows
_HEAD = len(_MAGIC) + 32
_BEFORE = {"validation_key": ""}  # options that checkpoints of earlier releases lack


@dataclass(frozen=True)
class Checkpoint:
    """What training goes on from.

    No generator and no scheduler is part of it: what is drawn depends on the seed and the position alone, and so does
    the learning rate.

    Parameters
    ----------
    network, live : mapping of str to Tensor
        Averaged and trained weights.
    optimizer : mapping
        AdamW's state by parameter name.
    best : dict or None
        Averaged weights of the best epoch.
    position : Position
        Where training stands.
    options : TrainerOptions
        What it was trained with.
    """

    network: Mapping[str, Tensor]
    live: Mapping[str, Tensor]
    optimizer: Mapping[str, Mapping[str, Tensor]]
    best: dict[str, Tensor] | None
    position: Position
    options: TrainerOptions


def write_checkpoint(file: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; the file is either the old one or the new one, also after a crash."""
    values = {item.name: getattr(checkpoint, item.name) for item in dataclasses.fields(checkpoint)}
    values |= {"position": asdict(checkpoint.position), "options": asdict(checkpoint.options)}
    buffer = io.BytesIO()
    torch.save(values, buffer)
    data = buffer.getvalue()
    write_atomically(file, _MAGIC + hashlib.sha256(data).digest() + data)


def read_checkpoint(file: Path, options: TrainerOptions) -> Checkpoint:
    """Read a checkpoint onto the CPU.

    Raises
    ------
    CacheError
        It cannot be read, or was made with other options.
    """
    try:
        data = file.read_bytes()
        if data.startswith(_MAGIC):  # those of earlier releases have no digest
            digest, data = data[len(_MAGIC) : _HEAD], data[_HEAD:]
            if hashlib.sha256(data).digest() != digest:
                raise ValueError("other bytes than were written")
        saved = torch.load(io.BytesIO(data), map_location=CPU, weights_only=True)
        theirs, position = saved["options"], Position(**saved["position"])
    except (OSError, RuntimeError, EOFError, LookupError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise CacheError(
            f"checkpoint {file} cannot be read ({type(error).__name__}); move it away to train anew"
        ) from error
    mine = asdict(options)
    # the schedule is laid out anew when all samples are there
    different = sorted(key for key in mine if key != "planned_steps" and mine[key] != theirs.get(key, _BEFORE.get(key)))
    if different:
        raise CacheError(
            f"checkpoint {file} was made with another {', '.join(different)}; use the run's settings, or another "
            "run folder"
        )
    return Checkpoint(**{**saved, "position": position, "options": options})
