"""Devices of the baselines that side-tuning is measured beside: they train, or send the data that they hold."""

from mobillm_flower.clients.baselines.client import BaselineClient
from mobillm_flower.clients.baselines.devices import BASELINE_DEVICES, BaselineDevice
from mobillm_flower.clients.baselines.split import SplitDevice

__all__ = ["BASELINE_DEVICES", "BaselineClient", "BaselineDevice", "SplitDevice"]
