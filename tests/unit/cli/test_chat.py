"""`mobillm chat`, and `mobillm predict` on a language model, on a saved tiny one."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mobillm_flower import SideTunedModel
from tests.support.cli import lines, mobillm, parsed, refused
from tests.support.language import tuned_model
from tests.support.runs import tiny_run
from tests.support.tiny_models import TEXTS, save_tiny


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("chat")
    tuned_model(str(save_tiny(parent / "backbone", "opt"))).save_pretrained(parent / "side_network")
    return parent / "side_network"


@pytest.fixture(scope="module")
def model(saved: Path) -> Any:
    return SideTunedModel.from_pretrained(saved)


def test_each_line_of_a_pipe_is_responded_to(saved: Path, model: Any) -> None:
    found = lines("chat", saved, "--max-new-tokens", 5, stdin=f"{TEXTS[0]}\n\n  \n{TEXTS[1]}\n")
    expected = [model.generate(text, max_new_tokens=5) for text in TEXTS[:2]]
    assert [line.strip() for line in found] == [text.strip() for text in expected]


def test_what_is_piped_in_is_utf_8_whatever_the_terminal_has(saved: Path) -> None:
    assert "standard input is not text in UTF-8; name its encoding" in refused(
        "chat", saved, stdin="häh".encode("cp1252")
    )
    assert lines("chat", saved, "--max-new-tokens", 1, stdin="\ufeffhäh".encode())


def test_beside_the_backbone_responds_first(saved: Path, model: Any) -> None:
    found = lines("chat", saved, "--beside", "--max-new-tokens", 5, stdin=f"{TEXTS[0]}\n")
    base = model.with_network(None).generate(TEXTS[0], max_new_tokens=5)
    tuned = model.generate(TEXTS[0], max_new_tokens=5)
    assert [line.split() for line in found] == [["base:", *base.split()], ["tuned:", *tuned.split()]]
    assert base != tuned


def test_a_response_moves_no_cursor_and_ctrl_c_ends_it(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(self: SideTunedModel, text: str, *, streamer: Any, **_options: Any) -> str:
        if text == "stop":
            raise KeyboardInterrupt
        streamer.on_finalized_text("a\x1b[2Jb\nc", stream_end=True)
        return ""

    monkeypatch.setattr(SideTunedModel, "generate", told)
    found = mobillm("chat", saved, stdin="go\nstop\ngo\n")
    assert found.exit_code == 0
    assert found.stdout == "a [2Jb\nc\n"
    assert "Traceback" not in found.output


def test_a_prompt_that_is_too_long_ends_a_pipe_and_not_a_conversation(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = " ".join(TEXTS[0].split() * 40)
    assert "longer than the model's" in refused("chat", saved, stdin=f"{long}\n")

    answers = iter([long, TEXTS[0]])

    def asked(_shown: str) -> str:
        for answer in answers:
            return answer
        raise EOFError

    terminal = SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True), stdout=SimpleNamespace(flush=lambda: None))
    monkeypatch.setattr("builtins.input", asked)
    monkeypatch.setattr(sys.modules["mobillm_flower.cli.chat"], "sys", terminal)
    found = mobillm("chat", saved, "--max-new-tokens", 5)
    assert found.exit_code == 0
    assert "longer than the model's" in found.stderr
    assert next(answers, None) is None


def test_predict_writes_responses_and_suggests_next_words(saved: Path, model: Any) -> None:
    found = parsed("predict", saved, "--generate", "--max-new-tokens", 5, "-t", TEXTS[0], "-t", TEXTS[1])
    assert [row["text"] for row in found] == TEXTS[:2]
    assert [row["response"] for row in found] == [model.generate(text, max_new_tokens=5) for text in TEXTS[:2]]
    base = parsed("predict", saved, "--generate", "--base", "--max-new-tokens", 5, "-t", TEXTS[0])
    assert base[0]["response"] == model.with_network(None).generate(TEXTS[0], max_new_tokens=5)
    (row,) = parsed("predict", saved, "--suggest", 2, "-t", TEXTS[0])
    assert set(row) == {"text", "base", "tuned"}
    assert len(lines("predict", saved, "--suggest", 2, "-t", TEXTS[0])[0].split("\t")) == 3


@pytest.mark.parametrize("extra", [[], ["--suggest", 2, "--base"], ["--suggest", 2, "--generate"]])
def test_predict_says_what_a_language_model_gives(saved: Path, extra: list[Any]) -> None:
    assert "give --generate, or --suggest" in refused("predict", saved, "-t", TEXTS[0], *extra)


def test_a_model_of_labels_writes_nothing(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, trainer__epochs=1)
    assert "use mobillm predict" in refused("chat", run, stdin="a\n")
    assert "predicts no texts" in refused("predict", run, "--generate", "-t", "a")
