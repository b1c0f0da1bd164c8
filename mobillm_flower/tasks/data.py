"""Data sets by name or folder, and their partition into devices (flwr-datasets)."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from mobillm_flower.config import DataSettings, Partition, Settings
from mobillm_flower.errors import DataError
from mobillm_flower.privacy.device_folder import plain_text
from mobillm_flower.tasks.task import TASKS, Samples, make_contract, predicts_tokens
from mobillm_flower.wire.contract import TaskContract

_READERS: dict[str, Callable[[Path], pa.Table]] = {
    ".parquet": lambda file: pq.read_table(file),
    ".jsonl": lambda file: pyarrow.json.read_json(file),
    ".json": lambda file: pyarrow.json.read_json(file),
    ".csv": lambda file: pyarrow.csv.read_csv(file),
}
_TEXT_TYPES = ("string", "large_string")
_DIRICHLET_TURNS = 20


@dataclass(frozen=True)
class LocalData:
    """What one device holds.

    Parameters
    ----------
    contract : TaskContract
        The task as its own settings have it.
    train : Samples
        What it learns from.
    test : Samples
        What it is evaluated on.
    train_rows, test_rows : tuple of bytes
        A digest of the whole row that each sample is of, whatever columns the task reads; empty where it is not known.
    """

    contract: TaskContract
    train: Samples
    test: Samples
    train_rows: tuple[bytes, ...] = ()
    test_rows: tuple[bytes, ...] = ()


def load_splits(settings: DataSettings) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Load the train and test splits of a source.

    Raises
    ------
    DataError
        The source or a split is not there, or cannot be read.
    """
    return _split(settings.source, settings.subset, settings.train_split), _split(
        settings.source, settings.subset, settings.test_split
    )


def load_local_data(settings: Settings, partition_id: int, num_partitions: int) -> LocalData:
    """Load one device's share of the source.

    Parameters
    ----------
    settings : Settings
        The device's own.
    partition_id, num_partitions : int
        Which share, of how many; in Flower's node config.

    Raises
    ------
    DataError
        As `load_splits`; or the partition does not exist.
    """
    if not 0 <= partition_id < num_partitions:
        raise DataError(f"partition-id={partition_id} must be from 0 to num-partitions − 1 = {num_partitions - 1}")
    train, test = load_splits(settings.data)
    contract = make_contract(settings, _label_column(train, settings))
    mine = _share(train, settings.data, partition_id, num_partitions)
    test_settings = settings.data
    if settings.data.partition == Partition.dirichlet:  # a skewed test split would measure the skew
        test_settings = _iid(settings.data)
    tested = partition(test, test_settings, partition_id, num_partitions)
    return _read(mine, tested, settings, contract)


def read_rows(train: Any, test: Any, settings: Settings) -> LocalData:
    """Read a device's own `datasets.Dataset` pair.

    Class names come from `task.labels` or from the column's ClassLabel: the values of one device's rows are neither
    those of the fleet nor to be told.

    Raises
    ------
    DataError
        A classification names its classes nowhere, or a row cannot be used.
    """
    column = _label_column(train, settings)
    named = settings.task.labels or getattr(column.feature, "names", None)
    if TASKS[settings.task.kind].labels(["0"], settings) and not named:
        raise DataError("load_data's rows do not name the classes: give task.labels, in order, or a ClassLabel column")
    return _read(train, test, settings, make_contract(settings, _label_column(train, settings)))


def load_central_data(settings: Settings) -> LocalData:
    """Load what all devices hold in one place: for references and benchmarks, never on a device."""
    train, test = load_splits(settings.data)
    contract, count = make_contract(settings, _label_column(train, settings)), settings.data.num_devices
    if settings.data.max_samples:
        train = datasets.concatenate_datasets([_share(train, settings.data, i, count) for i in range(count)])
    return _read(train, test, settings, contract)


def _share(train: datasets.Dataset, settings: DataSettings, partition_id: int, num_partitions: int) -> Any:
    """Return the rows that a device learns from."""
    mine = partition(train, settings, partition_id, num_partitions)
    return mine.select(range(min(len(mine), settings.max_samples or len(mine))))


def _read(train: Any, test: Any, settings: Settings, contract: TaskContract) -> LocalData:
    task = TASKS[settings.task.kind]
    return LocalData(
        contract,
        task.samples(train, settings, contract),
        task.samples(test, settings, contract),
        _row_digests(train),
        _row_digests(test),
    )


def _row_digests(rows: Any) -> tuple[bytes, ...]:
    """Return a digest of the texts of each row, in whatever order and however often they stand in it."""
    texts = [name for name, feature in rows.features.items() if getattr(feature, "dtype", "") in _TEXT_TYPES]
    rows_of_texts = zip(*(rows[name][:] for name in texts), strict=True)
    sets = ({plain_text(value) for value in row if value} for row in rows_of_texts)
    return tuple(hashlib.sha256(repr(sorted(words)).encode()).digest() for words in sets)


def partition(rows: datasets.Dataset, settings: DataSettings, partition_id: int, num_partitions: int) -> Any:
    """Return one device's rows: IID, Dirichlet(α) over labels, or natural by a column.

    With `natural`, device i of n has the i-th, (i+n)-th, … of the column's sorted values of the train split's kind;
    a device without a value has no rows.

    Raises
    ------
    DataError
        A column is missing, or the rows cannot be cut that way.
    """
    from flwr_datasets.partitioner import IidPartitioner  # brings matplotlib with it

    if settings.partition == Partition.natural:
        column = settings.partition_column
        if column not in rows.column_names:
            raise DataError(
                f"data.partition-column={column!r} is no column; the data has {', '.join(rows.column_names)}"
            )
        values = rows[column][:]  # at once: a column by itself is read row by row
        names = set(_natural_names(settings)[partition_id::num_partitions])
        return rows.select([i for i, value in enumerate(values) if str(value) in names])
    if settings.partition == Partition.dirichlet:
        return _dirichlet(rows, settings, partition_id, num_partitions)
    partitioner = IidPartitioner(num_partitions=num_partitions)
    partitioner.dataset = rows.shuffle(seed=settings.seed)
    try:
        with _no_progress():
            return partitioner.load_partition(partition_id)
    except ValueError as error:
        raise DataError(f"{len(rows)} rows cannot be cut into {num_partitions} devices (iid): {error}") from error


def _dirichlet(rows: datasets.Dataset, settings: DataSettings, partition_id: int, num_partitions: int) -> Any:
    """Return one device's rows of the first draw in which each device has some.

    With a small α and few labels most draws leave a device without rows, and flwr-datasets gives up after ten; then
    ten more are drawn from another seed, which follows from `data.seed`.
    """
    from flwr_datasets.partitioner import DirichletPartitioner

    for turn in range(_DIRICHLET_TURNS):
        drawn = np.random.SeedSequence([settings.seed, turn]).generate_state(1)
        partitioner = DirichletPartitioner(
            num_partitions=num_partitions,
            partition_by=settings.label_column,
            alpha=settings.alpha,
            min_partition_size=1,
            self_balancing=False,
            seed=int(drawn[0]) if turn else settings.seed,
        )
        partitioner.dataset = rows
        try:
            with _no_progress(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The specified min_partition_size")
                return partitioner.load_partition(partition_id)
        except ValueError as error:
            reason = error
    raise DataError(
        f"{len(rows)} rows cannot be cut into {num_partitions} devices (dirichlet): in {10 * _DIRICHLET_TURNS} draws "
        f"some device had none; raise data.alpha={settings.alpha:g}, or give fewer devices"
    ) from reason


def _natural_names(settings: DataSettings) -> list[str]:
    train = _split(settings.source, settings.subset, settings.train_split)
    return sorted({str(value) for value in train[settings.partition_column][:]})


def _iid(settings: DataSettings) -> DataSettings:
    return dataclasses.replace(settings, partition=Partition.iid)


def _label_column(rows: datasets.Dataset, settings: Settings) -> Any:
    if predicts_tokens(settings):
        return _Column([], None)
    name = settings.data.label_column
    if name not in rows.column_names:
        raise DataError(f"data.label-column={name!r} is no column; the data has {', '.join(rows.column_names)}")
    return _Column(rows[name][:], rows.features[name])


class _Column(list[Any]):
    """A column's values with their feature, which may name the classes."""

    def __init__(self, values: Any, feature: Any) -> None:
        super().__init__(values)
        self.feature = feature


@lru_cache(maxsize=8)
def _split(source: str, subset: str, split: str) -> datasets.Dataset:
    if source == "phone-messages":
        return _phone_messages(split)
    folder = Path(source).expanduser()
    if folder.is_dir():
        files = sorted(f for f in folder.iterdir() if f.suffix in _READERS and f.stem.split("-")[0] == split)
        if not files:
            raise DataError(
                f"{folder} has no file of split {split!r}: {split}.parquet, .jsonl, .json, .csv or {split}-*.parquet"
            )
        try:
            return datasets.Dataset(pa.concat_tables([_READERS[f.suffix](f) for f in files]))
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{files[0].name} in {folder} cannot be read ({type(error).__name__})") from error
    try:
        with _no_progress():
            return datasets.load_dataset(source, subset or None, split=split)
    except Exception as error:
        raise DataError(
            f"data.source={source!r}, split {split!r}: no local folder, and the hub did not give it "
            f"({type(error).__name__}); check the spelling, or give a folder of parquet or JSONL files"
        ) from error


def _phone_messages(split: str) -> datasets.Dataset:
    """Return the package's own messages to a phone assistant (docs/explanation/phone-messages.md)."""
    file = resources.files("mobillm_flower.tasks").joinpath(f"data/phone_messages_{split}.jsonl")
    if not file.is_file():
        raise DataError(f"data.source=phone-messages has splits train and test, not {split!r}")
    with resources.as_file(file) as path:
        return datasets.Dataset(_READERS[".jsonl"](path))


@contextlib.contextmanager
def _no_progress() -> Any:
    shown = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
