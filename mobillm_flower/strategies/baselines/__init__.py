"""The peers that side-tuning is measured beside, on Flower's own FedAvg."""

from mobillm_flower.strategies.baselines.peers import FedBitFit, FedKSeed, FedLoRA, PeerStrategy, UploadAll
from mobillm_flower.strategies.baselines.split import SplitFed

__all__ = ["FedBitFit", "FedKSeed", "FedLoRA", "PeerStrategy", "SplitFed", "UploadAll"]
