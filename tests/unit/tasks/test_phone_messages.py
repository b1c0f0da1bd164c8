"""The data set in the package: large and varied enough, split fairly, and not solved by a keyword."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from mobillm_flower.config import load_settings
from mobillm_flower.tasks import load_splits


@pytest.fixture(scope="module")
def splits() -> dict[str, list[dict[str, Any]]]:
    train, test = load_splits(load_settings().data)
    return {"train": list(train), "test": list(test)}


@pytest.fixture(scope="module")
def rows(splits: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return splits["train"] + splits["test"]


def words(text: str) -> set[str]:
    return set(re.findall(r"[^\W_]+(?:['’][^\W_]+)*", text.lower()))


def test_columns(rows: list[dict[str, Any]]) -> None:
    assert all(set(row) == {"text", "intent", "persona"} for row in rows)
    assert all(isinstance(value, str) and value == value.strip() and value for row in rows for value in row.values())


def test_size(splits: dict[str, list[dict[str, Any]]], rows: list[dict[str, Any]]) -> None:
    assert len(rows) >= 1500
    assert len(splits["test"]) >= 300
    assert len({row["intent"] for row in rows}) >= 10
    assert len({row["persona"] for row in rows}) >= 20


def test_every_intent_is_in_both_splits_and_none_dominates(splits: dict[str, list[dict[str, Any]]]) -> None:
    counts = {name: Counter(row["intent"] for row in part) for name, part in splits.items()}
    assert set(counts["train"]) == set(counts["test"])
    for name, count in counts.items():
        assert min(count.values()) >= 10, name
        assert max(count.values()) <= 0.25 * count.total(), name


def test_test_has_personas_seen_and_unseen_in_train(splits: dict[str, list[dict[str, Any]]]) -> None:
    train = {row["persona"] for row in splits["train"]}
    seen = sum(row["persona"] in train for row in splits["test"])
    unseen = len(splits["test"]) - seen
    assert seen >= 50
    assert unseen >= 50


def test_every_persona_sends_more_than_one_intent(rows: list[dict[str, Any]]) -> None:
    intents = defaultdict(set)
    for row in rows:
        intents[row["persona"]].add(row["intent"])
    assert min(len(found) for found in intents.values()) >= 3


def test_no_text_occurs_twice(rows: list[dict[str, Any]]) -> None:
    normal = Counter(" ".join(row["text"].lower().split()) for row in rows)
    assert [text for text, count in normal.items() if count > 1] == []


def test_no_two_texts_are_nearly_the_same(rows: list[dict[str, Any]]) -> None:
    """Jaccard similarity |A ∩ B| / |A ∪ B| of lower-cased word sets."""
    sets = [words(row["text"]) for row in rows]
    vocabulary = {word: i for i, word in enumerate(sorted(set().union(*sets)))}
    ends = np.cumsum([0, *(len(found) for found in sets)])
    columns = np.array([vocabulary[word] for found in sets for word in sorted(found)])
    matrix = csr_matrix((np.ones(len(columns), np.int32), columns, ends), (len(sets), len(vocabulary)))
    shared = (matrix @ matrix.T).tocoo()
    sizes = np.diff(ends)
    similar = shared.data / (sizes[shared.row] + sizes[shared.col] - shared.data)
    close = (similar > 0.7) & (shared.row < shared.col)
    pairs = zip(shared.row[close], shared.col[close], strict=True)
    assert [(rows[i]["text"], rows[j]["text"]) for i, j in pairs] == []


def test_no_intent_is_decided_by_one_keyword(rows: list[dict[str, Any]]) -> None:
    """The best rule "the text has this word" for each intent, chosen on all rows in the rule's favour."""
    total = Counter(row["intent"] for row in rows)
    containing: Counter[str] = Counter()
    both: Counter[tuple[str, str]] = Counter()
    for row in rows:
        for word in words(row["text"]):
            containing[word] += 1
            both[word, row["intent"]] += 1
    best: dict[str, tuple[float, str]] = {}
    for (word, intent), hits in both.items():
        f1 = 2 * hits / (containing[word] + total[intent])
        best[intent] = max(best.get(intent, (0.0, "")), (f1, word))
    assert {intent: found for intent, found in best.items() if found[0] >= 0.8} == {}
    assert set(best) == set(total)
