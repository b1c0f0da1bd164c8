"""The samples that a device left out of its sums: how a side network predicts them, as a tally."""

from __future__ import annotations

import math

import numpy as np

from mobillm_flower.clients.device import Device
from mobillm_flower.clients.summing import held_out_samples
from mobillm_flower.core.sums import Words, wrap
from mobillm_flower.core.tally import tally_classes, tally_numbers
from mobillm_flower.errors import MismatchError, ReleaseRefused
from mobillm_flower.models.side_tuned import SideTunedModel
from mobillm_flower.tasks.task import TASKS
from mobillm_flower.wire.held_out import BITS, num_words


def tally_held_out(device: Device, model: SideTunedModel, *, share: float, alone: bool) -> Words:
    """Tally a model's predictions of the samples that were left out of the sums; the ledger counts the metric first.

    A device adds nothing, which looks like one without such samples, where it promises something of its training
    samples or of metrics, has reported as many metrics as it agrees to, or would show fewer samples than
    `privacy.min-samples`; in a group's sum than its share of them in the smallest group, and always at least two.

    Parameters
    ----------
    device : Device
        Whose samples.
    model : SideTunedModel
        What predicts.
    share : float
        What the server says is left out; the device's own settings must say the same.
    alone : bool
        Whether the server sees this tally, and not only the sum of a group's.
    """
    private, contract = device.settings.privacy, device.data.contract
    if share != device.settings.trainer.validation_share:
        raise MismatchError(
            f"trainer.validation-share={device.settings.trainer.validation_share} on this device, and {share} at the "
            "server; give both the same"
        )
    nothing = wrap(np.zeros(num_words(contract), np.int64), BITS)
    places = held_out_samples(device, share)
    least = private.min_samples if alone else max(2, math.ceil(private.min_samples / private.secure_sums_devices))
    if not places or not device.exact_metrics or len(places) < least:
        return nothing
    try:
        device.folder.ledger.evaluate({text for i in places for text in device.sample_keys[i].texts})
    except ReleaseRefused:
        return nothing
    samples = device.data.train.take(places)
    predicted = TASKS[contract.kind].predictions(model.scores(samples)).numpy()
    if contract.is_regression:
        low, high = contract.label_range or (0.0, 1.0)
        true = samples.labels.double().numpy()
        return wrap(tally_numbers(true, predicted.astype(np.float64), (low, high)), BITS)
    return wrap(tally_classes(samples.labels.numpy(), predicted, contract.num_outputs), BITS)
