"""Where the splits of a data set are: the package, a file, a folder in one of several forms, or the hub."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from functools import lru_cache
from importlib import resources
from pathlib import Path

import datasets
import numpy as np

from mobillm_flower.backbones.git_lfs import is_pointer
from mobillm_flower.config import DataSettings
from mobillm_flower.errors import DataError, SettingsError
from mobillm_flower.tasks.files import read_files, split_files
from mobillm_flower.tasks.partitions import no_progress
from mobillm_flower.tasks.readers import FileForm, form_of, reason
from mobillm_flower.tasks.rows import column_of


def load_splits(settings: DataSettings) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Load the train and test splits of a source.

    Rows of one file or split are parted by `data.split-column`, which names the split of each, or by
    `data.test-share`, drawn with `data.seed`.

    Raises
    ------
    DataError
        The source or a split is not there, or cannot be read.
    SettingsError
        The settings do not say which rows of a single file are test rows.
    """
    column, share = settings.split_column, settings.test_share
    if column and share:
        raise SettingsError(f"data.split-column={column!r} and data.test-share={share:g}: give one of them")
    if not column and not share:
        if _in_one_piece(settings.source):
            raise SettingsError(
                "data.source is one set of rows: set data.split-column to the column that says "
                "which split a row is of, or data.test-share to the share of rows to evaluate on, such as 0.2"
            )
        return _rows(settings, settings.train_split), _rows(settings, settings.test_split)
    rows = _rows(settings, settings.train_split)
    if share:
        drawn = np.random.default_rng([settings.seed, len(rows)]).permutation(len(rows))
        count = round(share * len(rows))
        return rows.select(np.sort(drawn[count:])), rows.select(np.sort(drawn[:count]))
    values = np.array([str(value) for value in column_of(rows, column, "data.split-column")])
    parts = []
    for split in (settings.train_split, settings.test_split):
        parts.append(rows.select(np.flatnonzero(values == split)))
        if not len(parts[-1]):
            raise DataError(f"no row has data.split-column={column} = {split!r}; set data.train-split, data.test-split")
    return parts[0], parts[1]


def _rows(settings: DataSettings, split: str) -> datasets.Dataset:
    """Return the rows of a split, or of the one file that `data.source` names."""
    texts = tuple(filter(None, (settings.text_column, settings.pair_column)))
    named = tuple(filter(None, (settings.label_column, settings.partition_column, settings.split_column)))
    form = FileForm(texts, named, settings.encoding, settings.delimiter)
    return _read(settings.source, settings.subset, split, form)


@lru_cache(maxsize=8)
def _read(source: str, subset: str, split: str, form: FileForm) -> datasets.Dataset:
    if source == "phone-messages":
        return _phone_messages(split, form)
    path = Path(source).expanduser()
    if path.is_file():
        return _as_dataset([path], form)
    if not path.is_dir():
        return _from_hub(source, subset, split)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _saved(path, split)
    if _has_card(path):
        return _clone(path, subset, split)
    if subset:
        raise SettingsError(
            f"data.subset={subset!r} names a configuration of a data set of the hub, and data.source is a folder "
            "without a card that lists any; leave data.subset empty"
        )
    if (path / split / "state.json").is_file():
        return _saved(path / split, split)
    return _as_dataset(split_files(path, split), form)


def _in_one_piece(source: str) -> bool:
    path = Path(source).expanduser()
    return source != "phone-messages" and (path.is_file() or (path / "state.json").is_file())


def _as_dataset(files: list[Path], form: FileForm) -> datasets.Dataset:
    table = read_files(files, form)
    unnamed = [name for name in table.column_names if name not in (*form.texts, *form.named)]
    try:
        return datasets.Dataset(table)
    except (ValueError, TypeError, NotImplementedError, KeyError) as error:  # a type that `datasets` has not
        with contextlib.suppress(ValueError, TypeError, NotImplementedError, KeyError):
            return datasets.Dataset(table.drop_columns(unnamed).replace_schema_metadata(None))
        raise DataError(f"{files[0].name} cannot be read ({reason(error)})") from error


def _saved(folder: Path, split: str) -> datasets.Dataset:
    """Return a split that `save_to_disk` wrote."""
    if (folder / "dataset_dict.json").is_file():
        folder /= split
        if not folder.is_dir():
            raise DataError(f"data.source, which save_to_disk wrote, has no split {split!r}")
    try:
        if not json.loads((folder / "state.json").read_text("utf-8"))["_data_files"]:
            return _without_rows(folder)
        rows = datasets.Dataset.load_from_disk(str(folder))
        rows.data.table.validate(full=True)
    except Exception as error:  # whatever a damaged file makes of it
        raise DataError(f"data.source, which save_to_disk wrote, cannot be read ({reason(error)})") from error
    return rows


def _without_rows(folder: Path) -> datasets.Dataset:
    """Return a split that was saved without any row, which `datasets` writes and cannot read."""
    info = json.loads((folder / "dataset_info.json").read_text("utf-8"))
    features = datasets.Features.from_dict(info["features"])
    return datasets.Dataset.from_dict({name: [] for name in features}, features=features)


def _has_card(folder: Path) -> bool:
    """Whether a folder is a data set of the hub whose card says which files it has."""
    card = folder / "README.md"
    if not card.is_file():
        return False
    text = card.read_text("utf-8", errors="replace")
    return text.startswith("---") and ("\nconfigs:" in text or "\ndataset_info:" in text)


def _clone(folder: Path, subset: str, split: str) -> datasets.Dataset:
    """Return a split of a hub data set that was cloned."""
    for file in folder.rglob("*"):
        if file.is_file() and form_of(file) and file.suffix and is_pointer(file):
            raise DataError(
                f"{file.name} is a Git LFS pointer, not the data themselves; run `git lfs pull` in the clone"
            )
    try:
        with no_progress():
            return datasets.load_dataset(str(folder), subset or None, split=split)
    except Exception as error:
        raise DataError(f"data.source, split {split!r}: `datasets` cannot read it ({type(error).__name__})") from error


def _from_hub(source: str, subset: str, split: str) -> datasets.Dataset:
    try:
        with no_progress():
            return datasets.load_dataset(source, subset or None, split=split)
    except Exception as error:
        raise DataError(
            f"data.source={source!r}, split {split!r}: no local file or folder, and the hub did not give it "
            f"({type(error).__name__}); check the spelling, or give a folder of parquet or JSONL files"
        ) from error


def _phone_messages(split: str, form: FileForm) -> datasets.Dataset:
    """Return the package's own messages to a phone assistant (docs/explanation/phone-messages.md)."""
    file = resources.files("mobillm_flower.tasks").joinpath(f"data/phone_messages_{split}.jsonl")
    if not file.is_file():
        raise DataError(f"data.source=phone-messages has splits train and test, not {split!r}")
    with resources.as_file(file) as path:
        return _as_dataset([path], dataclasses.replace(form, encoding="utf-8"))
