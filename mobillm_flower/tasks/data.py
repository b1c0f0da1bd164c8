"""What a device holds: its share of a data set, or rows of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets

from mobillm_flower.config import BadRows, DataSettings, Partition, Settings
from mobillm_flower.errors import DataError
from mobillm_flower.privacy.device_folder import plain_text
from mobillm_flower.tasks.labels import LabelRule, label_rule
from mobillm_flower.tasks.partitions import places
from mobillm_flower.tasks.rows import LeftOut, both_splits
from mobillm_flower.tasks.sources import load_splits
from mobillm_flower.tasks.task import TASKS, LeavesOut, Samples, has_classes, label_column, make_contract
from mobillm_flower.wire.contract import TaskContract

_TEXT_TYPES = ("string", "large_string")


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
    left_out : LeftOut
        Rows that cannot be used.
    """

    contract: TaskContract
    train: Samples
    test: Samples
    train_rows: tuple[bytes, ...] = ()
    test_rows: tuple[bytes, ...] = ()
    left_out: LeftOut = field(default_factory=LeftOut)


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
        As `load_splits`; or the partition does not exist, or no row of it can be used.
    """
    if not 0 <= partition_id < num_partitions:
        raise DataError(f"partition-id={partition_id} must be from 0 to num-partitions − 1 = {num_partitions - 1}")
    splits = Splits.of(*load_splits(settings.data), settings)
    return splits.local(settings, partition_id, num_partitions)


def read_rows(train: Any, test: Any, settings: Settings) -> LocalData:
    """Read a device's own rows, in any form that `load_data` may return.

    Class names come from `task.labels` or from the column's ClassLabel: the values of one device's rows are neither
    those of the fleet nor to be told.

    Raises
    ------
    DataError
        The rows have another form, a classification names its classes nowhere, or no row can be used.
    """
    train, test = both_splits((train, test))
    check_own_classes(train, settings)
    splits = Splits.of(train, test, settings)
    return splits.read(settings, range(len(train)), range(len(test)))


def check_own_classes(train: datasets.Dataset, settings: Settings) -> None:
    """Refuse the train rows of a `load_data` of which nothing names the classes; raises DataError."""
    named = settings.task.labels or label_column(train, settings).names
    if has_classes(settings) and not named:
        raise DataError("load_data's rows do not name the classes: give task.labels, in order, or a ClassLabel column")


def load_central_data(settings: Settings) -> LocalData:
    """Load what all devices hold in one place: for references and benchmarks, never on a device."""
    splits, count = Splits.of(*load_splits(settings.data), settings), settings.data.num_devices
    train: Sequence[int] = range(len(splits.train))
    if settings.data.max_samples:
        most = settings.data.max_samples
        train = [row for i in range(count) for row in splits.share(settings.data, i, count)[:most]]
    return splits.read(settings, train, range(len(splits.test)))


@dataclass(frozen=True)
class Splits:
    """Both splits of a source, and how their labels are read.

    Parameters
    ----------
    train, test : datasets.Dataset
        All rows.
    contract : TaskContract
        The task.
    train_rule, test_rule : LabelRule or None
        Which class a label is; None where the task has no classes, or reads labels in a way of its own.
    """

    train: datasets.Dataset
    test: datasets.Dataset
    contract: TaskContract
    train_rule: LabelRule | None
    test_rule: LabelRule | None

    @classmethod
    def of(cls, train: datasets.Dataset, test: datasets.Dataset, settings: Settings) -> Splits:
        """Understand the columns of two splits; raises DataError where that cannot be done."""
        for name, rows in (("train", train), ("test", test)):
            if not rows.column_names:
                raise DataError(f"the {name} split is empty: it has neither rows nor columns; give it rows")
        column = label_column(train, settings)
        contract = make_contract(settings, column)
        if not isinstance(TASKS[settings.task.kind], LeavesOut) or not contract.labels:
            return cls(train, test, contract, None, None)
        setting = f"data.label-column={settings.data.label_column!r}"
        rule = label_rule(contract.labels, column, column.names, setting=setting)
        with _of_test(test):
            tested = label_column(test, settings)
            if tested.names == rule.own and any(rule(value) is not None for value in column):
                return cls(train, test, contract, rule, rule)
            return cls(train, test, contract, rule, label_rule(contract.labels, tested, tested.names, setting=setting))

    def share(self, settings: DataSettings, partition_id: int, num_partitions: int) -> list[int]:
        """Return the train rows of a device, those that cannot be used among them."""
        rows, part = range(len(self.train)), self.train
        if settings.partition == Partition.dirichlet and self.train_rule:  # skewed by label: those that have one
            rule, labels = self.train_rule, self.train[settings.label_column][:]
            kept = [row for row in rows if rule(labels[row]) is not None]
            if len(kept) < len(rows):
                return [kept[i] for i in places(part.select(kept), settings, partition_id, num_partitions)]
        return places(part, settings, partition_id, num_partitions)

    def local(self, settings: Settings, partition_id: int, num_partitions: int) -> LocalData:
        """Return what a device holds."""
        mine = self.share(settings.data, partition_id, num_partitions)
        cut = settings.data
        if cut.partition == Partition.dirichlet:  # a skewed test split would measure the skew
            cut = dataclasses.replace(cut, partition=Partition.iid)
        with _of_test(self.test):
            tested = places(self.test, cut, partition_id, num_partitions, like=self.train)
        return self.read(settings, mine[: cut.max_samples or None], tested)

    def read(self, settings: Settings, train: Sequence[int], test: Sequence[int]) -> LocalData:
        """Return rows of both splits as samples, without those that cannot be used."""
        kept, digests, bad = self._samples(self.train, train, self.train_rule, settings)
        with _of_test(self.test):
            tested, test_digests, bad_test = self._samples(self.test, test, self.test_rule, settings)
        left_out = LeftOut.of_reasons(train=bad, test=bad_test)
        check_left_out(left_out, settings, kept=len(kept))
        return LocalData(self.contract, kept, tested, digests, test_digests, left_out)

    def _samples(
        self, rows: datasets.Dataset, chosen: Sequence[int], rule: LabelRule | None, settings: Settings
    ) -> tuple[Samples, tuple[bytes, ...], dict[int, str]]:
        """Return the rows of a split that can be used, their digests, and why the others cannot, by their places."""
        task = TASKS[settings.task.kind]
        part = rows if len(chosen) == len(rows) and list(chosen) == list(range(len(rows))) else rows.select(chosen)
        if not isinstance(task, LeavesOut):
            return task.samples(part, settings, self.contract), _row_digests(part), {}
        samples, reasons = task.read(part, settings, self.contract, rule)
        samples = dataclasses.replace(samples, rows=tuple(chosen))
        digests = _row_digests(part)
        if reasons:
            kept = [i for i in range(len(samples)) if i not in reasons]
            samples, digests = samples.take(kept), tuple(digests[i] for i in kept) if digests else ()
        return samples, digests, {chosen[i]: reason for i, reason in reasons.items()}


@contextlib.contextmanager
def _of_test(rows: datasets.Dataset) -> Iterator[None]:
    """Say of an error that it speaks of the test split."""
    try:
        yield
    except DataError as error:
        raise DataError(f"test split ({len(rows)} rows): {error}") from error


def _row_digests(rows: Any) -> tuple[bytes, ...]:
    """Return a digest of the texts of each row, in whatever order and however often they stand in it."""
    texts = [name for name, feature in rows.features.items() if getattr(feature, "dtype", "") in _TEXT_TYPES]
    rows_of_texts = zip(*(rows[name][:] for name in texts), strict=True)
    sets = ({plain_text(value) for value in row if value} for row in rows_of_texts)
    return tuple(hashlib.sha256(repr(sorted(words)).encode()).digest() for words in sets)


def check_left_out(left_out: LeftOut, settings: Settings, *, kept: int) -> None:
    """Refuse rows that cannot be used where `data.bad-rows` says so, and a device of which no train row is left.

    Raises
    ------
    DataError
        Which rows, and why.
    """
    if settings.data.bad_rows == BadRows.refuse and left_out.counts:
        raise DataError(f"{left_out}; mend these rows, or leave them out with data.bad-rows=drop")
    if not kept and (reasons := left_out.of("train")):
        raise DataError(f"no train row is left: {reasons}")
