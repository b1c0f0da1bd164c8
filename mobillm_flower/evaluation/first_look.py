"""What was understood of an app's data, before a run: rows, columns, classes, devices, lengths in tokens."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from mobillm_flower.backbones.load import load_with
from mobillm_flower.backbones.options import LoadOptions
from mobillm_flower.config import CHOOSERS, Partition, Settings
from mobillm_flower.core.targets import base_prediction
from mobillm_flower.errors import DataError
from mobillm_flower.tasks import TASKS, LocalData, load_splits, tokenize, with_tokens
from mobillm_flower.tasks.data import Splits
from mobillm_flower.tasks.labels import value_text
from mobillm_flower.tasks.partitions import natural_names

_FEW, _SHOWN = 16, 60  # rows whose base prediction is taken; characters of a text that are shown
_MOST_DEVICES, _MOST_LENGTHS = 200, 2000


def preflight(settings: Settings) -> None:
    """Refuse, before a simulation is started, what would end it at its first device: splits, columns, labels, prompt.

    Tasks that only an app registers are left to it.

    Raises
    ------
    MobiLLMError
        As `first_look`, without what needs the backbone or all rows.
    """
    if settings.task.kind not in TASKS:
        return
    splits, cut = Splits.of(*load_splits(settings.data), settings), settings.data
    splits.read(settings, [], [])
    rule = splits.train_rule
    if rule is not None and not any(rule(value) is not None for value in splits.train[cut.label_column][:]):
        raise DataError(f"train split: no row has a class of task.labels in data.label-column={cut.label_column!r}")
    if cut.partition == Partition.natural:
        for name, rows in (("train", splits.train), ("test", splits.test)):
            if len(rows) and not natural_names(rows, cut):
                raise DataError(f"{name} split: no row has a value of data.partition-column={cut.partition_column!r}")
        if len(splits.test) and not set(natural_names(splits.train, cut)) & set(natural_names(splits.test, cut)):
            raise DataError(
                f"no test row is on any device: no value of data.partition-column={cut.partition_column!r} is in both "
                "splits"
            )


def first_look(settings: Settings, *, backbone: bool = True, texts: bool = False) -> dict[str, Any]:
    """Return what a run would understand of `data.source`.

    Parameters
    ----------
    settings : Settings
        The run's.
    backbone : bool
        Whether to load the backbone, for lengths in tokens and its own prediction of a few rows.
    texts : bool
        Whether to show three shortened texts.

    Returns
    -------
    dict
        `splits` (rows and columns with their types), `classes` (counts by name, of train and test), `unmatched` (values
        of labels that are no class, with counts), `left_out`, `devices` (train and test samples of each),
        `refused` (reasons by device), `on_no_device` (test rows), `tokens`, `base`, `texts`.

    Raises
    ------
    MobiLLMError
        What would end the run, or cost it all of its devices.
    """
    splits = Splits.of(*load_splits(settings.data), settings)
    whole = splits.read(settings, range(len(splits.train)), range(len(splits.test)))
    found: dict[str, Any] = {
        "splits": {
            name: {"rows": len(rows), "columns": {column: _kind(kind) for column, kind in rows.features.items()}}
            for name, rows in (("train", splits.train), ("test", splits.test))
        },
        "classes": _classes(whole),
        "unmatched": _unmatched(splits, settings),
        "left_out": str(whole.left_out),
        **_devices(splits, settings),
    }
    if texts:
        found["texts"] = [text[:_SHOWN] + ("…" if len(text) > _SHOWN else "") for text in whole.train.texts[:3]]
    if backbone and settings.backbone.name not in CHOOSERS and not whole.contract.per_token:
        found |= _read_by_backbone(settings, whole)
    return found


def _kind(feature: Any) -> str:
    return str(getattr(feature, "dtype", None) or type(feature).__name__)


def _classes(data: LocalData) -> dict[str, list[int]]:
    names = data.contract.labels
    counts = [np.bincount(part.labels.numpy(), minlength=len(names)) for part in (data.train, data.test) if names]
    return {name: [int(count[place]) for count in counts] for place, name in enumerate(names)}


def _unmatched(splits: Splits, settings: Settings) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for rows, rule in ((splits.train, splits.train_rule), (splits.test, splits.test_rule)):
        if rule is not None:
            values = rows[settings.data.label_column][:]
            counts.update(rule.text(v) or value_text(v) or "(none)" for v in values if rule(v) is None)
    return dict(counts.most_common(5))


def _devices(splits: Splits, settings: Settings) -> dict[str, Any]:
    number = settings.data.num_devices
    sizes: list[tuple[int, int]] = []
    refused: dict[int, str] = {}
    for device in range(min(number, _MOST_DEVICES)):
        try:
            data = splits.local(settings, device, number)
        except DataError as error:
            refused[device] = str(error)
            continue
        sizes.append((len(data.train), len(data.test)))
    if not sizes:
        raise DataError(f"all {number} devices would be refused; the first: {next(iter(refused.values()))}")
    found: dict[str, Any] = {"devices": sizes, "refused": refused}
    if not refused and number <= _MOST_DEVICES:
        usable = len(splits.read(settings, [], range(len(splits.test))).test)
        found["on_no_device"] = usable - sum(test for _, test in sizes)
    return found


def _read_by_backbone(settings: Settings, data: LocalData) -> dict[str, Any]:
    backbone = load_with(LoadOptions.of(settings.backbone).for_task(data.contract))
    data = with_tokens(data, backbone, settings)
    drawn = data.train.take(range(min(len(data.train), _MOST_LENGTHS)))
    lengths = np.array([len(sample["input_ids"]) for sample in tokenize(backbone, drawn, data.contract)])
    cut = int((lengths >= data.contract.max_length).sum())
    found: dict[str, Any] = {
        "tokens": {
            "rows": len(lengths),
            "median": float(np.median(lengths)),
            "most": int(lengths.max()),
            "at_limit": cut,
        }
    }
    few = data.train.take(range(min(len(data.train), _FEW)))
    extraction = backbone.extract(tokenize(backbone, few, data.contract), layers=[backbone.info.depth], pivot="mean")
    base = base_prediction(
        extraction.base_logits, len(few), data.contract.num_outputs, label_range=data.contract.label_range
    )
    found["base"] = {"kind": backbone.info.base_prediction, "rows": len(few), "mean": base.mean(0).tolist()}
    return found
