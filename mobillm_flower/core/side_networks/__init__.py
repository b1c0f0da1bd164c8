"""Side networks: what the server trains beside a frozen backbone. Importing this package registers all of them."""

from mobillm_flower.core.side_networks.additive import AdditiveSideNetwork, FixedGatesSideNetwork
from mobillm_flower.core.side_networks.causal import CausalSideNetwork
from mobillm_flower.core.side_networks.closed_form import ClosedFormSideNetwork
from mobillm_flower.core.side_networks.config import (
    SIDE_NETWORKS,
    AlignmentSpec,
    SideNetworkConfig,
    fields_taken,
    grown,
    needs_of,
    state_for,
)
from mobillm_flower.core.side_networks.discriminant import DiscriminantSideNetwork
from mobillm_flower.core.side_networks.low_rank import LowRankSideNetwork
from mobillm_flower.core.side_networks.orthogonal import BudgetedSideNetwork, OrthogonalSideNetwork
from mobillm_flower.core.side_networks.protocol import (
    ActivationBatch,
    AdaptsBetweenLayers,
    FitsInClosedForm,
    FittedPart,
    KeepsSums,
    LabelledBatch,
    Needs,
    Penalised,
    ReadsWholeBase,
    Remembers,
    RunsUpperLayers,
    ScalesLearningRates,
    ShowsGates,
    ShowsRanks,
    SideNetwork,
    StepsThroughTokens,
    Upper,
    attach_layers,
)
from mobillm_flower.core.side_networks.upper_layers import UpperLayersSideNetwork

__all__ = [
    "SIDE_NETWORKS",
    "ActivationBatch",
    "AdaptsBetweenLayers",
    "AdditiveSideNetwork",
    "AlignmentSpec",
    "BudgetedSideNetwork",
    "CausalSideNetwork",
    "ClosedFormSideNetwork",
    "DiscriminantSideNetwork",
    "FitsInClosedForm",
    "FittedPart",
    "FixedGatesSideNetwork",
    "KeepsSums",
    "LabelledBatch",
    "LowRankSideNetwork",
    "Needs",
    "OrthogonalSideNetwork",
    "Penalised",
    "ReadsWholeBase",
    "Remembers",
    "RunsUpperLayers",
    "ScalesLearningRates",
    "ShowsGates",
    "ShowsRanks",
    "SideNetwork",
    "SideNetworkConfig",
    "StepsThroughTokens",
    "Upper",
    "UpperLayersSideNetwork",
    "attach_layers",
    "fields_taken",
    "grown",
    "needs_of",
    "state_for",
]
