from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mobillm_flower.audit.draw import load_devices
from mobillm_flower.errors import DataError, UnsupportedError
from mobillm_flower.evaluation.compare.of_app import Extent, plan_of_app
from mobillm_flower.launch import App, gathered, read_app
from mobillm_flower.launch.own_rows import app_loader, rows_of
from mobillm_flower.tasks import load_central_data, read_rows
from tests.support.cli import parsed, refused

APP = """
[tool.flwr.app.components]
serverapp = "{name}.server_app:app"
clientapp = "{name}.client_app:app"

[tool.flwr.app.config]
preset = "pae"
settings = ""

[tool.flwr.app.config.backbone]
name = "minilm"

[tool.flwr.app.config.data]
num-devices = 3
label-column = "topic"

[tool.flwr.app.config.task]
labels = "tea,coffee"
"""
ROWS = """
from mobillm_flower import SideTuningClient


def rows(number, count):
    names = ["tea", "coffee"]
    return [{"text": f"cup {i} of {number}", "topic": names[i % 2]} for i in range(count)]


def my_rows(context):
    number = int(context.node_config["partition-id"])
    assert context.run_config["data.label-column"] == "topic"
    return rows(number, 20 + number), rows(number, 2) if number else None


app = SideTuningClient(load_data=my_rows).app
"""
PLAIN = "from mobillm_flower import SideTuningClient\n\napp = SideTuningClient().app\n"


def an_app(folder: Path, name: str, client: str) -> App:
    package = folder / name / name
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "client_app.py").write_text(client, "utf-8")
    (package.parent / "pyproject.toml").write_text(APP.format(name=name), "utf-8")
    return read_app(package.parent)


@pytest.fixture
def app(tmp_path: Path) -> App:
    return an_app(tmp_path, "cups", ROWS)


def test_rows_of_load_data_are_in_one_place_each_on_its_device_and_gone_afterwards(app: App) -> None:
    with gathered(app, []) as words:
        settings = app.settings(words)
        kept = Path(settings.data.source)
        assert kept.stat().st_mode & 0o777 == 0o700
        central, devices = load_central_data(settings), load_devices(settings)
        assert (len(central.train), len(central.test), central.contract.labels) == (63, 4, ("tea", "coffee"))
        assert [(len(device.train), len(device.test)) for device in devices] == [(20, 0), (21, 2), (22, 2)]
        assert list(devices[1].train.texts[:2]) == ["cup 0 of 1", "cup 1 of 1"]
    assert not kept.exists()


def test_a_source_that_is_named_is_taken_and_an_app_without_load_data_has_none(app: App, tmp_path: Path) -> None:
    with gathered(app, []) as words:
        assert words
    with gathered(app, ["data.source=elsewhere"]) as words:
        assert words == []
    with gathered(an_app(tmp_path / "plain", "cups", PLAIN), []) as words:  # the same name, in the same process
        assert words == []


@pytest.mark.parametrize(
    ("client", "message"),
    [
        (
            ROWS.replace('"partition-id"', '"inbox"'),
            r"load_data ended with KeyError 'inbox' at client_app\.py:11 .*-c data\.source=FOLDER",
        ),
        (
            ROWS.replace("    number = ", "    raise ValueError('a private text')\n    number = "),
            r"load_data ended with ValueError at client_app\.py:11 ",
        ),
        ("import no_such_package", "client_app cannot be imported here .*no_such_package"),
    ],
)
def test_what_cannot_be_done_is_said_plainly(tmp_path: Path, client: str, message: str) -> None:
    app = an_app(tmp_path, "cups", client)
    with pytest.raises(UnsupportedError, match=message) as caught, gathered(app, []):
        pass
    assert "private" not in str(caught.value)


def test_plan_data_and_compare_read_what_load_data_gives(app: App, tmp_path: Path) -> None:
    planned = parsed("plan", app.folder, "--gflops", "20")
    assert (planned["samples"], planned["devices"]) == (63, 3)
    found = parsed("data", app.folder, "--no-backbone")
    assert (found["source"], found["loads_its_own"], found["splits"]["train"]["rows"]) == ("load_data", True, 63)
    with gathered(app, [], tmp_path / "work" / "rows") as words:
        plan = plan_of_app(app, words, [], Extent(seeds=1, rounds=3, quick=True, work=tmp_path / "work"))
    assert (plan.tasks[0].num_train, plan.partitions, plan.num_devices) == (63, ["natural"], 3)
    kept = json.loads((tmp_path / "work" / "rows" / "dataset_dict.json").read_text("utf-8"))
    assert kept["splits"] == ["train", "test"]


NAMED = """
import datasets
import pandas

from mobillm_flower import SideTuningClient

ROWS = {"text": ["a cup", "a pot", "a mug"], "topic": TOPICS}
FEATURES = datasets.Features({"text": datasets.Value("string"), "topic": datasets.ClassLabel(names=["tea", "coffee"])})


def my_rows(context):
    return ROWS_AS, None


app = SideTuningClient(load_data=my_rows).app
"""
RAW = "[dict(zip(ROWS, row)) for row in zip(*ROWS.values())]"


@pytest.mark.parametrize("rows", [RAW, "pandas.DataFrame(ROWS)", "datasets.Dataset.from_dict(ROWS)"])
@pytest.mark.parametrize("topics", ['["tea", "coffee", "tea"]', "[0, 1, 0]"])
@pytest.mark.parametrize("word", ["task.kind=classification", "task.kind=pairs"])
@pytest.mark.parametrize("command", ["data", "plan", "compare"])
def test_classes_that_nothing_names_are_refused_in_the_words_of_the_run(
    tmp_path: Path, rows: str, topics: str, word: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device does not know the others' classes: their names cannot be read from the rows of all of them."""
    monkeypatch.chdir(tmp_path)
    app = an_app(tmp_path, "cups", NAMED.replace("ROWS_AS", rows).replace("TOPICS", topics))
    words = ["task.labels=", word, "data.pair-column=text"]
    said = refused(command, app.folder, *(part for setting in words for part in ("-c", setting)))
    load = app_loader(app)
    assert load is not None
    splits = rows_of(app, load, 1, {})
    with pytest.raises(DataError, match=re.escape(said)):
        read_rows(splits["train"], splits["test"], app.settings(words))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (RAW, ["task.labels=tea,coffee"]),
        ("datasets.Dataset.from_dict(ROWS, features=FEATURES)", ["task.labels="]),
        (RAW.replace("*ROWS.values()", '*{**ROWS, "topic": [0.1, 0.2, 0.3]}.values()'), ["task.kind=regression"]),
    ],
)
def test_data_takes_classes_that_are_named_and_tasks_without_any(tmp_path: Path, rows: str, words: list[str]) -> None:
    app = an_app(tmp_path, "cups", NAMED.replace("ROWS_AS", rows).replace("TOPICS", '["tea", "coffee", "tea"]'))
    if "regression" in words[0]:
        words.append("task.labels=")
    found = parsed("data", app.folder, "--no-backbone", *(part for word in words for part in ("-c", word)))
    assert found["splits"]["train"]["rows"] == 9
