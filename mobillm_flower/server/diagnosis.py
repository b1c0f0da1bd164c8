"""Devices whose samples do not fit: each device's loss and agreement under the trained side network."""

from __future__ import annotations

from collections import Counter

import numpy as np

from mobillm_flower.runs.device_events import Diagnosis
from mobillm_flower.server.cache import ActivationCache
from mobillm_flower.server.trainer import Trainer

_FAR = 3.5  # modified z-score, the usual bound for outliers (Iglewicz and Hoaglin)
_FEWEST = 5  # devices below which no outlier is called


def diagnose(trainer: Trainer, cache: ActivationCache) -> list[Diagnosis]:
    """Return a diagnosis of each device, the worst first; of sums there is none."""
    if trainer.has_sums:
        return []
    everything = cache.rows()
    everything = everything.take(everything.column("task") == cache.task)  # earlier tasks' devices are not there
    numbers = everything.column("device")
    rows = {name: everything.take(numbers == number) for number, name in enumerate(everything.names("device"))}
    measured = {device: trainer.validation(of_device) for device, of_device in rows.items()}
    used = Counter(trainer.heard(everything).column("device").tolist())
    used_of = {name: used[number] for number, name in enumerate(everything.names("device"))}
    losses = np.array([values["loss"] for values in measured.values()])
    middle = float(np.median(losses)) if len(losses) else 0.0
    spread = float(np.median(np.abs(losses - middle))) if len(losses) else 0.0
    diagnoses = []
    for device, values in measured.items():
        distance = 0.6745 * (values["loss"] - middle) / spread if spread else 0.0
        diagnoses.append(
            Diagnosis(
                device=device,
                samples=len(rows[device]),
                loss=round(values["loss"], 6),
                agreement=values.get("accuracy"),
                distance=round(distance, 3),
                used=used_of[device],
                outlier=distance > _FAR and len(rows) >= _FEWEST,
            )
        )
    return sorted(diagnoses, key=lambda item: -item.loss)
