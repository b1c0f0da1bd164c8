"""What the devices of a fleet have in common: what the server's settings say, and beyond them what most devices say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from mobillm_flower.config import CHOOSERS, Settings
from mobillm_flower.core.backbone_info import BackboneInfo
from mobillm_flower.errors import MismatchError, MobiLLMError
from mobillm_flower.strategies.device_state import DeviceState
from mobillm_flower.tasks.task import contract_by_settings
from mobillm_flower.wire.contract import TaskContract
from mobillm_flower.wire.messages import DeviceDescription

Fits = Callable[[TaskContract, Mapping[str, BackboneInfo]], None]
"""Raises MobiLLMError where the server could not train for these backbone types together."""

T = TypeVar("T")
MAX_TYPES = 32
"""Most backbone types of a run."""
_MOST_TIMES = 4  # times as many devices has the largest type at most, where the settings name one model for all


class Agreement:
    """The task and the backbone types of a run; what one device says alone changes nothing for the others.

    Before it is settled, devices are compared with the server's settings only. `settle` then counts: the task that most
    devices have, and for each backbone type what most of its devices say of it.

    Parameters
    ----------
    settings : Settings
        The server's.
    fits : callable
        See `Fits`.

    Attributes
    ----------
    contract : TaskContract or None
        The task; None before `settle`.
    """

    def __init__(self, settings: Settings, fits: Fits) -> None:
        self._settings, self._fits = settings, fits
        self.contract: TaskContract | None = None
        self._types: dict[str, BackboneInfo] = {}

    def take_over(self, contract: TaskContract, types: Mapping[str, BackboneInfo]) -> None:
        """Go on with what a run has settled before, if the settings still say the same."""
        if contract_by_settings(self._settings, contract) == contract:
            self.contract, self._types = contract, dict(types)

    def require(self, description: DeviceDescription) -> None:
        """Check a device against what is fixed so far; raises MismatchError."""
        said = description.contract
        if self.contract is not None:
            self.contract.require_same(said, mine="in the fleet", theirs="on the device")
        else:
            contract_by_settings(self._settings, said).require_same(
                said, mine="in the server's settings", theirs="on the device"
            )
        known = self._types.get(description.backbone.fingerprint)
        if known is not None and _shape(known) != _shape(description.backbone):
            raise MismatchError(
                f"the device describes backbone type {known.fingerprint[:12]} with {_said(description.backbone)}, in "
                f"this run it has {_said(known)}; give the device the model that the others have"
            )

    def add(self, backbone: BackboneInfo) -> None:
        """Note a type that joins a run which is settled; raises MismatchError where there are too many."""
        if self.contract is not None and backbone.fingerprint not in self._types:
            if len(self._types) >= MAX_TYPES:
                raise MismatchError(f"the run has {MAX_TYPES} backbone types already, the most that it takes")
            self._types[backbone.fingerprint] = backbone

    def agreed(self, backbone: BackboneInfo) -> BackboneInfo:
        """Return a device's backbone with the p_b that most devices of its type have; it decides what all are asked."""
        known = self._types.get(backbone.fingerprint, backbone)
        return replace(backbone, base_prediction=known.base_prediction)

    def settle(self, devices: Sequence[DeviceState]) -> dict[int, str]:
        """Fix task and types by majority; returns why nodes do not fit, by node.

        Of two that as many devices have, the one with the lowest node wins. Types come in by the number of their
        devices, small ones first: one that the server could not train beside those before it is left out. So is one of
        few devices where the settings name one model for all, since each type shapes what all are asked.
        """
        if self.contract is not None or not devices:
            return {}
        self.contract = _most(devices, lambda device: device.description.contract)
        refused = self._refusals(devices)
        kept = [device for device in devices if device.node_id not in refused]
        largest = 0
        shapes, misfits, reasons = {}, {}, {}  # type: dict[str, BackboneInfo], dict[str, BackboneInfo], dict[int, str]
        for name in _ranked(kept, lambda device: device.description.backbone.fingerprint, size=_size):
            of_type = [device for device in kept if device.description.backbone.fingerprint == name]
            shape = _most(of_type, lambda device: _shape(device.description.backbone))
            alike = [device for device in of_type if _shape(device.description.backbone) == shape]
            base = _most(alike, lambda device: device.description.backbone.base_prediction)
            info = next(d.description.backbone for d in alike if d.description.backbone.base_prediction == base)
            try:
                if _MOST_TIMES * len(of_type) < largest and self._settings.backbone.name not in CHOOSERS:
                    raise MismatchError(self._says_one_model(info))
                if len(shapes) == MAX_TYPES:
                    raise MismatchError(f"a run takes at most {MAX_TYPES} backbone types, those of most devices")
                self._fits(self.contract, {**shapes, name: info})
                shapes[name] = info
                largest = largest or len(of_type)
            except MobiLLMError as error:
                misfits[name] = info
                reasons |= {device.node_id: str(error) for device in of_type}
        if not shapes:  # the settings are wrong, not the devices: making the plan says so
            self._types, reasons = dict(list(misfits.items())[:1]), {}
        else:
            self._types = shapes
        return {**refused, **self._refusals(kept), **reasons}

    def _says_one_model(self, info: BackboneInfo) -> str:
        return (
            f"backbone.name={self._settings.backbone.name} names one model for all, and most devices have another type "
            f"than {info.fingerprint[:12]} with {info.depth} layers; give the device theirs, or let the run have "
            "backbone.name=auto and the models that devices may have as backbone.choices"
        )

    def _refusals(self, devices: Iterable[DeviceState]) -> dict[int, str]:
        reasons: dict[int, str] = {}
        for device in devices:
            try:
                self.require(device.description)
            except MismatchError as error:
                reasons[device.node_id] = str(error)
        return reasons


def _shape(backbone: BackboneInfo) -> BackboneInfo:
    """Return what is the same for all devices of a type, whatever they call it and wherever p_b comes from."""
    return replace(backbone, name="", revision="", precision="", base_prediction="")


def _said(backbone: BackboneInfo) -> str:
    return (
        f"{backbone.depth} layers of width {backbone.width}, family {backbone.family!r}, causal {backbone.causal}, "
        f"vocabulary {backbone.vocabulary}, head width {backbone.head_width}"
    )


def _size(device: DeviceState) -> int:
    return device.description.backbone.depth * device.description.backbone.width


def _ranked(
    devices: Sequence[DeviceState],
    value: Callable[[DeviceState], T],
    *,
    size: Callable[[DeviceState], int] = lambda _device: 0,
) -> list[T]:
    """Return the values of devices: those of most devices first, then the smallest, then that of the lowest node."""
    counts = Counter(value(device) for device in devices)
    first: dict[T, tuple[int, int]] = {}
    for device in sorted(devices, key=lambda device: (size(device), device.node_id)):
        first.setdefault(value(device), (size(device), device.node_id))
    return sorted(counts, key=lambda one: (-counts[one], first[one]))


def _most(devices: Sequence[DeviceState], value: Callable[[DeviceState], T]) -> T:
    return _ranked(devices, value)[0]
