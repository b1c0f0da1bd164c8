"""Typed settings: one dataclass a part, presets for the papers, validated where they enter."""

from mobillm_flower.config.lists import list_text
from mobillm_flower.config.load import (
    PRESETS,
    flat,
    is_list,
    load_settings,
    run_folder,
    setting_key,
    setting_keys,
    setting_sources,
    to_yaml,
    unquoted,
)
from mobillm_flower.config.parts.backbone import CHOOSERS, BackboneSettings, EngineName, Precision
from mobillm_flower.config.parts.continual import ContinualSettings
from mobillm_flower.config.parts.data import BadRows, DataSettings, Partition, TaskSettings
from mobillm_flower.config.parts.run import ArrivalSettings, BaselineSettings, RoundSettings, RunSettings, StopSettings
from mobillm_flower.config.parts.training import (
    CacheSettings,
    LossSettings,
    Objective,
    SideNetworkSettings,
    TrainerSettings,
)
from mobillm_flower.config.parts.uploads import ALWAYS, NEVER, ActivationSettings, PrivacySettings
from mobillm_flower.config.settings import Settings

__all__ = [
    "ALWAYS",
    "CHOOSERS",
    "NEVER",
    "PRESETS",
    "ActivationSettings",
    "ArrivalSettings",
    "BackboneSettings",
    "BadRows",
    "BaselineSettings",
    "CacheSettings",
    "ContinualSettings",
    "DataSettings",
    "EngineName",
    "LossSettings",
    "Objective",
    "Partition",
    "Precision",
    "PrivacySettings",
    "RoundSettings",
    "RunSettings",
    "Settings",
    "SideNetworkSettings",
    "StopSettings",
    "TaskSettings",
    "TrainerSettings",
    "flat",
    "is_list",
    "list_text",
    "load_settings",
    "run_folder",
    "setting_key",
    "setting_keys",
    "setting_sources",
    "to_yaml",
    "unquoted",
]
