"""Frozen language models on the device: load, describe, run forward-only.

Names are imported when they are first used: what only handles a backbone does not load transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mobillm_flower.backbones.backbone import Backbone, Extraction
    from mobillm_flower.backbones.describe import fingerprint
    from mobillm_flower.backbones.load import load_backbone
    from mobillm_flower.backbones.memory import MemoryPlan
    from mobillm_flower.backbones.public import public_text, public_transform
    from mobillm_flower.backbones.skeleton import load_tokenizer
    from mobillm_flower.backbones.sources import BACKBONE_SOURCES, resolve_folder
    from mobillm_flower.backbones.streaming.memory_plan import plan_memory

_HOME = {
    "BACKBONE_SOURCES": "sources",
    "Backbone": "backbone",
    "Extraction": "backbone",
    "MemoryPlan": "memory",
    "fingerprint": "describe",
    "load_backbone": "load",
    "load_tokenizer": "skeleton",
    "plan_memory": "streaming.memory_plan",
    "public_text": "public",
    "public_transform": "public",
    "resolve_folder": "sources",
}

__all__ = [
    "BACKBONE_SOURCES",
    "Backbone",
    "Extraction",
    "MemoryPlan",
    "fingerprint",
    "load_backbone",
    "load_tokenizer",
    "plan_memory",
    "public_text",
    "public_transform",
    "resolve_folder",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"mobillm_flower.backbones.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
