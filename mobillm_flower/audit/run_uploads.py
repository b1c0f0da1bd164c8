"""The uploads that a run's cache holds, matched to the texts they are of.

Only an auditor can: it takes the data source, and the devices' secrets, which a simulation leaves in the run's folder.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import torch

from mobillm_flower.audit.cell import Trained
from mobillm_flower.audit.draw import Draw
from mobillm_flower.audit.uploads import Uploads, decode_all, joined
from mobillm_flower.backbones import Backbone
from mobillm_flower.clients.device import Device
from mobillm_flower.config import Settings
from mobillm_flower.errors import CacheError
from mobillm_flower.models.side_tuned import SideTunedModel
from mobillm_flower.privacy.device_folder import DeviceFolder
from mobillm_flower.runs.device_events import Window
from mobillm_flower.runs.files import UNREADABLE
from mobillm_flower.runs.folder import RunFolder
from mobillm_flower.runs.record import read_run
from mobillm_flower.server import ActivationCache
from mobillm_flower.server.plan import TrainingPlan
from mobillm_flower.tasks import LocalData


@contextmanager
def run_uploads(
    run: RunFolder, settings: Settings, devices: Sequence[LocalData], drawn: Draw, backbone: Backbone, folder: Path
) -> Iterator[tuple[Uploads, ActivationCache] | None]:
    """Give the drawn samples' rows of a run's cache, with a copy of that cache.

    Parameters
    ----------
    run : RunFolder
        The run's folder; it is only read.
    settings : Settings
        Its own.
    devices : sequence of LocalData
        All samples of each device.
    drawn : Draw
        Which of them to attack.
    backbone : Backbone
        The run's.
    folder : path
        For the copy; made here.

    Yields
    ------
    tuple or None
        None where the cache's rows cannot be matched to the texts: no device folders (a deployment), other data, or
        several backbone types.
    """
    owners = run.device_folders()
    if len(owners) != len(devices):
        yield None
        return
    copy = RunFolder(folder).make()
    _copy(run.cache, copy.cache)
    with closing(ActivationCache(copy.cache)) as cache:
        plan = TrainingPlan.of(cache)
        spec = None if plan is None else plan.specs.get(backbone.info.fingerprint)
        if plan is None or spec is None or len(plan.specs) > 1:
            yield None
            return
        row_of = _rows_by_release(copy.cache)
        rows, samples, numbers = [], [], []
        for number, places in drawn.places.items():
            own = copy.device(number)
            shutil.copytree(owners[number], own)
            with closing(DeviceFolder(own)) as owned:
                device = Device(settings, devices[number], owned, partition=number)
                device.backbone = backbone
                shaping = device.shaping(spec)
                ids = [owned.release_id(device.sample_ids[place], shaping) for place in places.tolist()]
            held = [i for i, release in enumerate(ids) if release in row_of]
            rows += [row_of[ids[i]] for i in held]
            numbers += [number] * len(held)
            samples.append(devices[number].train.take(places[held].tolist()))
        if len(rows) < sum(len(places) for places in drawn.places.values()) / 2:
            yield None
            return
        decoded, targets = decode_all(cache, spec, plan.contract)
        chosen = torch.tensor(rows)
        yield (
            Uploads(
                rows=decoded[chosen],
                targets=targets.take(chosen),
                samples=joined(samples),
                devices=np.array(numbers, np.int64),
                bytes_a_sample=_bytes_a_sample(run),
                device_seconds_a_sample=0.0,
                spec=spec,
                contract=plan.contract,
            ),
            cache,
        )


def run_side_network(run: RunFolder, settings: Settings, backbone: Backbone) -> Trained | None:
    """Return the side network that a run released, or None where it has none (yet)."""
    if not run.side_config.is_file():
        return None
    model = SideTunedModel.from_pretrained(
        run.side_network,
        backbone=backbone,
        public_text=settings.activations.public_text,
        mixing_key=settings.privacy.mixing_key,
    )
    assert model.side_network is not None
    return Trained(model.side_network, model.rule)


def _bytes_a_sample(run: RunFolder) -> float:
    """Return what was uploaded a sample, over all windows that a run's log tells of."""
    windows = read_run(run.path).all(Window)
    return sum(window.bytes for window in windows) / max(1, sum(window.new for window in windows))


def _copy(source: Path, target: Path) -> None:
    """Copy a cache as it is committed, without changing it."""
    with _opened(source) as from_, closing(sqlite3.connect(target)) as to:
        from_.backup(to)


def _rows_by_release(file: Path) -> dict[bytes, int]:
    """Return where each release comes in the order of committing."""
    with _opened(file) as db:
        ordered = db.execute("SELECT release FROM samples ORDER BY id").fetchall()
    return {release: place for place, (release,) in enumerate(ordered)}


@contextmanager
def _opened(file: Path) -> Iterator[sqlite3.Connection]:
    """Open a cache's file to read; raises CacheError where SQLite cannot."""
    try:
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as db:
            yield db
    except UNREADABLE as error:
        raise CacheError(
            f"{file} cannot be read ({error}); `mobillm cache verify` says which rows are damaged"
        ) from error
