"""The samples, and what is predicted of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from mobillm_flower.config.parts.ranges import number, one_of


class Partition(StrEnum):
    """How a data set in one place is cut into devices."""

    natural = "natural"
    iid = "iid"
    dirichlet = "dirichlet"


class BadRows(StrEnum):
    """What becomes of rows that the task cannot use."""

    drop = "drop"
    refuse = "refuse"


@dataclass
class DataSettings:
    """Where the samples are and how they are cut into devices.

    Parameters
    ----------
    source : str
        `phone-messages` (comes with the package), a folder of parquet, JSONL or CSV files, one file, or a hub data set.
    subset : str
        Configuration of a hub data set.
    train_split : str
        Split that devices learn from.
    test_split : str
        Split that devices are evaluated on.
    split_column : str
        Where one file holds all rows: column that says of each which split it is of.
    test_share : float
        Where there is no test split: share of the train split's rows, drawn by `seed`, that devices are evaluated on.
    encoding : str
        Encoding of CSV, JSON and text files; it is never guessed.
    delimiter : str
        Between the fields of CSV files, `tab` for a tab; empty: a comma, in `.tsv` files a tab.
    text_column : str
        Column of the first or only text; for language modelling of the prompt, or of plain text.
    pair_column : str
        Column of the second text of a pair; for language modelling of the response.
    label_column : str
        Column of the label or number.
    partition : Partition
        How a data set in one place is cut into devices: natural, iid or dirichlet.
    partition_column : str
        Column that names the natural devices.
    alpha : float
        Concentration of the Dirichlet partition; smaller is more skewed.
    num_devices : int
        How many devices a simulation has.
    max_samples : int
        Most training samples of a device; 0: all.
    seed : int
        Seed of the partition.
    bad_rows : BadRows
        Rows without a usable text or label: drop leaves them out and says how many, refuse does not use a device that
        has one.
    """

    source: str = "phone-messages"
    subset: str = ""
    train_split: str = "train"
    test_split: str = "test"
    split_column: str = ""
    test_share: float = number(0.0, at_least=0, below=1)
    encoding: str = "utf-8"
    delimiter: str = field(
        default="",
        metadata={
            "one character, or tab": lambda value: value in ("", "tab") or (len(value) == 1 and value not in '\r\n" ')
        },
    )
    text_column: str = "text"
    pair_column: str = ""
    label_column: str = "label"
    partition: Partition = Partition.iid
    partition_column: str = ""
    alpha: float = number(0.1, above=0)
    num_devices: int = number(10, at_least=1)
    max_samples: int = number(0, at_least=0)
    seed: int = 0
    bad_rows: BadRows = BadRows.drop


@dataclass
class TaskSettings:
    """What is predicted.

    Parameters
    ----------
    kind : str
        classification, pairs, regression, language-modelling, or a registered task.
    labels : list of str
        Class names in order; empty: read from the data.
    label_range : list of float
        Lowest and highest target of a regression.
    prompt : str
        What the backbone reads, with `{text}` and, for pairs, `{text_pair}`; empty: the texts as they are. For language
        modelling what a response follows, with `{text}` alone.
    label_words : list of str
        One word a label, whose likelihoods are a causal model's own prediction.
    whole_label_words : bool
        Score each label word by all of its tokens, not by its first alone: a device then runs each text once more for
        every beginning of a word of several tokens.
    chat_template : bool
        Put the prompt into the model's chat template, as a user's message, where the model has one; what is read ends
        where the answer begins. Language modelling with a prompt always does.
    calibration : str
        What label words' probabilities are divided by: none; content-free (its own mean for "N/A", "[MASK]" and no
        text in the prompt); public (its mean for the package's public sentences).
    max_length : int
        Tokens a sample is cut to; for language modelling those of a chunk, of which a long sample has several.
    metric : str
        accuracy, macro-f1, f1, matthews, spearman, pearson (for language modelling cross-entropy, perplexity,
        next-word-top-1, next-word-top-3), or a registered one; auto: the task's own.
    responses : int
        Test prompts of language modelling that `mobillm run` lets the model respond to after the run, before and after
        training, in at most `max_length` / 4 tokens, for ROUGE; 0: none. It needs the extra `text` and all texts in one
        place.
    show_responses : int
        So many of these are written, with their prompts and references, into results.json and the report; 0: no text.
    """

    kind: str = "classification"
    labels: list[str] = field(default_factory=list)
    label_range: list[float] = field(
        default_factory=lambda: [0.0, 1.0],
        metadata={"two numbers, the lower first": lambda value: len(value) == 2 and value[0] < value[1]},
    )
    prompt: str = ""
    label_words: list[str] = field(default_factory=list)
    whole_label_words: bool = False
    chat_template: bool = False
    calibration: str = one_of("none", "none", "content-free", "public")
    max_length: int = number(128, at_least=4)
    metric: str = "auto"
    responses: int = number(0, at_least=0)
    show_responses: int = number(0, at_least=0)
