"""A device's sums under masks: what the server gets of it is the sum of a group."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mobillm_flower.clients.device import Device
from mobillm_flower.clients.summing import make_sums
from mobillm_flower.config import ALWAYS, NEVER
from mobillm_flower.errors import MismatchError, PolicyRefused
from mobillm_flower.wire.masked import purpose_of
from mobillm_flower.wire.secure_sums import Offer, SecureSumsDevice
from mobillm_flower.wire.sums import SumsRequest


def answer_secure_sum(device: Device, request: SumsRequest, message: bytes, *, run: int) -> tuple[bytes, float]:
    """Answer one phase of a secure sum; returns the answer, and seconds of the forward pass.

    Parameters
    ----------
    device : Device
        Whose folder keeps what the phases have in common. If it promises anything, sums of other runs count, too.
    request : SumsRequest
        What is summed.
    message : bytes
        The server's.
    run : int
        Flower's id of the run.

    Raises
    ------
    MismatchError, ReleaseRefused, PolicyRefused
        See `SecureSumsDevice.answer` and `make_sums`.
    """
    private, seconds = device.settings.privacy, 0.0
    if private.secure_sums == NEVER:
        raise PolicyRefused(f"this device's settings say privacy.secure-sums={NEVER}; set it as the server's")

    def vector(offer: Offer) -> NDArray[np.unsignedinteger]:
        nonlocal seconds
        device.agree(request.contract, request.spec)
        if offer.purpose != purpose_of(request):
            raise MismatchError(
                "the secure sum was offered for another task, extraction or rounding than is asked for now"
            )
        made = make_sums(device, request.spec, request.sums, held=request.held)
        seconds = made.forward_seconds
        return made.words

    return _side(device, run).answer(message, vector), seconds


def forget_secure_sums(device: Device, run: int) -> None:
    """Delete what is left of secure sums that are over."""
    _side(device, run).forget()


def require_plain(device: Device) -> None:
    """Refuse to send a sum of its own where the device's settings ask for secure sums; raises PolicyRefused."""
    if device.settings.privacy.secure_sums == ALWAYS:
        raise PolicyRefused(
            f"this device's settings say privacy.secure-sums={ALWAYS}, and the server asks for the device's own sums; "
            "set it on the server, too"
        )


def _side(device: Device, run: int) -> SecureSumsDevice:
    return SecureSumsDevice(
        device.folder.path,
        device.folder.identity,
        run=run,
        minimum=device.settings.privacy.secure_sums_devices,
        across_runs=device.promises,
    )
