"""All settings of a run together."""

from __future__ import annotations

from dataclasses import dataclass, field

from mobillm_flower.config.parts.backbone import BackboneSettings
from mobillm_flower.config.parts.continual import ContinualSettings
from mobillm_flower.config.parts.data import DataSettings, TaskSettings
from mobillm_flower.config.parts.run import ArrivalSettings, BaselineSettings, RoundSettings, RunSettings, StopSettings
from mobillm_flower.config.parts.training import CacheSettings, LossSettings, SideNetworkSettings, TrainerSettings
from mobillm_flower.config.parts.uploads import ActivationSettings, PrivacySettings


@dataclass
class Settings:
    """All settings of a run.

    Parameters
    ----------
    preset : str
        Which settings to start from: a paper's (pae, mobillm, fed), upper-layers or analytic.
    strategy : str
        pae, mobillm, fed, analytic (only sums leave a device), or a registered one; with a baseline's app also
        fed-lora, fed-bitfit, fed-kseed, split-fed, upload-all.
    backbone : BackboneSettings
        The frozen language model.
    data : DataSettings
        Where samples come from.
    task : TaskSettings
        What is predicted.
    activations : ActivationSettings
        What is uploaded.
    loss : LossSettings
        What the side network is fitted to.
    side_network : SideNetworkSettings
        What is trained.
    trainer : TrainerSettings
        How it is trained.
    cache : CacheSettings
        What the server keeps.
    continual : ContinualSettings
        Tasks one after another.
    rounds : RoundSettings
        How devices are asked.
    arrivals : ArrivalSettings
        When `fed` trains, and whom it asks.
    stop : StopSettings
        What ends a run early.
    privacy : PrivacySettings
        What a device agrees to.
    peer : BaselineSettings
        What a baseline's strategy does.
    run : RunSettings
        Where it is kept.
    """

    preset: str = "pae"
    strategy: str = "pae"
    backbone: BackboneSettings = field(default_factory=BackboneSettings)
    data: DataSettings = field(default_factory=DataSettings)
    task: TaskSettings = field(default_factory=TaskSettings)
    activations: ActivationSettings = field(default_factory=ActivationSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    side_network: SideNetworkSettings = field(default_factory=SideNetworkSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    cache: CacheSettings = field(default_factory=CacheSettings)
    continual: ContinualSettings = field(default_factory=ContinualSettings)
    rounds: RoundSettings = field(default_factory=RoundSettings)
    arrivals: ArrivalSettings = field(default_factory=ArrivalSettings)
    stop: StopSettings = field(default_factory=StopSettings)
    privacy: PrivacySettings = field(default_factory=PrivacySettings)
    peer: BaselineSettings = field(default_factory=BaselineSettings)
    run: RunSettings = field(default_factory=RunSettings)
