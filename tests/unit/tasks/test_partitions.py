"""How rows are cut into devices, and what folders of files are read as."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest

from mobillm_flower.config import Settings
from mobillm_flower.errors import DataError
from mobillm_flower.tasks import (
    LocalData,
    load_central_data,
    load_local_data,
    load_splits,
)
from mobillm_flower.tasks.partitions import places
from tests.support.labelled_rows import ROWS, dataset, with_settings, write_jsonl


# partitions ------------------------------------------------------------------------------------------------------
def texts_of(settings: Settings, devices: int, part: str) -> list[list[str]]:
    shares: list[LocalData] = [load_local_data(settings, i, devices) for i in range(devices)]
    return [getattr(share, part).texts for share in shares]


@pytest.mark.parametrize(
    "words",
    [
        ["data.partition=iid"],
        ["data.partition=dirichlet", "data.alpha=0.5"],
        ["data.partition=natural", "data.partition-column=who"],
    ],
    ids=["iid", "dirichlet", "natural"],
)
@pytest.mark.parametrize("devices", [1, 2, 3, 4])
def test_shares_are_disjoint_and_complete(tmp_path: Path, words: list[str], devices: int) -> None:
    settings = with_settings(f"data.source={write_jsonl(tmp_path)}", *words)
    for part, rows in (("train", ROWS), ("test", ROWS[:12])):
        shares = texts_of(settings, devices, part)
        assert Counter(text for share in shares for text in share) == Counter(row["text"] for row in rows)
        assert all(shares)
        assert shares == texts_of(settings, devices, part)
    contracts = {load_local_data(settings, i, devices).contract for i in range(devices)}
    assert len(contracts) == 1


def test_iid_depends_on_the_seed(tmp_path: Path) -> None:
    source = f"data.source={write_jsonl(tmp_path)}"
    first, second = (texts_of(with_settings(source, f"data.seed={seed}"), 2, "train") for seed in (0, 1))
    assert first != second


def test_dirichlet_is_skewed_in_train_and_not_in_test(tmp_path: Path) -> None:
    rows = [{"text": str(i), "label": i % 2} for i in range(400)]
    source = f"data.source={write_jsonl(tmp_path, rows, rows)}"
    settings = with_settings(source, "data.partition=dirichlet", "data.alpha=0.1")
    shares = [load_local_data(settings, i, 4) for i in range(4)]
    skews = [abs(float(share.train.labels.float().mean()) - 0.5) for share in shares]
    assert max(skews) > 0.3
    assert all(abs(float(share.test.labels.float().mean()) - 0.5) < 0.2 for share in shares)


def test_natural_keeps_a_value_on_one_device(tmp_path: Path) -> None:
    settings = with_settings(
        f"data.source={write_jsonl(tmp_path)}", "data.partition=natural", "data.partition-column=who"
    )
    owner = {row["text"]: row["who"] for row in ROWS}
    owners = [{owner[text] for text in share} for share in texts_of(settings, 2, "train")]
    assert owners == [{"user0", "user2"}, {"user1", "user3"}]
    assert texts_of(settings, 5, "train")[4] == []


def test_natural_needs_its_column(tmp_path: Path) -> None:
    settings = with_settings(
        f"data.source={write_jsonl(tmp_path)}", "data.partition=natural", "data.partition-column=owner"
    )
    with pytest.raises(DataError, match=r"data.partition-column='owner' is none of the data's 3 columns"):
        load_local_data(settings, 0, 2)


@pytest.mark.parametrize("partition_id", [-1, 2, 7])
def test_a_partition_that_does_not_exist(partition_id: int) -> None:
    with pytest.raises(DataError, match=rf"partition-id={partition_id} must be from 0 to num-partitions − 1 = 1"):
        load_local_data(with_settings(), partition_id, 2)


def share_of(rows: datasets.Dataset, settings: Settings, number: int, devices: int) -> list[str]:
    return list(rows.select(places(rows, settings.data, number, devices))["text"])


@pytest.mark.parametrize("seed", range(6))
def test_a_small_alpha_with_two_labels_leaves_no_device_without_rows(seed: int) -> None:
    """Most draws do, and flwr-datasets gives up after ten of them."""
    rows = dataset([{"text": f"text {i}", "label": str(i % 2), "who": "user0"} for i in range(1000)])
    settings = with_settings("data.partition=dirichlet", "data.alpha=0.1", f"data.seed={seed}")
    shares = [share_of(rows, settings, number, 10) for number in range(10)]
    assert all(shares)
    assert sorted(text for share in shares for text in share) == sorted(rows["text"])


def test_rows_that_cannot_be_cut() -> None:
    settings = with_settings("data.partition=dirichlet", "data.alpha=0.01")
    with pytest.raises(DataError, match=r"40 rows cannot be cut into 39 devices \(dirichlet\)"):
        share_of(dataset(ROWS[:40]), settings, 0, 39)


@pytest.mark.parametrize("kind", ["iid", "dirichlet"])
def test_fewer_rows_than_devices_leave_devices_without(kind: str) -> None:
    settings = with_settings(f"data.partition={kind}")
    shares = [share_of(dataset(ROWS[:4]), settings, number, 6) for number in range(6)]
    assert sorted(map(len, shares)) == [0, 0, 1, 1, 1, 1]
    assert sorted(text for share in shares for text in share) == [row["text"] for row in ROWS[:4]]


def test_max_samples(tmp_path: Path) -> None:
    settings = with_settings(f"data.source={write_jsonl(tmp_path)}", "data.max-samples=5")
    data = load_local_data(settings, 0, 2)
    assert (len(data.train), len(data.test)) == (5, 6)
    shares = [load_local_data(settings, i, 10).train.texts for i in range(10)]
    assert load_central_data(settings).train.texts == [text for share in shares for text in share]


# folders ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_a_folder_of_files(tmp_path: Path, suffix: str) -> None:
    for split, rows in (("train", ROWS), ("test", ROWS[:12])):
        file = tmp_path / f"{split}.{suffix}"
        table = dataset(rows)
        {"csv": table.to_csv, "parquet": table.to_parquet}.get(suffix, table.to_json)(file)
    settings = with_settings(f"data.source={tmp_path}")
    data = load_central_data(settings)
    assert data.contract.labels == ("maybe", "no", "yes")
    assert data.train.texts == [row["text"] for row in ROWS]
    assert [data.contract.labels[i] for i in data.train.labels] == [row["label"] for row in ROWS]
    assert len(data.test) == 12


def test_a_split_of_several_files(tmp_path: Path) -> None:
    for i in range(3):
        dataset(ROWS[20 * i : 20 * i + 20]).to_parquet(tmp_path / f"train-0000{i}-of-00003.parquet")
    dataset(ROWS[:12]).to_parquet(tmp_path / "validation.parquet")
    train, test = load_splits(with_settings(f"data.source={tmp_path}", "data.test-split=validation").data)
    assert list(train["text"]) == [row["text"] for row in ROWS]
    assert len(test) == 12


def test_a_split_that_is_missing(tmp_path: Path) -> None:
    write_jsonl(tmp_path)
    with pytest.raises(DataError, match=r"has no file of split 'dev'.*dev.parquet, .jsonl, .json"):
        load_splits(with_settings(f"data.source={tmp_path}", "data.test-split=dev").data)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("train.jsonl", "train.jsonl: line 1 is no JSON object \\(Unterminated string starting at, column 15\\)"),
        ("train.parquet", "train.parquet cannot be read \\(ArrowInvalid: Parquet magic bytes not found"),
    ],
)
def test_a_damaged_file(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(b'{"text": "a", "lab')
    with pytest.raises(DataError, match=message):
        load_splits(with_settings(f"data.source={tmp_path}").data)


def test_a_source_that_is_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_arguments: Any, **_keywords: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(
        DataError, match=r"data.source='no/such', split 'train': no local file or folder, and the hub did not"
    ):
        load_splits(with_settings("data.source=no/such").data)


def test_the_package_s_own_data_has_two_splits() -> None:
    with pytest.raises(DataError, match=r"data.source=phone-messages has splits train and test, not 'dev'"):
        load_splits(with_settings("data.test-split=dev").data)
    with pytest.raises(DataError, match=r"data.label-column='class' is none of the data's 3 columns"):
        load_central_data(with_settings("data.label-column=class"))
