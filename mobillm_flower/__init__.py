"""Forward-only federated fine-tuning of language models for Flower.

    from mobillm_flower import FedMobiLLM, PaeMobiLLM, MobiLLM          # strategies
    from mobillm_flower import SideTuningClient                          # .app is a flwr ClientApp
    from mobillm_flower import SideTunedModel                            # backbone + side network

Names are imported when they are first used, so that a device does not load the server's code.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mobillm_flower.backbones import BACKBONE_SOURCES, load_backbone
    from mobillm_flower.clients import SideTuningClient
    from mobillm_flower.clients.baselines import BaselineClient
    from mobillm_flower.config import Settings, load_settings
    from mobillm_flower.core.codecs import CODECS
    from mobillm_flower.core.pivots import PIVOTS, pivot
    from mobillm_flower.core.side_networks import SIDE_NETWORKS
    from mobillm_flower.models.side_tuned import SideTunedModel
    from mobillm_flower.strategies import (
        STRATEGIES,
        AnalyticMobiLLM,
        FedBitFit,
        FedKSeed,
        FedLoRA,
        FedMobiLLM,
        MobiLLM,
        PaeMobiLLM,
        SideTuningStrategy,
        SplitFed,
        UploadAll,
        make_strategy,
    )
    from mobillm_flower.tasks import METRICS, TASKS, TOKEN_METRICS

__version__ = "0.1.0"

# Threads that wait for each other's part of a product spin by default. Beside other busy processes, which is what a
# simulation consists of, that makes two threads up to sixty times as slow as one. torch reads these when it is
# imported, and processes that are started from here inherit them; a value of the user's own stands.
os.environ.setdefault("GOMP_SPINCOUNT", "0")  # GNU's OpenMP, which torch's Linux builds bring
os.environ.setdefault("KMP_BLOCKTIME", "0")  # Intel's and LLVM's

_HOME = {
    "AnalyticMobiLLM": "strategies",
    "BACKBONE_SOURCES": "backbones",
    "CODECS": "core.codecs",
    "METRICS": "tasks",
    "PIVOTS": "core.pivots",
    "SIDE_NETWORKS": "core.side_networks",
    "STRATEGIES": "strategies",
    "TASKS": "tasks",
    "TOKEN_METRICS": "tasks",
    "FedBitFit": "strategies",
    "FedKSeed": "strategies",
    "FedLoRA": "strategies",
    "FedMobiLLM": "strategies",
    "MobiLLM": "strategies",
    "PaeMobiLLM": "strategies",
    "BaselineClient": "clients.baselines",
    "Settings": "config",
    "SideTunedModel": "models.side_tuned",
    "SideTuningClient": "clients",
    "SideTuningStrategy": "strategies",
    "SplitFed": "strategies",
    "UploadAll": "strategies",
    "load_backbone": "backbones",
    "load_settings": "config",
    "make_strategy": "strategies",
    "pivot": "core.pivots",
}

__all__ = [
    "BACKBONE_SOURCES",
    "CODECS",
    "METRICS",
    "PIVOTS",
    "SIDE_NETWORKS",
    "STRATEGIES",
    "TASKS",
    "TOKEN_METRICS",
    "AnalyticMobiLLM",
    "BaselineClient",
    "FedBitFit",
    "FedKSeed",
    "FedLoRA",
    "FedMobiLLM",
    "MobiLLM",
    "PaeMobiLLM",
    "Settings",
    "SideTunedModel",
    "SideTuningClient",
    "SideTuningStrategy",
    "SplitFed",
    "UploadAll",
    "load_backbone",
    "load_settings",
    "make_strategy",
    "pivot",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"mobillm_flower.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
