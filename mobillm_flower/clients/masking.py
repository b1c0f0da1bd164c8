"""A device's sums under masks: what the server gets of it is the sum of a group."""

from __future__ import annotations

from collections.abc import Callable

from mobillm_flower.clients.device import Device
from mobillm_flower.config import ALWAYS, NEVER
from mobillm_flower.core.sums import Words
from mobillm_flower.errors import MismatchError, PolicyRefused
from mobillm_flower.wire.secure_sums import Offer, SecureSumsDevice


def answer_secure_sum(
    device: Device, message: bytes, *, run: int, purpose: Callable[[], str], make: Callable[[], Words]
) -> bytes:
    """Answer one phase of a secure sum.

    Parameters
    ----------
    device : Device
        Whose folder keeps what the phases have in common. If it promises anything, sums of other runs count, too.
    message : bytes
        The server's.
    run : int
        Flower's id of the run.
    purpose, make : callable
        Called in the phase `masked sums` alone: what is asked to be summed, and the device's own part of it.

    Raises
    ------
    MismatchError, ReleaseRefused, PolicyRefused
        See `SecureSumsDevice.answer`; and what `make` raises.
    """
    if device.settings.privacy.secure_sums == NEVER:
        raise PolicyRefused(f"this device's settings say privacy.secure-sums={NEVER}; set it as the server's")

    def vector(offer: Offer) -> Words:
        if offer.purpose != purpose():
            raise MismatchError(
                "the secure sum was offered for another task, extraction or rounding than is asked for now"
            )
        return make()

    return _side(device, run).answer(message, vector)


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
