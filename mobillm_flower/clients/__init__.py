"""ClientApp factories: what runs on a device."""

from mobillm_flower.clients.side_tuning import SideTuningClient

__all__ = ["SideTuningClient"]
