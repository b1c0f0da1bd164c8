"""Frozen language models on the device: load, describe, run forward-only."""

from mobillm_flower.backbones.backbone import Backbone, Extraction
from mobillm_flower.backbones.describe import fingerprint
from mobillm_flower.backbones.load import load_backbone
from mobillm_flower.backbones.memory import MemoryPlan
from mobillm_flower.backbones.public import public_text, public_transform
from mobillm_flower.backbones.skeleton import load_tokenizer, skeleton
from mobillm_flower.backbones.sources import BACKBONE_SOURCES, resolve_folder
from mobillm_flower.backbones.streaming.memory_plan import plan_memory

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
    "skeleton",
]
