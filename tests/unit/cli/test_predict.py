"""`mobillm predict` on real runs of a tiny backbone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
from typer.testing import CliRunner

from mobillm_flower import SideTunedModel
from mobillm_flower.cli import app
from mobillm_flower.errors import DataError
from mobillm_flower.runs import events
from mobillm_flower.runs.folder import RunFolder
from tests.support.cli import lines, mobillm, parsed, refused
from tests.support.runs import tiny_run
from tests.support.tiny_models import TEXTS, WORDS

LONG = [f"{TEXTS[i % 5]} {WORDS[i % len(WORDS)]} {WORDS[i % 7]}" for i in range(150)]  # more than two batches


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_run(tmp_path_factory.mktemp("classes"))


@pytest.fixture(scope="module")
def model(run: Any) -> Any:
    return SideTunedModel.from_pretrained(run / "side_network")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Messages with the name of who wrote them: two texts."""
    changes = {"task__kind": "pairs", "data__pair_column": "persona"}
    return tiny_run(tmp_path_factory.mktemp("pairs"), **changes)


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A regression: how many words a text has."""
    parent = tmp_path_factory.mktemp("numbers")
    rows = [json.dumps({"body": text, "label": float(len(text.split()))}) for text in LONG]
    (parent / "data").mkdir()
    for split in ("train", "test"):
        (parent / "data" / f"{split}.jsonl").write_text("\n".join(rows) + "\n", "utf-8")
    changes = {"task__kind": "regression", "task__label_range": "0,30", "data__text_column": "body"}
    return tiny_run(parent, **changes, data__source=str(parent / "data"), data__label_column="label")


def test_a_pipe_gets_label_score_and_text_between_tabs(run: Any, model: Any) -> None:
    found = lines("predict", run, "--text", TEXTS[0], "-t", TEXTS[1])
    expected = model.predict(TEXTS[:2])
    scores = expected.scores.amax(1).tolist()
    assert found == [
        f"{label}\t{score:.4f}\t{text}" for label, score, text in zip(expected.labels, scores, TEXTS[:2], strict=True)
    ]


def test_a_side_network_folder_predicts_as_its_run_does(run: Any) -> None:
    assert lines("predict", run / "side_network", "-t", TEXTS[0]) == lines("predict", run, "-t", TEXTS[0])


def test_json_is_one_array_with_whole_scores(run: Any, model: Any) -> None:
    found = parsed("predict", run, "-t", TEXTS[0], "-t", 'tab\t"and"\nline')
    expected = model.predict([TEXTS[0], 'tab\t"and"\nline'])
    assert [row["text"] for row in found] == [TEXTS[0], 'tab\t"and"\nline']
    assert [row["label"] for row in found] == expected.labels
    assert [row["score"] for row in found] == expected.scores.amax(1).tolist()


def test_a_terminal_gets_a_table_that_shows_texts_as_they_are(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    monkeypatch.setenv("COLUMNS", "120")
    found = "\n".join(lines("predict", run, "-t", "[bold]dog[/b]"))
    assert "Predictions" in found
    assert "[bold]dog[/b]" in found
    assert "\t" not in found


def test_a_text_stays_on_its_line_in_a_pipe(run: Any) -> None:
    (line,) = lines("predict", run, "-t", "one\ttwo\nthree\x1b[31m")
    assert line.split("\t")[2:] == ["one two three [31m"]


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".parquet", "stdin"])
def test_files_of_every_kind_and_standard_input_are_predicted_in_order(
    run: Any, model: Any, tmp_path: Path, suffix: str
) -> None:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    file, table = tmp_path / f"texts{suffix}", pa.table({"id": list(range(150)), "text": LONG})
    plain = "\n".join(LONG) + "\n\n"
    if suffix == ".csv":
        pyarrow.csv.write_csv(table, file)
    elif suffix == ".parquet":
        pq.write_table(table, file)
    else:
        rows = [json.dumps(row) for row in table.to_pylist()]
        file.write_text("\n".join(rows) if suffix == ".jsonl" else plain, "utf-8")
    found = parsed("predict", run, stdin=plain) if suffix == "stdin" else parsed("predict", run, "--file", file)
    assert [row["text"] for row in found] == LONG
    assert [row["label"] for row in found] == model.predict(LONG).labels


def test_a_file_is_predicted_a_few_texts_at_a_time(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    scores = SideTunedModel.scores

    def counted(self: SideTunedModel, samples: Any) -> Any:
        sizes.append(len(samples))
        return scores(self, samples)

    monkeypatch.setattr(SideTunedModel, "scores", counted)
    (tmp_path / "texts.txt").write_text("\n".join(LONG), "utf-8")
    assert len(lines("predict", run, "--file", tmp_path / "texts.txt")) == 150
    assert sizes == [64, 64, 22]


def test_the_column_is_the_runs_or_the_one_named(numbers: Any, run: Any, tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text(json.dumps({"body": TEXTS[0], "text": TEXTS[1]}) + "\n", "utf-8")
    assert parsed("predict", numbers, "--file", file)[0]["text"] == TEXTS[0]
    assert parsed("predict", run, "--file", file)[0]["text"] == TEXTS[1]
    assert parsed("predict", run, "--file", file, "--text-column", "body")[0]["text"] == TEXTS[0]
    message = refused("predict", run, "--file", file, "--text-column", "sentence")
    assert message == "texts.jsonl has no column 'sentence' among its 2"


def test_a_regression_gives_the_number(numbers: Any) -> None:
    model = SideTunedModel.from_pretrained(numbers / "side_network")
    (row,) = parsed("predict", numbers, "-t", TEXTS[0])
    assert row == {"value": model.predict(TEXTS[0]).labels[0], "text": TEXTS[0]}
    assert lines("predict", numbers, "-t", TEXTS[0]) == [f"{row['value']:.4f}\t{TEXTS[0]}"]


def test_pairs_from_options_lines_and_columns(pairs: Any, tmp_path: Path) -> None:
    model = SideTunedModel.from_pretrained(pairs / "side_network")
    firsts, seconds = TEXTS[:3], ["rosa", "ines", "rosa"]
    expected = model.predict(firsts, seconds)
    assert expected.scores.tolist() != model.predict(firsts, ["dog", "cat", "dog"]).scores.tolist()
    options = [word for pair in zip(firsts, seconds, strict=True) for word in ("-t", pair[0], "--pair", pair[1])]
    found = parsed("predict", pairs, *options)
    assert [(row["text"], row["pair"]) for row in found] == list(zip(firsts, seconds, strict=True))
    assert [row["label"] for row in found] == expected.labels
    assert [row["score"] for row in found] == expected.scores.amax(1).tolist()
    piped = "".join(f"{a}\t{b}\n" for a, b in zip(firsts, seconds, strict=True))
    assert parsed("predict", pairs, stdin=piped) == found
    file = tmp_path / "pairs.jsonl"
    for column, more in (("persona", []), ("who", ["--pair-column", "who"])):
        rows = [json.dumps({"text": a, column: b}) for a, b in zip(firsts, seconds, strict=True)]
        file.write_text("\n".join(rows), "utf-8")
        assert parsed("predict", pairs, "--file", file, *more) == found
    assert lines("predict", pairs, *options)[0].split("\t")[2:] == [firsts[0], seconds[0]]


def test_the_number_of_texts_is_asked_for(pairs: Any, run: Any) -> None:
    assert refused("predict", pairs, "-t", "a") == "1 --text and 0 --pair: give one --pair to each --text"
    assert refused("predict", run, "-t", "a", "--pair", "b") == "this run's task has one text; leave out --pair"
    assert "line 1 has 0 tabs" in refused("predict", pairs, stdin="one text\n")
    assert "has no column 'text_pair'" in refused(
        "predict", pairs / "side_network", "--file", _file(pairs.parent / "one.jsonl", '{"text": "a"}')
    )


def _file(path: Path, content: str) -> Path:
    path.write_text(content, "utf-8")
    return path


@pytest.mark.slow
def test_the_backbone_alone_predicts_where_it_can(run: Any, tmp_path: Path) -> None:
    assert "has no prediction of its own" in refused("predict", run, "--base", "-t", TEXTS[0])
    words = {"task__label_words": ",".join(WORDS[:12]), "data__pair_column": ""}
    causal = tiny_run(tmp_path, family="opt", **words)
    model = SideTunedModel.from_pretrained(causal / "side_network")
    alone = SideTunedModel(model.backbone, None, spec=model.spec, contract=model.contract, rule=model.rule)
    found = parsed("predict", causal, "--base", *(word for text in TEXTS for word in ("-t", text)))
    assert [row["label"] for row in found] == alone.predict(TEXTS).labels
    assert [row["score"] for row in found] == alone.predict(TEXTS).scores.amax(1).tolist()
    tuned = parsed("predict", causal, *(word for text in TEXTS for word in ("-t", text)))
    assert [row["score"] for row in tuned] == model.predict(TEXTS).scores.amax(1).tolist()
    assert [row["score"] for row in tuned] != [row["score"] for row in found]


def test_the_backbone_may_be_elsewhere(run: Any, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.symlink_to(run.parent / "backbone")
    assert lines("predict", run, "--backbone", moved, "-t", "dog") == lines("predict", run, "-t", "dog")
    assert "absent' is no registered name" in refused("predict", run, "--backbone", tmp_path / "absent", "-t", "dog")


@pytest.mark.parametrize("stdin", ["", "\n \n"])
def test_empty_input_is_refused_before_a_backbone_is_loaded(
    run: Any, stdin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SideTunedModel, "from_pretrained", lambda *_, **__: pytest.fail("it was loaded"))
    assert refused("predict", run, stdin=stdin) == "there is nothing to predict: the input holds no text"
    assert refused("predict", run, "--file", run / "absent.txt") == "absent.txt does not exist"


@pytest.mark.parametrize("place", [1, 3, 150])
@pytest.mark.parametrize("empty", ["", "  ", None])
def test_an_empty_text_is_named_by_its_number_wherever_texts_come_from(
    run: Any, model: Any, tmp_path: Path, place: int, empty: str | None
) -> None:
    """No prediction is missing or of a blank: those that are printed before stand beside their texts."""
    texts: list[Any] = [*LONG[: place - 1], empty, *LONG[place - 1 :]]
    blank, message = empty or "", f"text {place} is empty; remove it"
    ways: list[list[Any]] = [[word for text in texts for word in ("--text", text or blank)]]
    written = "\n".join(text or blank for text in texts)
    rows = datasets.Dataset.from_dict({"text": texts, "n": [*range(len(texts))]})
    rows.to_csv(tmp_path / "a.csv")
    rows.to_json(tmp_path / "a.jsonl")
    rows.to_parquet(tmp_path / "a.parquet")
    _file(tmp_path / "a.txt", written)
    ways += [["--file", tmp_path / f"a.{suffix}"] for suffix in ("csv", "jsonl", "parquet", "txt")]
    for way in [*ways, []]:
        result = CliRunner().invoke(app, ["predict", str(run), *map(str, way)], input=written)
        assert str(result.exception) == message
        predicted = [line.split("\t")[2] for line in result.stdout.splitlines()]
        assert predicted == LONG[: len(predicted)]
    with pytest.raises(DataError, match=message):
        model.predict([text or blank for text in texts])


def test_empty_lines_at_the_end_are_none_and_a_second_text_is_not_empty(run: Any, pairs: Any) -> None:
    assert len(parsed("predict", run, stdin="dog\ncat\n\n \n")) == 2
    assert refused("predict", pairs, "-t", "a", "--pair", " ") == "second text 1 is empty; remove it"
    assert refused("predict", pairs, stdin="a\tb\na\t\n") == "second text 2 is empty; remove it"
    with pytest.raises(DataError, match="second text 1 is empty"):
        SideTunedModel.from_pretrained(pairs / "side_network").predict("a", "")


def test_texts_come_from_one_place(run: Any) -> None:
    assert refused("predict", run, "-t", "a", "--file", "b") == "give --text or --file, not both"


def test_what_is_no_text_is_refused(model: Any) -> None:
    with pytest.raises(DataError, match="text 2 is a float, not text; convert or remove it"):
        model.predict(["a", float("nan")])


def test_a_folder_without_a_side_network_says_why(tmp_path: Path) -> None:
    assert "is no folder; name a run's folder" in refused("predict", tmp_path / "absent", "-t", "x")
    assert "holds no side network; name a run's folder" in refused("predict", tmp_path, "-t", "x")
    run = RunFolder(tmp_path / "run").make()
    run.append(events.Started("PaeMobiLLM"))
    message = refused("predict", run.path, "-t", "x")
    assert message.endswith(
        "the run was interrupted; start it again with the same settings and run folder, and it goes on"
    )
    with run.hold():
        assert "yet: the run goes on; it is saved when training has ended" in refused("predict", run.path, "-t", "x")
    run.append(events.Finished("failed", 1.0, "no device could be used"))
    assert refused("predict", run.path, "-t", "x").endswith(": the run failed. no device could be used")
    never = tmp_path / "never" / "flower"
    never.mkdir(parents=True)
    (never / "superlink.log").touch()
    message = refused("predict", never.parent, "-t", "x")
    assert "the run never began, see" in message
    assert message.endswith("superlink.log")


def test_a_side_network_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"format": 99}')
    assert "format 99, this version reads 1" in refused("predict", tmp_path, "-t", "x")
    (tmp_path / "config.json").write_text("no json")
    assert "holds no readable config.json" in refused("predict", tmp_path, "-t", "x")


@pytest.mark.slow
def test_the_program_itself_prints_plain_lines_and_one_paragraph_of_an_error(run: Any, tmp_path: Path) -> None:
    def program(folder: Path) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).parent / "mobillm"), "predict", str(folder)]
        texts = "\n".join(TEXTS)
        return subprocess.run(command, input=texts, capture_output=True, text=True, timeout=280, check=False)

    answer = program(run)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert [line.split("\t")[2] for line in answer.stdout.splitlines()] == TEXTS
    answer = program(tmp_path / "absent")
    assert (answer.returncode, answer.stdout) == (1, "")
    assert answer.stderr.startswith("error ")
    assert answer.stderr.count("\n") == 1
    assert mobillm("predict").exit_code == 2
