from pathlib import Path

import pytest

from mobillm_flower.errors import SettingsError
from mobillm_flower.launch import read_app

QUICKSTART = Path(__file__).parents[3] / "examples" / "quickstart"


def write_app(folder: Path, config: str) -> Path:
    (folder / "pyproject.toml").write_text(f"[tool.flwr.app]\npublisher = 'me'\n[tool.flwr.app.config]\n{config}\n")
    return folder


def test_listed_keys_keep_their_type_and_others_go_into_settings() -> None:
    app = read_app(QUICKSTART)
    words = ["rounds.window=5", "trainer.epochs=5", "activations.keep=0.25", 'task.prompt="{text} It was"']
    assert app.run_config(words) == {
        "rounds.window": 5,
        "settings": "trainer.epochs=5 activations.keep=0.25 'task.prompt={text} It was'",
    }
    settings = app.settings(words)
    assert (settings.trainer.epochs, settings.activations.keep) == (5, 0.25)
    assert settings.task.prompt == "{text} It was"


@pytest.mark.parametrize("prompt", ["Übersetze: {text}\nAntwort:", "it's {text}", 'say "{text}"', "{text}"])
def test_a_prompt_arrives_as_it_was_written(prompt: str) -> None:
    assert read_app(QUICKSTART).settings([f"task.prompt={prompt}"]).task.prompt == prompt


def test_the_quickstart_runs_on_its_own_config() -> None:
    settings = read_app(QUICKSTART).settings([])
    assert (settings.strategy, settings.data.num_devices, settings.backbone.name) == ("pae", 20, "minilm")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("trainer.epoch=5", r"unknown setting 'trainer\.epoch'; did you mean 'trainer\.epochs'\?"),
        ("rounds.window=many", r"rounds\.window='many' must be a whole number; the app has 16"),
        ("trainer.epochs=many", r"trainer\.epochs='many' must be a whole number"),
        ("trainer.epochs", "is not of the form key=value"),
        ("rounds.window=0", r"rounds\.window=0 must be at least 1"),
    ],
)
def test_wrong_words_stop_before_anything_starts(word: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        read_app(QUICKSTART).settings([word])


def test_an_app_that_cannot_carry_a_setting_says_what_to_add(tmp_path: Path) -> None:
    app = read_app(write_app(tmp_path, "preset = 'pae'"))
    with pytest.raises(SettingsError, match='add settings = "" there'):
        app.run_config(["trainer.epochs=3"])


def test_a_folder_that_is_no_flower_app(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read; name the folder of a Flower app"):
        read_app(tmp_path)
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    with pytest.raises(SettingsError, match="it is not a Flower app"):
        read_app(tmp_path)
