"""Files as tools write them: every form of the how-to page's table, and what is said of files that cannot be read."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from mobillm_flower.config import load_settings
from mobillm_flower.errors import DataError, SettingsError
from mobillm_flower.tasks import load_local_data, load_splits, read_texts
from mobillm_flower.tasks.readers import FileForm

PAGE = Path(__file__).parents[3] / "docs/how-to/your-data-and-backbone.md"
TEXTS = ["Hi,\nit is late", 'say "hi"', "née à Zürich", "17", "a; b\tc", "plain"] * 5
ROWS: list[dict[str, Any]] = [
    {"id": i, "text": text, "label": ["bad", "good"][i % 2], "part": "test" if i % 3 == 0 else "train"}
    for i, text in enumerate(TEXTS)
]
SPLITS = {name: [row for row in ROWS if row["part"] == name] for name in ("train", "test")}


def separated(rows: list[dict[str, Any]], delimiter: str = ",") -> str:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def parquet(rows: list[dict[str, Any]], file: Path) -> None:
    pq.write_table(pa.Table.from_pylist(rows), file)


def each(folder: Path, name: str, write: Callable[[list[dict[str, Any]], Path], object]) -> None:
    for split, rows in SPLITS.items():
        write(rows, folder / name.format(split))


def texts(name: str, form: Callable[[list[dict[str, Any]]], str], encoding: str = "utf-8") -> Callable[[Path], None]:
    return lambda folder: each(folder, name, lambda rows, file: file.write_bytes(form(rows).encode(encoding)))


def shards(folder: Path) -> None:
    parquet(SPLITS["train"][:7], folder / "train-00000-of-00002.parquet")
    parquet(SPLITS["train"][7:], folder / "train-00001-of-00002.parquet")
    parquet(SPLITS["test"], folder / "test.parquet")


def compressed(folder: Path) -> None:
    (folder / "train.csv.gz").write_bytes(gzip.compress(separated(SPLITS["train"][:4]).encode()))
    (folder / "train-1.jsonl.bz2").write_bytes(bz2.compress(lines(SPLITS["train"][4:8]).encode()))
    (folder / "train-2.tsv.xz").write_bytes(lzma.compress(separated(SPLITS["train"][8:12], "\t").encode()))
    held = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(SPLITS["train"][12:]), held)
    with pa.CompressedOutputStream(str(folder / "train-3.parquet.zst"), "zstd") as stream:
        stream.write(held.getvalue())
    (folder / "test.csv.gz").write_bytes(gzip.compress(separated(SPLITS["test"]).encode()))


def folders(folder: Path) -> None:
    for split, rows in SPLITS.items():
        (folder / split).mkdir()
        (folder / split / "part-0.csv").write_text(separated(rows[:3]), newline="")
        (folder / split / "part-1.csv").write_text(separated(rows[3:]), newline="")
        (folder / split / "_SUCCESS").touch()


def inner(folder: Path) -> None:
    (folder / "data").mkdir()
    shards(folder / "data")


def clone(folder: Path) -> None:
    (folder / "parts").mkdir()
    each(folder, "parts/{}.jsonl", lambda rows, file: file.write_text(lines(rows)))
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: parts/train.jsonl\n"
        "  - split: test\n    path: parts/test.jsonl\n---\n"
    )


def saved(folder: Path) -> None:
    datasets.DatasetDict({split: datasets.Dataset.from_list(rows) for split, rows in SPLITS.items()}).save_to_disk(
        folder
    )


def train_alone(folder: Path) -> None:
    (folder / "train.jsonl").write_text(lines(ROWS))


def feather(rows: list[dict[str, Any]], file: Path) -> object:
    return pyarrow.feather.write_feather(pa.Table.from_pylist(rows), str(file))


# By the first cell of a row of the table: what writes it, its settings, and whether the test rows are drawn
FORMS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "`train.parquet`, `test.parquet`": (lambda folder: each(folder, "{}.parquet", parquet), []),
    "`train-00000-of-00002.parquet`, `train-00001-of-00002.parquet`, `test.parquet`": (shards, []),
    "`train.jsonl` (or `.ndjson`): one JSON object a line": (texts("{}.ndjson", lines), []),
    "`train.json`: one list of JSON objects, or one object a line": (texts("{}.json", json.dumps), []),
    "`train.csv` with a heading": (texts("{}.csv", separated), []),
    "`train.csv` with semicolons": (texts("{}.csv", lambda rows: separated(rows, ";")), ["data.delimiter=;"]),
    "`train.tsv` with a heading": (texts("{}.tsv", lambda rows: separated(rows, "\t")), []),
    "`train.txt`: one text a line, without labels": (
        texts("{}.txt", lambda rows: "".join(row["text"].replace("\n", " ") + "\n" for row in rows)),
        ["task.kind=language-modelling"],
    ),
    "`train.arrow` (or `.feather`)": (lambda folder: each(folder, "{}.feather", feather), []),
    "`train.csv.gz`, `train.jsonl.bz2`, `train.tsv.xz`, `train.parquet.zst`": (compressed, []),
    "folders `train/` and `test/` with files of any name": (folders, []),
    "a folder `data/` with the files of the splits": (inner, []),
    "`train.csv` in another encoding": (texts("{}.csv", separated, "cp1252"), ["data.encoding=cp1252"]),
    "a folder that `datasets` wrote with `save_to_disk`": (saved, []),
    "a clone of a hub data set (`git lfs pull` has run)": (clone, []),
    "one file, whose column `part` says `train` or `test`": (
        lambda folder: (folder / "all.csv").write_text(separated(ROWS), newline=""),
        ["data.split-column=part"],
    ),
    "one file with all rows": (lambda folder: (folder / "all.jsonl").write_text(lines(ROWS)), ["data.test-share=0.2"]),
    "a train split alone": (train_alone, ["data.test-share=0.2"]),
}


def table_of_forms() -> dict[str, str]:
    rows = re.findall(
        r"^\| (.+?) \| ?(.*?) ?\|$", PAGE.read_text("utf-8").partition("| what you have |")[2], re.MULTILINE
    )
    return {
        first: second
        for first, second in rows[: next(i for i, row in enumerate(rows) if row[0] == "`task.kind`")]
        if first != "what to set" and not first.startswith("---")
    }


def test_the_page_has_each_form_and_no_other() -> None:
    assert list(table_of_forms()) == list(FORMS)
    for what, (_, settings) in FORMS.items():
        for word in settings:
            assert f"`{word}`" in table_of_forms()[what], what


@pytest.mark.parametrize("what", list(FORMS))
def test_each_form_of_the_page_is_read(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "rows"
    folder.mkdir()
    write, settings = FORMS[what]
    write(folder)
    source = next(folder.iterdir()) if "one file" in what else folder
    train, test = load_splits(load_settings(overrides=[f"data.source={source}", *settings]).data)
    if "data.test-share=0.2" in settings:
        assert len(test) == 6
        assert sorted([*train["id"], *test["id"]]) == list(range(len(ROWS)))
        again, _ = load_splits(load_settings(overrides=[f"data.source={source}", *settings, "data.seed=1"]).data)
        assert list(again["id"]) != list(train["id"])
        return
    breaks = " " if "txt" in what else "\n"
    for split, rows in (("train", train), ("test", test)):
        assert list(rows["text"]) == [row["text"].replace("\n", breaks) for row in SPLITS[split]]
        if "txt" not in what:
            assert list(rows["id"]) == [row["id"] for row in SPLITS[split]]
            assert list(rows["label"]) == [row["label"] for row in SPLITS[split]]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".txt", ".csv.gz", ".parquet", ".feather"])
def test_what_training_reads_predict_reads(tmp_path: Path, suffix: str, mark: bytes) -> None:
    rows = [{"text": row["text"].replace("\n", " "), "label": row["label"]} for row in ROWS]
    file = tmp_path / f"train{suffix}"
    if suffix in (".parquet", ".feather"):
        (parquet if suffix == ".parquet" else feather)(rows, file)
    else:
        written = {".csv": separated(rows), ".tsv": separated(rows, "\t"), ".txt": "\n".join(r["text"] for r in rows)}
        content = mark + written.get(suffix.removesuffix(".gz"), lines(rows)).encode()
        file.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    settings = load_settings(overrides=[f"data.source={file}", "data.test-share=0.2"]).data
    train, test = load_splits(settings)
    predicted = [text for text, _ in read_texts(file, FileForm())]
    assert predicted == [row["text"] for row in rows]
    assert sorted([*train["text"], *test["text"]]) == sorted(predicted)


@pytest.mark.parametrize(
    "form", ["Hi,\nparcel {} is late", "Dear team,\n\nparcel {} is late", "Hi,\nplease, parcel {} is late"]
)
def test_line_breaks_in_quotes_are_of_the_text_in_files_of_any_size(tmp_path: Path, form: str) -> None:
    rows = [{"text": form.format(i), "label": ("late", "lost")[i % 2]} for i in range(40_000)]
    (tmp_path / "train.csv").write_text(separated(rows), newline="")
    (tmp_path / "test.csv").write_text(separated(rows[:4]), newline="")
    train, _ = load_splits(load_settings({"data.source": str(tmp_path)}).data)
    assert train["text"][:] == [row["text"] for row in rows]


TEXT, LABEL = ["it will do", "a joy"] * 5, ["fair", "good"] * 5


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ({"text": TEXT, "label": LABEL}, {"label": LABEL, "text": TEXT}),
        ({"text": TEXT, "label": LABEL}, {"text": pa.array(TEXT, pa.large_string()), "label": LABEL}),
        ({"text": TEXT, "label": LABEL}, {"text": pa.array(TEXT, pa.string_view()), "label": LABEL}),
        ({"text": TEXT, "label": LABEL}, {"text": TEXT, "label": pa.array(LABEL).dictionary_encode()}),
        ({"text": TEXT, "label": LABEL}, {"text": TEXT, "label": LABEL, "note": LABEL}),
        ({"text": TEXT, "label": LABEL, "note": pa.nulls(10)}, {"text": TEXT, "label": LABEL, "note": LABEL}),
        ({"text": TEXT, "label": LABEL, "n": list(range(10))}, {"text": TEXT, "label": LABEL, "n": [0.5] * 10}),
        ({"text": TEXT, "label": LABEL, "n": list(range(10))}, {"text": TEXT, "label": LABEL, "n": LABEL}),
        ({"text": TEXT, "label": LABEL, "n": [[1]] * 10}, {"text": TEXT, "label": LABEL, "n": LABEL}),
    ],
)
def test_files_of_a_split_may_differ_where_nothing_is_named(tmp_path: Path, one: Any, two: Any) -> None:
    for name, table in (("train-0", one), ("train-1", two), ("test", one)):
        pq.write_table(pa.table(table), tmp_path / f"{name}.parquet")
    data = load_local_data(load_settings({"data.source": str(tmp_path)}), 0, 1)
    assert sorted(data.train.texts) == sorted(TEXT * 2)
    assert data.contract.labels == ("fair", "good")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"train.csv": "text,label\nit will do,fair\na joy, every day,good\n"},
            r"train\.csv: line 3 has 3 field\(s\), the he",
        ),
        ({"train.csv": 'text,label\n"open,fair\na joy,good\n'}, r"train\.csv: line 3: unexpected end of data"),
        ({"train.csv": 'text,label\n"a" joy,good\n'}, r"train\.csv: line 2: ',' expected after '\"'"),
        ({"train.csv": "text,text\na,b\n"}, r"train\.csv: the heading names the column 'text' twice"),
        (
            {"train.jsonl": '{"text": "a"}\n{"text": "a joy"\n'},
            r"line 2 is no JSON object \(Expecting ',' delimiter, column",
        ),
        (
            {"train.json": '[{"text": "a joy"},\n {"text": }]'},
            r"no list of JSON objects \(Expecting value, line 2, column 11",
        ),
        ({"train.json": '[{"text": "a joy"}, 5]'}, r"train\.json: row 2 is no JSON object"),
        ({"train.json": '{\n"data": []}'}, r"line 1 is no JSON object .* one list of objects"),
        ({"train.jsonl": '{"text": "a joy"}\n{"text": ["a joy"]}\n'}, r"line 2, column 'text': a list that is unlike"),
        ({"train.jsonl": '{"text": "a \\ud800joy"}\n'}, r"line 1, column 'text': a str that .* cannot be stored"),
        (
            {"train-0.csv": "text,label\na,b\n", "train-1.csv": "text\na\n"},
            r"train-1\.csv has no column 'label', which",
        ),
        ({"train.csv": "text\na\n", "train.csv.gz": ""}, r"has train\.csv and train\.csv\.gz: the same rows twice"),
        ({"train.csv": "text\na\n", "train/0.csv": "text\na\n"}, r"has both train\.csv and a folder train"),
        ({"train.xlsx": "text,label\na,b\n"}, r"has no file of split 'train': .*Read are \.parquet"),
        (
            {"train.jsonl": "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"},
            r"train\.jsonl is a Git LFS p",
        ),
        ({"train.csv.gz": "text,label\na,b\n"}, r"train\.csv\.gz cannot be read \(OSError: "),
    ],
)
def test_why_files_cannot_be_read(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        load_splits(load_settings({"data.source": str(tmp_path)}).data)
    assert "joy" not in str(caught.value)


def test_values_of_several_types_in_a_json_column_are_text(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "a", "label": 1}\n{"text": "b", "label": "A2"}\n{"text": "c"}\n')
    settings = load_settings({"data.source": str(tmp_path), "data.test-share": 0.4}).data
    rows = [row for split in load_splits(settings) for row in split]
    assert {(row["text"], row["label"]) for row in rows} == {("a", "1"), ("b", "A2"), ("c", None)}


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (["1", "20", "-3"], [1, 20, -3]),
        (["01", "02", "10"], ["01", "02", "10"]),
        (["1.0", "2.50", "1e3"], [1.0, 2.5, 1000.0]),
        (["1.1", "1.10", "1.2"], ["1.1", "1.10", "1.2"]),
        (["1", "", "3"], [1, None, 3]),
        (["True", "False", "True"], ["True", "False", "True"]),
        (["2024-01-01", "2", "3"], ["2024-01-01", "2", "3"]),
        (["99999999999999999999", "2", "3"], ["99999999999999999999", "2", "3"]),
    ],
)
def test_a_column_of_a_csv_file_is_numbers_where_none_loses_its_name(tmp_path: Path, written: Any, read: Any) -> None:
    (tmp_path / "train.csv").write_text(separated([{"text": "5", "label": value} for value in written]))
    (tmp_path / "test.csv").write_text(separated([{"text": "5", "label": value} for value in written]))
    train, _ = load_splits(load_settings({"data.source": str(tmp_path)}).data)
    assert list(train["label"]) == read
    assert set(train["text"]) == {"5"}


def test_encodings_are_named_and_never_guessed(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_bytes("text,label\nein Satz,gut\nfür dich,gut\n".encode("cp1252"))
    with pytest.raises(
        DataError, match=r"train\.csv is not text in UTF-8 in line 3; name its encoding with data\.encoding"
    ):
        load_splits(load_settings({"data.source": str(tmp_path)}).data)
    with pytest.raises(SettingsError, match=r"data\.encoding='klingon' is no encoding that Python has"):
        load_splits(load_settings({"data.source": str(tmp_path), "data.encoding": "klingon"}).data)


def test_one_file_needs_a_word_on_its_splits(tmp_path: Path) -> None:
    file = tmp_path / "all.jsonl"
    file.write_text(lines(ROWS))
    refused: list[tuple[dict[str, Any], str]] = [
        ({}, "is one set of rows: set data.split-column .* or data.test-share"),
        ({"data.split-column": "part", "data.test-share": 0.5}, "give one of them"),
    ]
    for words, message in refused:
        with pytest.raises(SettingsError, match=message):
            load_splits(load_settings({"data.source": str(file), **words}).data)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"data.split-column": "fold"}, "data.split-column='fold' is none of the data's 4 columns"),
        ({"data.split-column": "part", "data.test-split": "dev"}, "no row has data.split-column=part = 'dev'"),
    ]
    for words, message in wrong:
        with pytest.raises(DataError, match=message):
            load_splits(load_settings({"data.source": str(file), **words}).data)


def test_a_spreadsheet_is_not_read_as_text(tmp_path: Path) -> None:
    (tmp_path / "texts.xlsx").write_text("a text\n")
    with pytest.raises(DataError, match=r"texts\.xlsx: files of this kind are not read; save it as one of \.parquet"):
        list(read_texts(tmp_path / "texts.xlsx", FileForm()))


def test_a_clone_without_its_large_files(tmp_path: Path) -> None:
    clone(tmp_path)
    (tmp_path / "parts/test.jsonl").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(
        DataError, match=r"test\.jsonl is a Git LFS pointer, not the data themselves; run `git lfs pull`"
    ):
        load_splits(load_settings({"data.source": str(tmp_path)}).data)


@pytest.mark.parametrize("empty", ["train", "test"])
def test_a_saved_folder_one_of_whose_splits_has_no_rows(tmp_path: Path, empty: str) -> None:
    splits = {split: datasets.Dataset.from_list(rows) for split, rows in SPLITS.items()}
    splits[empty] = splits[empty].select([])
    datasets.DatasetDict(splits).save_to_disk(tmp_path)
    train, test = load_splits(load_settings({"data.source": str(tmp_path)}).data)
    assert (len(train), len(test)) == (len(splits["train"]), len(splits["test"]))
    assert train.features == test.features == splits["train"].features


def test_a_split_that_a_saved_folder_has_not(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(DataError, match="which save_to_disk wrote, has no split 'dev'"):
        load_splits(load_settings({"data.source": str(tmp_path), "data.test-split": "dev"}).data)


def test_a_saved_folder_that_is_damaged(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "train/state.json").write_text("{")
    with pytest.raises(DataError, match="which save_to_disk wrote, cannot be read"):
        load_splits(load_settings({"data.source": str(tmp_path)}).data)
