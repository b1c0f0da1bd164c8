"""Settings: presets, who wins, and every value that must stop a run before it starts."""

from pathlib import Path
from typing import Any

import pytest

from mobillm_flower.config import (
    PRESETS,
    Objective,
    Settings,
    load_settings,
    run_folder,
    setting_key,
    setting_keys,
    setting_sources,
    to_yaml,
)
from mobillm_flower.errors import SettingsError
from tests.support.settings import setting


def test_without_anything_the_defaults_hold() -> None:
    assert load_settings() == Settings()


@pytest.mark.parametrize(
    ("preset", "strategy", "pivot", "objective"),
    [
        ("mobillm", "mobillm", "all", Objective.label),
        ("pae", "pae", "auto", Objective.difference),
        ("fed", "fed", "auto", Objective.difference),
    ],
)
def test_a_preset_sets_what_its_paper_does(preset: str, strategy: str, pivot: str, objective: Any) -> None:
    settings = load_settings({"preset": preset})
    assert settings.preset == preset
    assert (settings.strategy, settings.activations.pivot, settings.loss.objective) == (strategy, pivot, objective)


def test_every_preset_loads() -> None:
    assert set(PRESETS) == {"mobillm", "pae", "fed", "upper-layers", "analytic"}
    for preset in PRESETS:
        assert load_settings(overrides=[f"preset={preset}"]).preset == preset


@pytest.mark.parametrize("source", ["file", "run_config", "inline", "overrides"])
def test_a_preset_is_taken_from_any_source_and_gives_way_to_a_key(source: str, write: Any) -> None:
    words = {"preset": "mobillm", "activations.pivot": "mean"}
    pairs = [f"{key}={value}" for key, value in words.items()]
    settings = {
        "file": lambda: load_settings(file=write("preset: mobillm\nactivations:\n  pivot: mean\n")),
        "run_config": lambda: load_settings(words),
        "inline": lambda: load_settings({"settings": " ".join(pairs)}),
        "overrides": lambda: load_settings(overrides=pairs),
    }[source]()
    assert settings.preset == "mobillm"
    assert settings.activations.pivot == "mean"
    assert settings.loss.objective == Objective.label  # the rest of the preset stays


def test_later_sources_win(write: Any) -> None:
    file = write("trainer:\n  epochs: 1\n  batch-size: 1\n  patience: 1\n  checkpoint_every: 1\n")
    settings = load_settings(
        {
            "trainer.batch-size": 2,
            "trainer.patience": 2,
            "trainer.checkpoint-every": 2,
            "settings": "trainer.patience=3 trainer.checkpoint-every=3",
        },
        file=file,
        overrides=["trainer.checkpoint-every=4"],
    )
    trainer = settings.trainer
    assert (trainer.epochs, trainer.batch_size, trainer.patience, trainer.checkpoint_every) == (1, 2, 3, 4)


def test_a_spelling_with_underscores_does_not_hide_from_one_with_hyphens() -> None:
    settings = load_settings({"trainer.batch_size": 2}, overrides=["trainer.batch-size=3"])
    assert settings.trainer.batch_size == 3


@pytest.mark.parametrize("key", ["settings-file", "settings_file"])
def test_run_config_names_a_file(key: str, write: Any) -> None:
    assert load_settings({key: str(write("trainer.epochs: 7\n"))}).trainer.epochs == 7


def test_a_file_given_directly_goes_before_the_one_in_run_config(tmp_path: Path, write: Any) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("trainer:\n  epochs: 9\n", encoding="utf-8")
    assert load_settings({"settings-file": str(other)}, file=write("trainer:\n  epochs: 7\n")).trainer.epochs == 7


def test_an_empty_file_and_empty_run_config_entries_change_nothing(write: Any) -> None:
    assert load_settings({"settings": "", "settings-file": ""}, file=write("")) == Settings()


def test_the_given_run_config_is_not_changed() -> None:
    run_config = {"settings": "trainer.epochs=3", "settings-file": "", "trainer.batch-size": 8}
    before = dict(run_config)
    load_settings(run_config)
    assert run_config == before


def test_inline_words_may_be_quoted() -> None:
    settings = load_settings({"settings": "task.prompt='{text} It was' trainer.epochs=2"})
    assert settings.task.prompt == "{text} It was"
    assert settings.trainer.epochs == 2


def test_a_quote_that_belongs_to_the_value_is_kept() -> None:
    settings = load_settings({"settings": """task.prompt='He said "{text}"'"""})
    assert settings.task.prompt == 'He said "{text}"'


def test_every_key_can_be_set_by_its_name() -> None:
    defaults, keys = Settings(), setting_keys()
    assert len(keys) == len(set(keys))
    assert "side-network.bottleneck" in keys
    assert not any("_" in key for key in keys)
    assert load_settings({key: setting(defaults, key) for key in keys}) == defaults


def test_two_loads_share_no_list() -> None:
    load_settings().task.labels.append("spam")
    assert load_settings().task.labels == []


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("trainer.epocs", "trainer.epochs"),
        ("trainer.learning_rat", "trainer.learning-rate"),
        ("side-netwrk.width", "side-network.width"),
        ("activation.codec", "activations.codec"),
        ("presset", "preset"),
    ],
)
def test_an_unknown_key_names_the_nearest(wrong: str, near: str, write: Any) -> None:
    kebab = wrong.replace("_", "-")
    message = f"unknown setting '{kebab}'; did you mean '{near}'"
    with pytest.raises(SettingsError, match=message):
        load_settings({wrong: 1})
    with pytest.raises(SettingsError, match=message):
        load_settings(overrides=[f"{wrong}=1"])
    with pytest.raises(SettingsError, match=message):
        load_settings(file=write(f"{wrong}: 1\n"))


def test_a_part_is_not_a_setting() -> None:
    with pytest.raises(SettingsError, match=r"'trainer' is a part of the settings .*give its own, such as trainer\."):
        load_settings({"trainer": 5})


def test_an_unknown_preset_lists_them() -> None:
    with pytest.raises(SettingsError, match="preset='fedavg' is not known; choose one of mobillm, pae, fed"):
        load_settings({"preset": "fedavg"})


@pytest.mark.parametrize("words", [{"settings": "trainer.epochs"}, {"settings": "trainer.epochs 5"}])
def test_an_inline_word_without_a_value_stops(words: Any) -> None:
    with pytest.raises(SettingsError, match=r"'trainer\.epochs' is not of the form key=value"):
        load_settings(words)


def test_an_inline_string_with_an_open_quote_stops_as_a_settings_error() -> None:
    with pytest.raises(SettingsError, match=r"(?i)quot"):
        load_settings({"settings": "task.prompt='{text}"})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("trainer: [\n", "is not valid YAML"),
        ("- trainer\n", "must hold a mapping"),
        ("5\n", "cannot be read"),
    ],
)
def test_a_file_that_is_no_settings_file_stops(text: str, reason: str, write: Any) -> None:
    with pytest.raises(SettingsError, match=rf"settings file .*settings\.yaml {reason}"):
        load_settings(file=write(text))


def test_a_missing_file_stops(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"absent\.yaml cannot be read"):
        load_settings({"settings-file": str(tmp_path / "absent.yaml")})


def test_settings_survive_yaml(write: Any) -> None:
    settings = load_settings(
        {
            "preset": "mobillm",
            "backbone.precision": "nf4",
            "data.partition": "dirichlet",
            "activations.layers": "2,4,6",
            "task.label-words": "yes,no",
            "task.prompt": "{text}\nIs it: 'spam'?",
            "trainer.learning-rate": 1e-5,
        }
    )
    assert load_settings(file=write(to_yaml(settings))) == settings


def test_a_run_is_kept_where_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run_folder(load_settings({"run.folder": "~/kept"}), 7) == tmp_path / "kept"


def test_a_run_is_otherwise_kept_below_the_home_of_all_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MOBILLM_HOME", str(tmp_path / "all"))
    assert run_folder(Settings(), 7) == tmp_path / "all" / "runs" / "7"
    monkeypatch.delenv("MOBILLM_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run_folder(Settings(), "a") == Path(tmp_path / ".mobillm" / "runs" / "a")


def test_each_source_of_a_value_is_named(write: Any) -> None:
    sources = setting_sources(
        {"trainer.batch_size": 2, "trainer.patience": 2, "settings": "trainer.patience=3"},
        file=write("preset: mobillm\ntrainer:\n  epochs: 1\n  batch-size: 1\n"),
        overrides=["trainer.dropout=0"],
    )
    assert sorted(sources) == sorted(setting_keys())
    named = {key: source for key, source in sources.items() if source != "default"}
    assert named == {
        "preset": "file",
        "strategy": "preset mobillm",
        "activations.pivot": "preset mobillm",
        "loss.objective": "preset mobillm",
        "trainer.epochs": "file",
        "trainer.batch-size": "run config",
        "trainer.patience": "inline string",
        "trainer.dropout": "command line",
    }


def test_the_source_of_an_unknown_setting_is_an_error() -> None:
    with pytest.raises(SettingsError, match=r"unknown setting 'trainer\.epoch'; did you mean 'trainer\.epochs'"):
        setting_sources({"trainer.epoch": 1})


def test_a_key_is_found_in_either_spelling() -> None:
    assert setting_key("side_network.bottleneck") == setting_key("side-network.bottleneck") == "side-network.bottleneck"
    with pytest.raises(SettingsError, match=r"unknown setting 'trainer\.lr'; did you mean 'trainer\."):
        setting_key("trainer.lr")
    with pytest.raises(SettingsError, match=r"unknown setting 'bogus'; mobillm settings lists them"):
        setting_key("bogus")
