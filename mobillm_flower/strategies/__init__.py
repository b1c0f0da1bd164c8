"""Flower strategies that train a side network from uploaded activations."""

from mobillm_flower.strategies.analytic import AnalyticMobiLLM
from mobillm_flower.strategies.baselines import BaselineStrategy, FedBitFit, FedKSeed, FedLoRA, SplitFed, UploadAll
from mobillm_flower.strategies.fed import FedMobiLLM
from mobillm_flower.strategies.mobillm import MobiLLM
from mobillm_flower.strategies.pae import PaeMobiLLM
from mobillm_flower.strategies.registry import STRATEGIES, make_strategy
from mobillm_flower.strategies.side_tuning import SideTuningStrategy

__all__ = [
    "STRATEGIES",
    "AnalyticMobiLLM",
    "BaselineStrategy",
    "FedBitFit",
    "FedKSeed",
    "FedLoRA",
    "FedMobiLLM",
    "MobiLLM",
    "PaeMobiLLM",
    "SideTuningStrategy",
    "SplitFed",
    "UploadAll",
    "make_strategy",
]
