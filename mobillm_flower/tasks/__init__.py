"""Text to tensors to metrics: what is predicted, from which data, and how well."""

from mobillm_flower.tasks.activations import read_activations
from mobillm_flower.tasks.data import LocalData, load_central_data, load_local_data, read_rows
from mobillm_flower.tasks.language import TokenChunk, chunks_of, prompt_tokens, read_tokens, token_chunks
from mobillm_flower.tasks.metrics import METRICS, TOKEN_METRICS, TokenScores
from mobillm_flower.tasks.readers import Text, text_lines
from mobillm_flower.tasks.rows import LeftOut, both_splits
from mobillm_flower.tasks.sources import load_splits
from mobillm_flower.tasks.task import TASKS, Samples, Task, make_contract, measure, render
from mobillm_flower.tasks.texts import check_texts, read_texts
from mobillm_flower.tasks.tokens import check_prompt, tokenize, with_tokens

__all__ = [
    "METRICS",
    "TASKS",
    "TOKEN_METRICS",
    "LeftOut",
    "LocalData",
    "Samples",
    "Task",
    "Text",
    "TokenChunk",
    "TokenScores",
    "both_splits",
    "check_prompt",
    "check_texts",
    "chunks_of",
    "load_central_data",
    "load_local_data",
    "load_splits",
    "make_contract",
    "measure",
    "prompt_tokens",
    "read_activations",
    "read_rows",
    "read_texts",
    "read_tokens",
    "render",
    "text_lines",
    "token_chunks",
    "tokenize",
    "with_tokens",
]
