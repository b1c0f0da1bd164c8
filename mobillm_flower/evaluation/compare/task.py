"""What is compared on: a task's settings and the rows that are cut for it, as plain words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets

from mobillm_flower.config import load_settings
from mobillm_flower.tasks import load_splits

IID, NATURAL = "iid", "natural"


@dataclass(frozen=True)
class ComparedTask:
    """A task of a comparison.

    Parameters
    ----------
    name : str
        Its own.
    settings : mapping
        ``key: value`` words that hold for every method: source, columns, kind, metric, length, backbone.
    num_train : int
        Training rows, cut from the train split after shuffling with seed 0.
    num_validation : int
        Further rows of the train split, on which settings are chosen.
    num_test : int
        Rows of the test split that are measured on; 0: all.
    """

    name: str
    settings: Mapping[str, str]
    num_train: int
    num_validation: int = 500
    num_test: int = 0

    @property
    def has_pairs(self) -> bool:
        """Whether its samples are pairs of texts that are compared with one another."""
        return "data.pair-column" in self.settings and self.settings.get("task.kind") != "language-modelling"

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values, for results that others read: of a source its name, not where it lies."""
        source = self.settings.get("data.source")
        named = {"data.source": Path(source).name} if source else {}
        return {**asdict(self), "settings": {**self.settings, **named}}

    def write(self, work: Path, *, held_out: str) -> Path:
        """Write the cut data set as parquet, tested on `held_out` ("validation" or "test"), and return its folder."""
        source = {key: value for key, value in self.settings.items() if key.startswith("data.")}
        mark = hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()[:8]
        name = f"{self.name}-{mark}-{self.num_train}-{self.num_validation}-{self.num_test}-{held_out}"
        folder = work / "data" / name
        if (folder / "test.parquet").exists():
            return folder
        datasets.disable_progress_bars()
        train, test = load_splits(load_settings(overrides=[f"{key}={value}" for key, value in source.items()]).data)
        train = train.shuffle(seed=0)
        if held_out == "validation":
            test = train.select(range(self.num_train, min(len(train), self.num_train + self.num_validation)))
        elif self.num_test:
            test = test.shuffle(seed=0).select(range(min(self.num_test, len(test))))
        folder.mkdir(parents=True, exist_ok=True)
        train.select(range(min(self.num_train, len(train)))).to_parquet(folder / "train.parquet")
        test.to_parquet(folder / "test.parquet")
        return folder


def partition_name(alpha: float | None) -> str:
    """Return the name of a Dirichlet partition, or of the IID one where there is no α."""
    return IID if alpha is None else f"alpha={alpha:g}"


def partition_words(name: str) -> dict[str, str]:
    """Return the settings of a partition by its name: "iid", "natural", or "alpha=0.1"."""
    if name in (IID, NATURAL):
        return {"data.partition": name}
    return {"data.partition": "dirichlet", "data.alpha": name.removeprefix("alpha=")}
