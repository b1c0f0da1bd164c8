"""Text to tensors to metrics: what is predicted, from which data, and how well."""

from mobillm_flower.tasks.data import LocalData, load_central_data, load_local_data, load_splits, read_rows
from mobillm_flower.tasks.metrics import METRICS
from mobillm_flower.tasks.task import TASKS, Samples, Task, make_contract, measure, render
from mobillm_flower.tasks.texts import Text, read_texts, text_lines

__all__ = [
    "METRICS",
    "TASKS",
    "LocalData",
    "Samples",
    "Task",
    "Text",
    "load_central_data",
    "load_local_data",
    "load_splits",
    "make_contract",
    "measure",
    "read_rows",
    "read_texts",
    "render",
    "text_lines",
]
