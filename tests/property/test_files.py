"""Any rows, in any file that can hold them: what is read is what was written."""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import io
import json
import lzma
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobillm_flower.config import load_settings
from mobillm_flower.errors import MobiLLMError
from mobillm_flower.tasks import load_splits, read_texts
from mobillm_flower.tasks.readers import FileForm

LETTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\x00")
ROWS = st.lists(
    st.tuples(
        st.text(LETTERS, min_size=1, max_size=30), st.sampled_from(["a b", "c,d", 'e"f', "g/h", "NA", "null", "ä"])
    ),
    min_size=1,
    max_size=8,
)
PACKING: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def content(suffix: str, rows: list[tuple[str, str]], encoding: str) -> bytes:
    if suffix in (".csv", ".tsv"):
        stream = io.StringIO(newline="")
        csv.writer(stream, delimiter="," if suffix == ".csv" else "\t").writerows([("text", "label"), *rows])
        return stream.getvalue().encode(encoding)
    held = [{"text": text, "label": label} for text, label in rows]
    if suffix == ".json":
        return json.dumps(held, ensure_ascii=False).encode(encoding)
    if suffix == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in held).encode(encoding)
    out = io.BytesIO()
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(held), out)
    else:
        pyarrow.feather.write_feather(pa.Table.from_pylist(held), out)
    return out.getvalue()


@given(
    rows=ROWS,
    suffix=st.sampled_from([".csv", ".tsv", ".jsonl", ".json", ".parquet", ".feather"]),
    packing=st.sampled_from(list(PACKING)),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
@settings(max_examples=25, deadline=None)
def test_what_is_written_is_read(rows: list[tuple[str, str]], suffix: str, packing: str, encoding: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for split in ("train", "test"):
            Path(folder, split + suffix + packing).write_bytes(PACKING[packing](content(suffix, rows, encoding)))
        named = "utf-8" if encoding == "utf-8-sig" else encoding
        train, _ = load_splits(load_settings({"data.source": folder, "data.encoding": named}).data)
        assert list(zip(train["text"], train["label"], strict=True)) == rows
        file = Path(folder, "test" + suffix + packing)
        assert list(read_texts(file, FileForm(texts=("text", "label"), encoding=named))) == rows


@pytest.mark.parametrize(
    "suffix", [".csv", ".jsonl", ".json", ".parquet", ".feather", ".csv.gz", ".jsonl.xz", ".parquet.bz2"]
)
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_damaged_files_are_refused_or_read(suffix: str, data: st.DataObject) -> None:
    """Bits flipped, bytes cut or put in: rows come out, or an error of ours."""
    form, _, packing = suffix[1:].partition(".")
    whole = PACKING["." + packing if packing else ""](
        content("." + form, [("it will do", "fair"), ("ä\nb", "good")] * 4, "utf-8")
    )
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(damaged) - 1))
        damaged[place] ^= 1 << data.draw(st.integers(0, 7))
    damaged = damaged[: data.draw(st.integers(0, len(whole)))] if data.draw(st.booleans()) else damaged
    with tempfile.TemporaryDirectory() as folder:
        for split in ("train", "test"):
            Path(folder, split + suffix).write_bytes(damaged)
        file = Path(folder, "train" + suffix)
        with contextlib.suppress(MobiLLMError):
            for rows in load_splits(load_settings({"data.source": folder}).data):
                assert "text" not in rows.column_names or len(rows["text"][:]) == len(rows)
        with contextlib.suppress(MobiLLMError):
            list(read_texts(file, FileForm()))
