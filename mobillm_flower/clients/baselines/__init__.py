"""Devices of the peers that side-tuning is measured beside: they train, or send what they hold."""

from mobillm_flower.clients.baselines.client import PeerClient
from mobillm_flower.clients.baselines.devices import PEER_DEVICES, PeerDevice
from mobillm_flower.clients.baselines.split import SplitDevice

__all__ = ["PEER_DEVICES", "PeerClient", "PeerDevice", "SplitDevice"]
