"""`mobillm new`: write a Flower app for one's own data."""

from __future__ import annotations

import importlib.util
import json
import keyword
import math
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mobillm_flower.cli.options import AsJson, Config
from mobillm_flower.cli.output import relative, say_json
from mobillm_flower.errors import SettingsError

if TYPE_CHECKING:
    from mobillm_flower.tasks import LocalData

_TEMPLATES = resources.files("mobillm_flower.cli") / "templates"
_COLUMNS = ("data.text-column", "data.pair-column", "data.label-column")
_LONGEST = 32  # as Flower has it
_NAME = re.compile(rf"[A-Za-z][A-Za-z0-9_]{{1,{_LONGEST - 1}}}")


class TaskKind(StrEnum):
    """What an app learns."""

    classification = "classification"
    pairs = "pairs"
    regression = "regression"
    language_modelling = "language-modelling"


@dataclass(frozen=True)
class Recipe:
    """What an app of a task begins with.

    Parameters
    ----------
    pair_column : str
        Column of the second text; empty: there is none.
    has_labels : bool
        Whether there is a column of labels or numbers.
    settings : mapping
        Settings by dotted key, beside those of the data.
    rows : str
        What the invented rows are, for the README.
    """

    pair_column: str
    has_labels: bool
    settings: Mapping[str, Any]
    rows: str


_OF_SENTENCES = {"preset": "pae", "backbone.name": "minilm", "task.max-length": 64}
RECIPES: Mapping[TaskKind, Recipe] = {
    TaskKind.classification: Recipe("", True, _OF_SENTENCES, "sentences on cooking, travel and sport"),
    TaskKind.pairs: Recipe(
        "text_pair",
        True,
        _OF_SENTENCES,
        "pairs of sentences that say the same, or do not",
    ),
    TaskKind.regression: Recipe("", True, _OF_SENTENCES, "opinions, from 0 (the worst) to 1 (the best)"),
    TaskKind.language_modelling: Recipe(
        "response",
        False,
        {
            "preset": "mobillm",
            "backbone.name": "facebook/opt-125m",
            "task.max-length": 128,
            "trainer.epochs": 6,
            "trainer.weight-decay": 0.1,
            "trainer.dropout": 0.0,
        },
        "questions on capital cities with their answers",
    ),
}
"""By task, what its app begins with."""


def new(
    name: Annotated[str, typer.Argument(help="Name of the app: of its folder, and of its Python package.")],
    task: Annotated[TaskKind, typer.Option(help="What is learned.")] = TaskKind.classification,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder with your rows, train.* and test.* as .parquet, .jsonl, .json, .csv or .tsv, or one such file "
            "with -c data.test-share=0.2; without it the app gets a few invented rows."
        ),
    ] = None,
    text_column: Annotated[str, typer.Option(help="With --data: column of the text or prompt.")] = "",
    pair_column: Annotated[
        str,
        typer.Option(
            help="With --data: column of the second text; for language modelling of the response, without which "
            "texts are plain."
        ),
    ] = "",
    label_column: Annotated[str, typer.Option(help="With --data: column of the label or number.")] = "",
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Write a Flower app for your own data into a new folder; it runs at once."""
    folder = _free_folder(name)
    columns = {"text": text_column, "pair": pair_column, "label": label_column}
    recipe = RECIPES[task]
    if data is None and any(columns.values()):
        raise SettingsError("the columns are those of --data; name its folder, too")
    settings, read = _settings(task, recipe, folder, data, columns, list(config or []))
    rows = f"They are invented, {recipe.rows}: enough to see a run, too few to judge by." if data is None else ""
    files = _files(name, task, settings, rows)
    if data is None:
        files |= {f"data/{split}.jsonl": _rows(task, split) for split in ("train", "test")}
    for path, text in files.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
    if as_json:
        say_json({"app": str(folder), "files": sorted(files), "settings": settings})
        return
    about = f"with a few invented rows, {recipe.rows}" if read is None else _about(read)
    typer.echo(f"{name} is written, {about}. To run it, with its table and report:\n")
    typer.echo(f"    mobillm run {relative(folder)}\n")
    typer.echo(f"{relative(folder / 'README.md')} says what to change.")


def _free_folder(name: str) -> Path:
    """Return the folder of a new app; raises SettingsError where the name cannot be its package's, or is taken."""
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        near = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_").lower() or "my_app"
        if not near[0].isalpha() or keyword.iskeyword(near):
            near = f"app_{near}"
        raise SettingsError(
            f"{name!r} cannot be the name of an app and of its Python package: 2 to {_LONGEST} letters, digits and _, "
            f"beginning with a letter; take {near[:_LONGEST]!r}"
        )
    folder = Path.cwd() / name
    if folder.exists():
        raise SettingsError(f"{folder} exists, and is left as it is; take another name, or remove it")
    if importlib.util.find_spec(name) is not None:
        raise SettingsError(f"{name!r} is the name of an installed Python package; take another, such as 'my_{name}'")
    return folder


def _settings(
    task: TaskKind, recipe: Recipe, folder: Path, data: Path | None, columns: Mapping[str, str], words: Sequence[str]
) -> tuple[dict[str, Any], LocalData | None]:
    """Return an app's settings, and what its own data hold; raises DataError or SettingsError where they are no use."""
    if data is not None and not data.expanduser().exists():
        raise SettingsError(f"--data {data} does not exist; give the folder that holds train.* and test.*, or one file")
    given = data is None or task == TaskKind.pairs  # of one's own rows only pairs must have a second text
    pair = columns["pair"] or (recipe.pair_column if given else "")
    settings = {
        **recipe.settings,
        "data.source": str(folder / "data" if data is None else data.expanduser().resolve()),
        "data.text-column": columns["text"] or "text",
        "data.pair-column": pair,
        "data.label-column": columns["label"] or "label",
        "data.num-devices": 4,
        "task.kind": task.value,
    }
    if not recipe.has_labels:
        del settings["data.label-column"]
    if not settings["data.pair-column"]:
        del settings["data.pair-column"]
    settings |= _given(settings, words)
    if data is None:
        return settings, None
    if task == TaskKind.regression and "task.label-range" not in settings:
        settings["task.label-range"] = _range(settings)
    return settings, _loaded(settings)


def _given(settings: Mapping[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """Return the settings that ``key=value`` words give, as they stand in pyproject.toml."""
    from mobillm_flower.config import load_settings, setting_key
    from mobillm_flower.config.describe import setting_values, value_text

    values = setting_values(load_settings(settings, overrides=words))
    given = {key: values[key] for key in (setting_key(word.partition("=")[0]) for word in words)}
    return {k: value_text(value) if value is None or isinstance(value, list) else value for k, value in given.items()}


def _loaded(settings: Mapping[str, Any]) -> LocalData:
    from mobillm_flower.config import load_settings
    from mobillm_flower.tasks import load_central_data

    return load_central_data(load_settings(settings))


def _range(settings: Mapping[str, Any]) -> str:
    """Return whole numbers around the targets of both splits, as `task.label-range` wants them."""
    data = _loaded({**settings, "task.label-range": "-1e30,1e30"})
    numbers = [number for split in (data.train, data.test) for number in split.labels.tolist()]
    low, high = math.floor(min(numbers)), math.ceil(max(numbers))
    return f"{low},{max(high, low + 1)}"


def _about(data: LocalData) -> str:
    labels = f", {len(data.contract.labels)} labels" if data.contract.labels else ""
    return f"for {len(data.train):,} rows to learn from and {len(data.test):,} to test on{labels}"


def _files(name: str, task: TaskKind, settings: Mapping[str, Any], rows: str) -> dict[str, str]:
    """Return an app's files but its rows, by their path in its folder."""
    columns = [
        settings[key] for key in ("data.text-column", "data.pair-column", "data.label-column") if key in settings
    ]
    values = {
        "name": name,
        "project": name.replace("_", "-"),  # Flower takes no _ there
        "task": task.value,
        "config": _toml(settings),
        "backbone": settings["backbone.name"],
        "columns": ", ".join(f"`{column}`" for column in columns),
        "rows_note": rows,
        "source": settings["data.source"],
    }
    note = _template(f"backbone-{'causal' if task == TaskKind.language_modelling else 'sentences'}.md")
    values["backbone_note"] = string.Template(note).substitute(values).strip()

    def filled(template: str) -> str:
        return string.Template(_template(template)).substitute(values)

    return {
        "pyproject.toml": filled("pyproject.toml.template"),
        "README.md": filled("README.md.template"),
        "LICENSE": filled("LICENSE.template"),
        f"{name}/__init__.py": f'"""The app {name}."""\n',
        f"{name}/client_app.py": filled("client_app.py.template"),
        f"{name}/server_app.py": filled("server_app.py.template"),
    }


def _toml(settings: Mapping[str, Any]) -> str:
    """Return settings as tables of `[tool.flwr.app.config]`, its own keys first."""
    own = {**{key: value for key, value in settings.items() if "." not in key}, "settings": "", "settings-file": ""}
    tables: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        part, _, word = key.partition(".")
        if word:
            tables.setdefault(part, {})[word] = value
    tables["run"] = {"folder": ""}
    parts = [("tool.flwr.app.config", own), *((f"tool.flwr.app.config.{part}", tables[part]) for part in tables)]
    return "\n\n".join(
        "\n".join([f"[{title}]", *(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in table.items())])
        for title, table in parts
    )


def _rows(task: TaskKind, split: str) -> str:
    return _template(f"rows/{task.value}-{split}.jsonl")


def _template(name: str) -> str:
    return _TEMPLATES.joinpath(name).read_text("utf-8")
