"""One source cut into devices: by a column, at random, or skewed by label (flwr-datasets)."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np

from mobillm_flower.config import DataSettings, Partition
from mobillm_flower.errors import DataError
from mobillm_flower.tasks.labels import value_text
from mobillm_flower.tasks.rows import column_of

_DIRICHLET_TURNS = 20


def places(
    rows: datasets.Dataset,
    settings: DataSettings,
    partition_id: int,
    num_partitions: int,
    *,
    like: datasets.Dataset | None = None,
) -> list[int]:
    """Return which rows are one device's: IID, Dirichlet(α) over labels, or natural by a column.

    Parameters
    ----------
    rows : datasets.Dataset
        A split.
    settings : DataSettings
        How it is cut.
    partition_id, num_partitions : int
        Which device, of how many.
    like : datasets.Dataset, optional
        The train split, whose values of the column name the natural devices; by default `rows` itself. Device i of n
        has the i-th, (i+n)-th, … of its sorted values. A device may have no rows, and a row without a value, or with
        one that is not in the train split, no device.

    Raises
    ------
    DataError
        A column is missing, or the rows cannot be cut that way.
    """
    if settings.partition == Partition.natural:
        owners = natural_names(rows if like is None else like, settings)
        mine = set(owners[partition_id::num_partitions])
        return [i for i, value in enumerate(_column(rows, settings)) if value in mine]
    columns: dict[str, Any] = {"row": range(len(rows))}
    if settings.partition == Partition.dirichlet and len(rows) >= num_partitions:
        whole = datasets.Dataset.from_dict({**columns, "label": rows[settings.label_column][:]})
        return list(_dirichlet(whole, settings, partition_id, num_partitions)["row"][:])
    shuffled = datasets.Dataset.from_dict(columns).shuffle(seed=settings.seed)
    if len(rows) < num_partitions:  # one each, and the last devices have none
        return list(shuffled[partition_id : partition_id + 1]["row"][:])
    from flwr_datasets.partitioner import IidPartitioner  # brings matplotlib with it

    partitioner = IidPartitioner(num_partitions=num_partitions)
    partitioner.dataset = shuffled
    with no_progress():
        return list(partitioner.load_partition(partition_id)["row"][:])


def natural_names(train: datasets.Dataset, settings: DataSettings) -> list[str]:
    """Return the sorted values of `data.partition-column`, as texts, so that 1, 1.0 and "1" are one device."""
    return sorted({value for value in _column(train, settings) if value is not None})


def _column(rows: datasets.Dataset, settings: DataSettings) -> list[str | None]:
    return [value_text(value) for value in column_of(rows, settings.partition_column, "data.partition-column")]


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
            partition_by="label",
            alpha=settings.alpha,
            min_partition_size=1,
            self_balancing=False,
            seed=int(drawn[0]) if turn else settings.seed,
        )
        partitioner.dataset = rows
        try:
            with no_progress(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The specified min_partition_size")
                return partitioner.load_partition(partition_id)
        except ValueError as error:
            reason = error
    raise DataError(
        f"{len(rows)} rows cannot be cut into {num_partitions} devices (dirichlet): in {10 * _DIRICHLET_TURNS} draws "
        f"some device had none; raise data.alpha={settings.alpha:g}, or give fewer devices"
    ) from reason


@contextlib.contextmanager
def no_progress() -> Iterator[None]:
    """Keep the progress bars of `datasets` off the terminal."""
    shown = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
