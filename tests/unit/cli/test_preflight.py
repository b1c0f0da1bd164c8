"""What no device could read is refused before Flower is started, and what settings alone tell by the server app."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import datasets
import huggingface_hub.constants
import pytest
from typer.testing import CliRunner

from mobillm_flower import launch, load_settings, make_strategy
from mobillm_flower.cli import app as cli
from mobillm_flower.errors import DataError, SettingsError
from mobillm_flower.evaluation.first_look import first_look, preflight
from tests.support.cli import lines, refused
from tests.support.tiny_models import save_tiny

APP = """
[tool.flwr.app]
publisher = "me"
[tool.flwr.app.components]
serverapp = "preflight_app:app"
clientapp = "preflight_app:app"
[tool.flwr.app.config]
settings = ""
"""
CLIENT = "from mobillm_flower import SideTuningClient\n\napp = SideTuningClient({}).app\n"


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def started(*_arguments: object, **_named: object) -> None:
        raise AssertionError("Flower was started")

    monkeypatch.setattr(launch, "run_app", started)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "preflight_app", raising=False)
    (tmp_path / "pyproject.toml").write_text(APP, "utf-8")
    (tmp_path / "preflight_app.py").write_text(
        "from mobillm_flower import SideTuningClient\n\napp = SideTuningClient().app\n"
    )
    rows = [f"text {i},{['bad', 'good'][i % 2]},{i},u{i % 2}" for i in range(20)]
    for split, user in (("train", "u"), ("test", "v")):
        lines = [",".join(["text,label,number,user"])] + [row.replace(",u", f",{user}") for row in rows]
        (tmp_path / f"{split}.csv").write_text("\n".join(lines) + "\n", "utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.label-column=intent"], "data.label-column='intent' is none of the data's 4 columns"),
        (["data.text-column=body"], "data.text-column='body' is none"),
        (["data.pair-column=other", "task.kind=pairs"], "data.pair-column='other' is none"),
        (["data.test-split=dev"], "dev"),
        (["data.source=nowhere/at-all"], "data.source='nowhere/at-all'"),
        (["data.pair-column=user", "task.prompt={text} is"], "does not hold {text_pair}"),
        (["task.prompt=It is"], "must hold {text}"),
        (["task.kind=pairs"], "needs data.pair-column"),
        (["task.label-words=one,two,three"], "3 words for 2 labels"),
        (["task.labels=1,2,3"], "no row has a class of task.labels in data.label-column='label'"),
        (["data.partition=natural", "data.partition-column=who"], "data.partition-column='who' is none"),
        (["data.partition=natural", "data.partition-column=user"], "no test row is on any device"),
        (["task.metric=bleu"], "bleu"),
        (["task.max-length=513"], "minilm has 512 positions; set task.max-length to at most 512"),
    ],
)
def test_what_no_device_could_read_is_refused_before_anything_is_started(
    app: Path, settings: list[str], message: str
) -> None:
    words = [word for setting in (f"data.source={app}", *settings) for word in ("-c", setting)]
    assert message in refused("run", app, *words)
    assert message in refused("compare", app, *words)
    assert not (app / "runs").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["task.prompt={text} it sat on the mat", "task.max-length=5"], "leaves no room for a text"),
        (["task.label-words=it cat,it dog"], "begin with the same token"),
        (["task.label-words=it,qqqq"], "does not know 'qqqq'"),
        (["backbone.name=no/where"], "backbone.name='no/where' is no registered name"),
    ],
)
def test_what_the_tokenizer_refuses_is_refused_then(app: Path, settings: list[str], message: str) -> None:
    backbone = f"backbone.name={save_tiny(app / 'backbone', 'opt')}"
    words = [word for setting in (f"data.source={app}", backbone, *settings) for word in ("-c", setting)]
    assert message in refused("run", app, *words)


def test_what_is_cut_unknown_or_of_several_tokens_is_said_first(app: Path) -> None:
    """Without a row's text; and nothing is said with --json."""
    backbone = f"backbone.name={save_tiny(app / 'backbone', 'opt')}"
    words = [
        f"data.source={app}",
        backbone,
        "task.max-length=4",
        "task.label-words=no no,yes",
        "task.prompt={text} it sat on",
    ]
    for options, said in (([], 3), (["--json"], 0)):
        result = CliRunner().invoke(cli, ["run", str(app), *options, *(w for s in words for w in ("-c", s))])
        assert isinstance(result.exception, AssertionError)  # Flower would be started now
        notes = [line for line in result.stderr.splitlines() if line.startswith("note: ")]
        assert len(notes) == said
        if said:
            assert re.fullmatch(r"note: \d+ of 20 texts have more than task.max-length=4 tokens .*not read", notes[0])
            assert re.match(r"note: \d+% of the tokens are unknown words", notes[1])
            assert notes[2].startswith("note: task.label-words: 'no no' is 2 tokens")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["Spam", "spam ", "spam", "ham"], "the classes 'Spam', 'spam', 'spam ' differ"),
        (["New York", "new  york", "x"], "the classes 'New York', 'new  york' differ"),
        (["spam", "spams", "1", "01"], ""),
    ],
)
def test_classes_of_nearly_one_name_are_named_by_run_and_data(app: Path, names: list[str], said: str) -> None:
    """Wherever the names come from: the data, or the settings."""
    for split in ("train", "test"):
        rows = [{"text": f"text {i}", "label": names[i % len(names)]} for i in range(12)]
        (app / f"{split}.csv").unlink()
        (app / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    words = {"data.source": str(app), "backbone.name": str(save_tiny(app / "backbone", "bert"))}
    words["task.max-length"] = "64"
    for given in ({}, {"task.labels": ",".join(f"'{name}'" for name in sorted(names))}):
        settings = load_settings({**words, **given})
        notes = [note for note in preflight(settings) if "differ in capitals" in note]
        assert notes == first_look(settings, backbone=False)["notes"]
        assert [note.startswith(said) for note in notes] == ([True] if said else [])
    options = [word for setting in words.items() for word in ("-c", "=".join(setting))]
    assert ("differ in capitals" in "\n".join(lines("data", app, "--no-backbone", *options))) is bool(said)


def test_a_mark_of_unknown_words_that_ends_every_text_is_none(app: Path) -> None:
    """OPT and GPT-2 have one token for both."""
    folder = save_tiny(app / "backbone", "opt")
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | {"unk_token": "[SEP]", "eos_token": "[SEP]"}))
    words = {"data.source": str(app), "backbone.name": str(folder), "task.kind": "language-modelling"}
    assert preflight(load_settings({**words, "task.max-length": "64"})) == []


def test_splits_without_rows_have_no_notes(app: Path) -> None:
    for split in ("train", "test"):
        (app / f"{split}.csv").write_text("text,label\n", "utf-8")
    backbone = str(save_tiny(app / "backbone", "opt"))
    words = {"data.source": str(app), "backbone.name": backbone, "task.labels": "a,b", "data.label-column": "label"}
    with pytest.raises(DataError, match=r"no row has a class of task.labels"):
        preflight(load_settings(words))
    regression = {"task.kind": "regression"}
    assert preflight(load_settings({**words, "task.labels": "", **regression})) == []


OWN = """
from mobillm_flower import SideTuningClient


def load_data(context):
    assert context.node_config["partition-id"] == 0, "only the first device is asked"
    return ROWS, None


app = SideTuningClient(load_data=load_data).app
"""


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ('[{"text": "it sat on", "label": i % 2} for i in range(20)]', "of the first device, 20 of 20 texts have more"),
        ('[{"body": "it sat on", "label": 0}]', "the first device would be refused: data.text-column='text' is none"),
        ("[]", "the first device would be refused: "),
        ("None", "the first device would be refused: "),
        ("1 / 0", "the first device would be refused: "),
    ],
)
def test_the_first_device_of_an_app_that_loads_its_own_rows_is_looked_at_and_the_run_starts(
    app: Path, rows: str, said: str
) -> None:
    """Others may have other rows: nothing is refused here."""
    (app / "preflight_app.py").write_text(OWN.replace("ROWS", rows), "utf-8")
    words = ["task.max-length=4", "task.labels=no,yes", f"backbone.name={save_tiny(app / 'backbone', 'bert')}"]
    result = CliRunner().invoke(cli, ["run", str(app), *(w for s in words for w in ("-c", s))])
    assert isinstance(result.exception, AssertionError)
    assert str(result.exception) == "Flower was started"
    notes = [line for line in result.stderr.splitlines() if line.startswith("note: ")]
    assert any(line.startswith(f"note: {said}") for line in notes), result.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task.prompt": "It is"}, "must hold {text}"),
        ({"task.prompt": "{text} {"}, "unbalanced braces"),
        ({"task.kind": "pairs"}, "needs data.pair-column"),
        ({"task.labels": "a,b", "task.label-words": "x"}, "1 words for 2 labels"),
        ({"task.labels": "a,b", "task.prompt": "{text}", "data.pair-column": "c"}, "is read by nobody"),
        ({"task.kind": "regression", "task.metric": "bleu"}, "bleu"),
    ],
)
def test_a_server_refuses_what_settings_alone_tell(settings: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError) as error:
        make_strategy(load_settings(settings))
    assert message in str(error.value)
