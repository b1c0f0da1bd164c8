"""Tasks: rows to samples, labels to a contract, scores to metrics, and a source cut into devices."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sk

from mobillm_flower.errors import DataError, SettingsError
from mobillm_flower.tasks import (
    METRICS,
    TASKS,
    Samples,
    make_contract,
    measure,
    read_rows,
    render,
)
from tests.support.labelled_rows import ROWS, dataset, with_settings

# metrics ---------------------------------------------------------------------------------------------------------
TRUE = np.array([0, 1, 2, 2, 1, 0, 1, 1])
GUESSED = np.array([0, 1, 1, 2, 0, 0, 1, 2])


def test_metrics_against_hand_values() -> None:
    """F1 is 2·hits / (guessed + true): 2·2/(3 + 4) for class 1, 2·2/(3 + 2) for 0, 2·1/(2 + 2) for 2."""
    assert METRICS["accuracy"](TRUE, GUESSED) == 5 / 8
    assert METRICS["f1"](TRUE, GUESSED) == pytest.approx(4 / 7)
    assert METRICS["macro-f1"](TRUE, GUESSED) == pytest.approx((4 / 7 + 4 / 5 + 1 / 2) / 3)
    binary = np.array([1, 1, 1, 0, 0, 0]), np.array([1, 1, 0, 0, 0, 1])  # TP 2, TN 2, FP 1, FN 1
    assert METRICS["matthews"](*binary) == pytest.approx((2 * 2 - 1 * 1) / np.sqrt(3 * 3 * 3 * 3))
    ranks = np.array([1.0, 2, 3, 4]), np.array([10.0, 40, 30, 400])  # one swap: 1 − 6·2/(4·15)
    assert METRICS["spearman"](*ranks) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert METRICS["pearson"](np.array([1.0, 2, 3]), np.array([1.0, 2, 4])) == pytest.approx(3 / np.sqrt(2 * 14 / 3))


def test_metrics_against_sklearn_and_scipy() -> None:
    generator = np.random.default_rng(0)
    true, guessed = (generator.integers(0, 4, 500) for _ in range(2))
    assert METRICS["accuracy"](true, guessed) == pytest.approx(sk.accuracy_score(true, guessed))
    assert METRICS["macro-f1"](true, guessed) == pytest.approx(sk.f1_score(true, guessed, average="macro"))
    assert METRICS["matthews"](true, guessed) == pytest.approx(sk.matthews_corrcoef(true, guessed))
    assert METRICS["f1"](true, guessed) == pytest.approx(sk.f1_score(true == 1, guessed == 1))
    one, two = generator.normal(size=(2, 500))
    assert METRICS["spearman"](one, one + two) == pytest.approx(stats.spearmanr(one, one + two).statistic)
    assert METRICS["pearson"](one, one + two) == pytest.approx(stats.pearsonr(one, one + two).statistic)


@pytest.mark.parametrize("name", ["spearman", "pearson"])
def test_correlation_with_a_constant_is_zero(name: str) -> None:
    assert METRICS[name](np.ones(5), np.arange(5.0)) == 0
    assert METRICS[name](np.arange(5.0), np.ones(5)) == 0
    assert METRICS[name](np.ones(1), np.ones(1)) == 0


def test_every_metric_is_better_when_larger() -> None:
    for name in METRICS:
        perfect = METRICS[name](np.array([0, 1, 1, 0.0]), np.array([0, 1, 1, 0.0]))
        worst = METRICS[name](np.array([0, 1, 1, 0.0]), np.array([1, 0, 0, 1.0]))
        assert perfect == 1
        assert worst <= 0


def test_measure() -> None:
    contract = make_contract(with_settings(), ["no", "yes"])
    scores = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.4]])
    assert measure(scores, torch.tensor([1, 0, 0]), contract) == pytest.approx(2 / 3)
    numbers = make_contract(with_settings("task.kind=regression"), [])
    assert numbers.metric == "spearman"
    assert measure(torch.tensor([[0.1], [0.3], [0.2]]), torch.tensor([0.0, 1.0, 0.5]), numbers) == 1


# contracts -------------------------------------------------------------------------------------------------------
def test_contract_of_names_numbers_and_class_labels() -> None:
    assert make_contract(with_settings(), ["b", "a", "b"]).labels == ("a", "b")
    assert make_contract(with_settings(), [0, 12, 3, 0]).labels == ("0", "3", "12")
    assert make_contract(with_settings("task.labels=x,y"), ["a", "b"]).labels == ("x", "y")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    rows = datasets.Dataset.from_list([{"text": "a", "label": 1}] * 2, features=features)
    assert read_rows(rows, rows, with_settings()).contract.labels == ("neg", "pos")


def test_contract_of_a_regression() -> None:
    contract = make_contract(with_settings("task.kind=regression", "task.label-range=[0,5]", "task.metric=pearson"), [])
    assert (contract.labels, contract.label_range, contract.metric) == ((), (0.0, 5.0), "pearson")
    assert contract.is_regression
    assert contract.num_outputs == 1


def test_contract_of_a_prompt() -> None:
    settings = with_settings(
        "task.kind=pairs", "data.pair-column=b", "task.label-words=yes,no", "task.prompt={text}? {text_pair}:"
    )
    contract = make_contract(settings, [0, 1])
    assert contract.label_words == ("yes", "no")
    assert contract.prompt == "{text}? {text_pair}:"
    assert contract.label_range == ()


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["task.kind=classify"], "unknown task 'classify'; did you mean 'classification'?"),
        (["task.metric=acuracy"], "unknown metric 'acuracy'; did you mean 'accuracy'?"),
        (["task.label-words=yes"], "task.label-words has 1 words for 2 labels; give one for each, in order"),
        (["task.prompt=no field"], "must hold {text}"),
        (["task.prompt={text} {other}"], "and nothing else in braces"),
        (["task.prompt={text} {}"], "and nothing else in braces"),
        (["task.prompt={text.x}"], "must hold {text}"),
        (["task.prompt={text} {"], "task.prompt="),
        (["task.prompt={text} }"], "task.prompt="),
    ],
)
def test_contract_errors(words: list[str], match: str) -> None:
    with pytest.raises(SettingsError, match=match):
        make_contract(with_settings(*words), ["no", "yes"])


def test_a_second_text_that_nobody_reads_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"data.pair-column='b' is read by nobody: task.prompt='Q: {text}'"):
        make_contract(with_settings("task.prompt=Q: {text}", "data.pair-column=b"), [0, 1])
    rows = dataset([{"text": "a", "label": "no"}])
    with pytest.raises(SettingsError, match=r"holds {text_pair}; name the column of second texts in data.pair-column"):
        read_rows(rows, rows, with_settings("task.prompt={text} {text_pair}", "task.labels=no,yes"))


def test_no_labels_to_read_is_a_data_error() -> None:
    empty = datasets.Dataset.from_dict({"text": [], "label": []})
    with pytest.raises(DataError, match="label"):
        read_rows(empty, empty, with_settings())


def test_a_missing_label_is_no_class_of_its_own() -> None:
    assert make_contract(with_settings(), ["no", None, "yes", float("nan"), " "]).labels == ("no", "yes")


def test_a_fleet_with_named_labels_may_have_a_device_without_rows() -> None:
    empty = datasets.Dataset.from_dict({"text": [], "label": []})
    data = read_rows(empty, empty, with_settings("task.labels=no,yes"))
    assert len(data.train) == len(data.test) == 0


# samples ---------------------------------------------------------------------------------------------------------
def test_labels_by_name_and_by_number() -> None:
    settings = with_settings("task.labels=no,yes,maybe")
    named = read_rows(dataset(ROWS), dataset(ROWS[:3]), settings)
    assert named.train.labels.tolist() == [i % 3 for i in range(60)]
    assert named.train.labels.dtype == torch.int64
    numbered = dataset([{**row, "label": i % 3} for i, row in enumerate(ROWS)])
    assert torch.equal(read_rows(numbered, numbered, settings).train.labels, named.train.labels)
    assert named.test.texts == ["text 0", "text 1", "text 2"]
    assert named.train.pairs is None


@pytest.mark.parametrize(
    ("label", "reason"), [("perhaps", "unknown-label"), (None, "no-label"), ("", "no-label"), ("2", "unknown-label")]
)
def test_a_label_outside_the_contract_costs_its_row_alone(label: object, reason: str) -> None:
    rows = dataset([{"text": "a", "label": "no"}, {"text": "b", "label": label}, {"text": "c", "label": "yes"}])
    settings = with_settings("task.labels=no,yes,maybe")
    data = read_rows(rows, rows, settings)
    assert (data.train.texts, data.train.labels.tolist(), data.train.rows) == (["a", "c"], [0, 1], (0, 2))
    assert data.left_out.counts == {f"train {reason}": 1, f"test {reason}": 1}
    with pytest.raises(DataError, match=r"1 train row with.*\(row 1, counted from 0\).*data.bad-rows=drop"):
        read_rows(rows, rows, with_settings("task.labels=no,yes,maybe", "data.bad-rows=refuse"))


def test_pairs() -> None:
    rows = dataset([{"a": "one", "b": "two", "label": 1}])
    settings = with_settings("task.kind=pairs", "data.text-column=a", "data.pair-column=b", "task.labels=no,yes")
    samples = read_rows(rows, rows, settings).train
    assert (samples.texts, samples.pairs) == (["one"], ["two"])
    with pytest.raises(SettingsError, match=r"task.kind=pairs needs data.pair-column, the column of the second text"):
        read_rows(rows, rows, with_settings("task.kind=pairs", "data.text-column=a", "task.labels=no,yes"))


def test_regression_targets() -> None:
    settings = with_settings("task.kind=regression", "task.label-range=[1,5]")
    rows = dataset([{"text": "a", "label": 1.0}, {"text": "b", "label": 4.5}])
    assert read_rows(rows, rows, settings).train.labels.tolist() == [1.0, 4.5]
    for value in (0.5, 5.5, float("nan"), None):
        bad = dataset([{"text": "a", "label": 1.0}, {"text": "b", "label": value}])
        data = read_rows(rows, bad, settings)
        assert data.test.labels.tolist() == [1.0]
        missing = value is None or value != value
        assert data.left_out.counts == {"test no-label" if missing else "test bad-target": 1}


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["data.text-column=body"], r"data.text-column='body' is none of the data's 3 columns"),
        (["data.pair-column=second"], r"data.pair-column='second' is none of the data's 3 columns"),
        (["data.label-column=class"], r"data.label-column='class' is none of the data's 3 columns"),
    ],
)
def test_a_missing_column_is_named(words: list[str], match: str) -> None:
    with pytest.raises(DataError, match=match):
        read_rows(dataset(ROWS), dataset(ROWS), with_settings("task.labels=no,yes", *words))


def test_text_must_be_text() -> None:
    rows = dataset([{"text": "a", "label": "no"}, {"text": None, "label": "yes"}])
    data = read_rows(rows, rows, with_settings("task.labels=no,yes"))
    assert (data.train.texts, data.left_out.counts) == (["a"], {"train no-text": 1, "test no-text": 1})
    numbers = dataset([{"text": 1, "label": "no"}])
    with pytest.raises(DataError, match=r"data.text-column='text' holds values of type int, not texts"):
        read_rows(numbers, numbers, with_settings("task.labels=no,yes"))


def test_one_devices_rows_do_not_name_the_classes() -> None:
    with pytest.raises(DataError, match=r"do not name the classes: give task.labels"):
        read_rows(dataset(ROWS), dataset(ROWS), with_settings())


def test_a_column_of_texts_is_no_set_of_classes() -> None:
    with pytest.raises(DataError, match="has 1001 distinct values, which is no set of classes"):
        make_contract(with_settings(), [f"text {i}" for i in range(1001)])


def test_take_and_content() -> None:
    samples = Samples(["a", "b", "c"], ["x", "y", "z"], torch.tensor([2, 0, 1]))
    taken = samples.take([2, 0])
    assert (taken.texts, taken.pairs, taken.labels.tolist()) == (["c", "a"], ["z", "x"], [1, 2])
    assert taken.content(0) == {"text": "c", "pair": "z", "label": 1}
    assert Samples(["a"], None, torch.tensor([0.5])).content(0) == {"text": "a", "pair": None, "label": 0.5}
    assert len(samples.take([])) == 0


def test_render() -> None:
    single = Samples(["it {works}", "b"], None, torch.tensor([0, 1]))
    paired = Samples(["a", "b"], ["x", "y"], torch.tensor([0, 1]))
    plain = make_contract(with_settings(), [0, 1])
    assert render(single, plain) == (single.texts, None)
    assert render(paired, plain) == (paired.texts, paired.pairs)
    both = with_settings("task.prompt=Q: {text} {text_pair} A:", "data.pair-column=b")
    prompt = make_contract(both, [0, 1])
    assert render(single, prompt) == (["Q: it {works}  A:", "Q: b  A:"], None)
    assert render(paired, prompt) == (["Q: a x A:", "Q: b y A:"], None)


def test_registered_tasks() -> None:
    assert set(TASKS) >= {"classification", "pairs", "regression"}
    assert TASKS["regression"].predictions(torch.tensor([[0.5], [2.0]])).tolist() == [0.5, 2.0]
    assert TASKS["classification"].predictions(torch.tensor([[0.5, 0.7], [2.0, 1.0]])).tolist() == [1, 0]


def test_errors_hold_no_sample_text() -> None:
    rows = dataset([{"text": "my secret diary", "label": "confession"}])
    with pytest.raises(
        DataError, match=r"no train row is left: 1 train row with a label that is none of the"
    ) as caught:
        read_rows(rows, rows, with_settings("task.labels=no,yes"))
    assert "secret" not in str(caught.value)
    assert "confession" not in str(caught.value)
