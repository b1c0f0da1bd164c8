"""Flower strategies that train a side network from uploaded activations."""

from mobillm_flower.strategies.base import STRATEGIES, SideTuningStrategy, make_strategy
from mobillm_flower.strategies.baselines import FedBitFit, FedKSeed, FedLoRA, PeerStrategy, SplitFed, UploadAll
from mobillm_flower.strategies.fed import FedMobiLLM
from mobillm_flower.strategies.mobillm import MobiLLM
from mobillm_flower.strategies.pae import PaeMobiLLM

__all__ = [
    "STRATEGIES",
    "FedBitFit",
    "FedKSeed",
    "FedLoRA",
    "FedMobiLLM",
    "MobiLLM",
    "PaeMobiLLM",
    "PeerStrategy",
    "SideTuningStrategy",
    "SplitFed",
    "UploadAll",
    "make_strategy",
]
