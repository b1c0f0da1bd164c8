"""The baselines that side-tuning is measured beside, on Flower's own FedAvg."""

from mobillm_flower.strategies.baselines.base import BaselineStrategy
from mobillm_flower.strategies.baselines.fed_bitfit import FedBitFit
from mobillm_flower.strategies.baselines.fed_kseed import FedKSeed
from mobillm_flower.strategies.baselines.fed_lora import FedLoRA
from mobillm_flower.strategies.baselines.split_fed import SplitFed
from mobillm_flower.strategies.baselines.upload_all import UploadAll

__all__ = ["BaselineStrategy", "FedBitFit", "FedKSeed", "FedLoRA", "SplitFed", "UploadAll"]
