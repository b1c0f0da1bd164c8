"""How a run's samples are added up, from its settings: both sides derive it, and compare."""

from __future__ import annotations

import math

from mobillm_flower.config import Settings
from mobillm_flower.errors import SettingsError
from mobillm_flower.privacy.accounting import Guarantee, sums_sigma
from mobillm_flower.wire.contract import ExtractionSpec, TaskContract
from mobillm_flower.wire.sums import SumsSpec

INTERCEPT = 0.2
"""κ, the share of a vector's length that is a constant where Σz and Σt are not sent."""
_LATER = 2  # times the fleet's samples that a sum has room for
_LEAST_ROOM = 1 << 16  # so that fleets of up to half as many samples round alike, and one device less changes no digit


def sums_spec(settings: Settings, contract: TaskContract, spec: ExtractionSpec, *, capacity: int) -> SumsSpec:
    """Return how samples of a backbone type are added up under these settings.

    Parameters
    ----------
    settings : Settings
        The server's or the device's own.
    contract, spec
        The task, and what is read of the backbone.
    capacity : int
        Most samples of the fleet; see `room_for`.
    """
    private, epsilon = settings.privacy, float(settings.privacy.central_epsilon)
    rows = (private.device_rows or private.min_samples) if epsilon and private.unit == "device" else 0
    low, high = contract.label_range or (0.0, 1.0)
    bound = high - low
    if contract.labels:
        bound = math.sqrt(1 - 1 / len(contract.labels)) if spec.constant_base and len(contract.labels) > 1 else 2**0.5
    return SumsSpec(
        width=spec.row_shape[2] + (1 if epsilon else 0),
        num_outputs=contract.num_outputs,
        capacity=capacity,
        min_samples=private.min_samples,
        held_out=float(settings.trainer.validation_share),
        target_bound=round(bound, 9),
        intercept=INTERCEPT if epsilon else 0.0,
        epsilon=epsilon,
        delta=float(private.delta) if epsilon else 0.0,
        sigma=math.ceil(sums_sigma(epsilon, private.delta, device_rows=rows) * 1e4) / 1e4 if epsilon else 0.0,
        unit=private.unit,
        device_rows=rows,
    )


def room_for(num_samples: int) -> int:
    """Return the capacity of a fleet that has so many samples: twice as many, rounded up to a power of two."""
    return max(_LEAST_ROOM, 1 << max(0, _LATER * num_samples - 1).bit_length())


def sums_guarantee(sums: SumsSpec, *, totals: int = 1) -> Guarantee:
    """Return what the run guarantees of one sample, or one device, against everybody but the server.

    With `totals` several totals, each with noise of its own: ε and δ add up.
    """
    if not sums.epsilon:
        return Guarantee(None, 0.0, "sums are sent without noise")
    name = f"one {sums.unit} in {'the sums' if totals == 1 else f'{totals} totals of sums'}, against all but the server"
    spent = totals * sums.epsilon, totals * sums.delta
    return Guarantee(*spent, parts={name: spent})


def require_task(contract: TaskContract) -> None:
    """Refuse what has no sums; raises SettingsError."""
    if contract.per_token:
        raise SettingsError(
            "strategy=analytic takes labels and numbers, task.kind=language-modelling predicts tokens; choose "
            "strategy=pae"
        )
