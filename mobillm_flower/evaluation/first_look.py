"""What was understood of an app's data, before a run: rows, columns, classes, devices, lengths in tokens."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from mobillm_flower.backbones.describe import is_causal
from mobillm_flower.backbones.label_words import first_tokens, label_tokens
from mobillm_flower.backbones.load import load_with
from mobillm_flower.backbones.options import LoadOptions
from mobillm_flower.backbones.positions import check_positions
from mobillm_flower.backbones.skeleton import load_config, load_tokenizer, skeleton
from mobillm_flower.config import CHOOSERS, Partition, Settings
from mobillm_flower.core.targets import base_prediction
from mobillm_flower.errors import DataError
from mobillm_flower.tasks import TASKS, LocalData, check_prompt, load_splits, tokenize, with_tokens
from mobillm_flower.tasks.data import Splits
from mobillm_flower.tasks.labels import names_alike, value_text
from mobillm_flower.tasks.partitions import natural_names
from mobillm_flower.tasks.tokens import uncut_tokens

_FEW, _SHOWN = 16, 60  # rows whose base prediction is taken; characters of a text that are shown
_MOST_DEVICES, _MOST_LENGTHS = 200, 2000
_MANY_UNKNOWN = 0.05  # share of unknown tokens that is worth a word


def preflight(settings: Settings) -> list[str]:
    """Refuse, before a simulation is started, what would end it at its first device: splits, columns, labels, prompt.

    Tasks that only an app registers are left to it.

    Parameters
    ----------
    settings : Settings
        The run's.

    Returns
    -------
    list of str
        What the tokenizer says of texts and label words that the user should know: sentences, no text of a row.

    Raises
    ------
    MobiLLMError
        As `first_look`, without what needs the backbone's weights or all rows.
    """
    if settings.task.kind not in TASKS:
        return []
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
    return [*_alike(splits), *_notes(settings, splits)]


def _alike(splits: Splits) -> list[str]:
    return [
        f"the classes {', '.join(map(repr, names))} differ in capitals or blanks alone and are learned as "
        f"{len(names)}; if they are one, write them alike in data.label-column"
        for names in names_alike(splits.contract.labels)
    ]


def _notes(settings: Settings, splits: Splits) -> list[str]:
    if settings.backbone.name in CHOOSERS:
        return []
    try:
        data = splits.read(settings, _evenly(len(splits.train), _MOST_LENGTHS), [])
    except DataError:  # of these rows none can be used, or some device is refused: as the run will say
        return []
    if not len(data.train):
        return []
    name, revision, contract = settings.backbone.name, settings.backbone.revision, data.contract
    tokenizer = load_tokenizer(name, revision=revision)
    check_prompt(tokenizer, contract)
    facts, notes = _tokens(tokenizer, data, settings), []
    model, _ = skeleton(name, revision=revision, layers=settings.backbone.layers)
    word = max(facts["label_words"].values(), default=1) if contract.whole_words else 1
    check_positions(model, name, contract.max_length, words=word - 1)
    if facts["cut"] and not contract.per_token:
        notes.append(
            f"{facts['cut']:,} of {facts['rows']:,} texts have more than task.max-length={contract.max_length} tokens "
            f"(the longest {facts['most']:,}); their ends are not read"
        )
    if facts["unknown"] >= _MANY_UNKNOWN:
        notes.append(f"{facts['unknown']:.0%} of the tokens are unknown words to the tokenizer of {name}")
    split = [f"{word!r} is {count} tokens" for word, count in facts["label_words"].items() if count > 1]
    if split and not contract.whole_words:
        notes.append(
            f"task.label-words: {', '.join(split)}; the first token of each stands for the word, unless "
            "task.whole-label-words=true"
        )
    return notes


def _evenly(count: int, most: int) -> range:
    """Return at most so many places, from the first to the last: rows may be in order of their labels."""
    return range(0, count, max(1, -(-count // most)))


def _tokens(tokenizer: Any, data: LocalData, settings: Settings) -> dict[str, Any]:
    """Return lengths in tokens of the train texts, how many are cut, and the tokens of label words.

    Raises
    ------
    SettingsError
        A causal model cannot tell the label words apart, or does not know one.
    """
    contract = data.contract
    drawn = data.train.take(_evenly(len(data.train), _MOST_LENGTHS))
    tokens = uncut_tokens(tokenizer, drawn, contract)
    lengths = np.array([len(ids) for ids in tokens])
    words: list[list[int]] = []
    if contract.label_words and is_causal(
        load_config(settings.backbone.name, revision=settings.backbone.revision)
    ):  # other models ignore them
        options = LoadOptions.of(settings.backbone).for_task(contract)
        words = label_tokens(tokenizer, contract.label_words, spaced=options.spaced(tokenizer))
        if not contract.whole_words:
            first_tokens(contract.label_words, words)
    mark = tokenizer.unk_token_id
    if mark in (tokenizer.bos_token_id, tokenizer.eos_token_id):  # of OPT, GPT-2: no word is unknown
        mark = None
    unknown = sum(ids.count(mark) for ids in tokens)
    return {
        "rows": len(lengths),
        "median": float(np.median(lengths)),
        "most": int(lengths.max()),
        "cut": int((lengths > contract.max_length).sum()),
        "unknown": unknown / max(1, int(lengths.sum())),
        "label_words": {word: len(ids) for word, ids in zip(contract.label_words, words, strict=False)},
    }


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
        `splits` (rows and columns with their types), `classes` (counts by name, of train and test), `notes` (sentences
        on the classes), `unmatched` (values of labels that are no class, with counts), `left_out`, `devices` (train and
        test samples of each), `refused` (reasons by device), `on_no_device` (test rows), `tokens`, `base`, `texts`.

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
        "notes": _alike(splits),
        "unmatched": _unmatched(splits, settings),
        "left_out": str(whole.left_out),
        **_devices(splits, settings),
    }
    if texts:
        found["texts"] = [text[:_SHOWN] + ("…" if len(text) > _SHOWN else "") for text in whole.train.texts[:3]]
    if backbone and settings.backbone.name not in CHOOSERS:
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
    first: DataError | None = None
    for device in range(min(number, _MOST_DEVICES)):
        try:
            data = splits.local(settings, device, number)
        except DataError as error:
            refused[device], first = str(error), first or error
            continue
        sizes.append((len(data.train), len(data.test)))
    if not sizes:
        raise DataError(f"all {number} devices would be refused; the first: {first}") from first
    found: dict[str, Any] = {"num_devices": number, "devices": sizes, "refused": refused}
    if not refused and number <= _MOST_DEVICES:
        usable = len(splits.read(settings, [], range(len(splits.test))).test)
        found["on_no_device"] = usable - sum(test for _, test in sizes)
    return found


def _read_by_backbone(settings: Settings, data: LocalData) -> dict[str, Any]:
    backbone = load_with(LoadOptions.of(settings.backbone).for_task(data.contract))
    data = with_tokens(data, backbone, settings)
    if not len(data.train):
        return {}
    contract, found = data.contract, {"tokens": _tokens(backbone.tokenizer, data, settings)}
    if contract.per_token:
        return found
    few = data.train.take(_evenly(len(data.train), _FEW))
    extraction = backbone.extract(tokenize(backbone, few, contract), layers=[backbone.info.depth], pivot="mean")
    base = base_prediction(extraction.base_logits, len(few), contract.num_outputs, label_range=contract.label_range)
    found["base"] = {"kind": backbone.info.base_prediction, "rows": len(few), "mean": base.mean(0).tolist()}
    if contract.labels:
        found["base"]["right"] = int((base.argmax(1) == few.labels).sum())
    return found
