"""Names that no registry has are refused before a run starts, where the app cannot have registered them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mobillm_flower.cli.names import check_names, registers_nothing
from mobillm_flower.errors import SettingsError
from mobillm_flower.launch import read_app

QUICKSTART = Path(__file__).parents[3] / "examples" / "quickstart"


@pytest.fixture
def folder(tmp_path):
    """A copy of the quickstart app, to change."""
    return shutil.copytree(QUICKSTART, tmp_path / "app", ignore=shutil.ignore_patterns("__pycache__"))


def test_the_quickstart_registers_nothing() -> None:
    assert registers_nothing(read_app(QUICKSTART))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("strategy=peas", r"unknown strategy 'peas'.* Known: fed, .*mobillm, pae"),
        ("activations.codec=nf5", r"unknown codec 'nf5'; did you mean 'nf4'\?"),
        ("activations.pivot=median", r"unknown pivot 'median'"),
        ("side-network.name=additiv", r"unknown side network 'additiv'; did you mean 'additive'\?"),
        ("task.kind=classify", r"unknown task 'classify'; did you mean 'classification'\?"),
        ("task.metric=acuracy", r"unknown metric 'acuracy'; did you mean 'accuracy'\?"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(word, message) -> None:
    app = read_app(QUICKSTART)
    with pytest.raises(SettingsError, match=message):
        check_names(app, app.settings([word]))


@pytest.mark.parametrize(
    "words", [[], ["preset=mobillm"], ["activations.codec=int8", "task.metric=macro-f1", "activations.pivot=last"]]
)
def test_names_of_the_package_are_taken(words) -> None:
    app = read_app(QUICKSTART)
    check_names(app, app.settings(words))


@pytest.mark.parametrize(
    "source",
    [
        "from mobillm_flower import CODECS\nCODECS.add('nf5', object())\n",
        "import mobillm_flower as m\nm.CODECS.register('nf5')(object())\n",
        "import mobillm_flower.core.codecs as c\nc.CODECS._entries['nf5'] = 1\n",
        "import parts_from_elsewhere\n",
        "from parts_from_elsewhere import codec\n",
        "__import__('parts_from_elsewhere')\n",
        "class Own:\n    pass\n",
        "this is no python\n",
    ],
)
def test_an_app_that_may_register_parts_of_its_own_is_left_alone(folder, source) -> None:
    (folder / "quickstart" / "parts.py").write_text(source)
    app = read_app(folder)
    assert not registers_nothing(app)
    check_names(app, app.settings(["activations.codec=nf5"]))


def test_helpers_of_the_app_and_the_standard_library_register_nothing(folder) -> None:
    (folder / "quickstart" / "helpers.py").write_text("import json\n\nfrom quickstart import client_app\n")
    assert registers_nothing(read_app(folder))


def test_components_that_are_installed_elsewhere_cannot_be_told(folder) -> None:
    file = folder / "pyproject.toml"
    file.write_text(file.read_text().replace("quickstart.client_app:app", "elsewhere.client_app:app"))
    assert not registers_nothing(read_app(folder))


def test_an_app_that_names_its_strategy_itself_cannot_be_told(folder) -> None:
    (folder / "quickstart" / "server_app.py").write_text("from mobillm_flower import FedMobiLLM\n")
    assert not registers_nothing(read_app(folder))


@pytest.mark.parametrize("name", ["personas", "summarize"])
def test_the_language_apps_register_nothing_and_know_their_metric(name) -> None:
    app = read_app(QUICKSTART.with_name(name))
    assert registers_nothing(app)
    check_names(app, app.settings(["task.metric=perplexity"]))
    with pytest.raises(SettingsError, match=r"unknown metric of language modelling 'accuracy'"):
        check_names(app, app.settings(["task.metric=accuracy"]))
