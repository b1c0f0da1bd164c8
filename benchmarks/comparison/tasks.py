"""The project's own tasks of the comparison, and the methods that are compared on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mobillm_flower.core.side_networks.upper_layers import NAME as UPPER_LAYERS
from mobillm_flower.evaluation.compare.cells import ADDITIVE, CENTRAL_LORA
from mobillm_flower.evaluation.compare.task import ComparedTask

METHODS = (
    "pae",
    ADDITIVE,
    UPPER_LAYERS,
    "fed-lora",
    "fed-bitfit",
    "fed-kseed",
    "split-fed",
    "upload-all",
    CENTRAL_LORA,
)
QUICK = ("pae", "fed-lora", CENTRAL_LORA)
"""What is compared for a look in minutes."""
_PAIR = {"data.text-column": "sentence1", "data.pair-column": "sentence2", "task.kind": "pairs"}


@dataclass(frozen=True)
class DataSet:
    """A data set below the folder of data sets; `folder` is empty where the package has it."""

    folder: str
    settings: Mapping[str, str]
    num_train: int
    num_validation: int = 500


DATA_SETS: Mapping[str, DataSet] = {
    "phone-messages": DataSet("", {"data.label-column": "intent", "task.max-length": "32"}, 600, 200),
    "sst2_sentences": DataSet("sst2_sentences", {"data.text-column": "sentence", "task.max-length": "64"}, 1000),
    "mrpc": DataSet("glue_mrpc", _PAIR, 1000),
    "clinc150": DataSet("clinc150", {"task.max-length": "32"}, 3000, 1000),
}
"""By name, with the training rows that are cut; all but the package's own need the folder of data sets."""


def compared_task(name: str, data: Path | None = None) -> ComparedTask:
    """Return a task by name, its data set below the folder `data`."""
    result = DATA_SETS[name]
    source = "phone-messages"
    if result.folder:
        assert data is not None
        source = str((data / result.folder).resolve())
    return ComparedTask(name, {**result.settings, "data.source": source}, result.num_train, result.num_validation)
