"""Side networks: what the server trains beside a frozen backbone. Importing this package registers all of them."""

from mobillm_flower.core.side_networks.additive import AdditiveSideNetwork, FixedGatesSideNetwork
from mobillm_flower.core.side_networks.causal import CausalSideNetwork
from mobillm_flower.core.side_networks.config import (
    SIDE_NETWORKS,
    ActivationBatch,
    AlignmentSpec,
    SideNetwork,
    SideNetworkConfig,
    state_for,
)
from mobillm_flower.core.side_networks.discriminant import DiscriminantSideNetwork
from mobillm_flower.core.side_networks.low_rank import LowRankSideNetwork
from mobillm_flower.core.side_networks.upper_layers import UpperLayersSideNetwork

__all__ = [
    "SIDE_NETWORKS",
    "ActivationBatch",
    "AdditiveSideNetwork",
    "AlignmentSpec",
    "CausalSideNetwork",
    "DiscriminantSideNetwork",
    "FixedGatesSideNetwork",
    "LowRankSideNetwork",
    "SideNetwork",
    "SideNetworkConfig",
    "UpperLayersSideNetwork",
    "state_for",
]
