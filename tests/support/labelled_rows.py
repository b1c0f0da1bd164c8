"""A few rows with texts, labels and people, as a data set and as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets

from mobillm_flower.config import Settings, load_settings

ROWS = [{"text": f"text {i}", "label": ["no", "yes", "maybe"][i % 3], "who": f"user{i % 4}"} for i in range(60)]


def with_settings(*words: str) -> Settings:
    return load_settings(overrides=words)


def dataset(rows: list[dict[str, Any]]) -> datasets.Dataset:
    return datasets.Dataset.from_list(rows)


def write_jsonl(folder: Path, train: list[dict[str, Any]] = ROWS, test: list[dict[str, Any]] = ROWS[:12]) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    for name, rows in (("train", train), ("test", test)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return folder
