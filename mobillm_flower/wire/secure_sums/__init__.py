"""Secure sums: the server learns the sum of a group's vectors mod 2³² or 2⁶⁴, and no device's own.

SecAgg (Bonawitz et al. 2017) with few neighbours a device (Bell et al. 2020, ePrint 2020/704). What each party learns,
also when the server lies: docs/explanation/secure-sums.md.
"""

from mobillm_flower.wire.secure_sums.device import SecureSumsDevice, Vector
from mobillm_flower.wire.secure_sums.messages import PHASES, Offer
from mobillm_flower.wire.secure_sums.server import SecureSumsServer

__all__ = ["PHASES", "Offer", "SecureSumsDevice", "SecureSumsServer", "Vector"]
