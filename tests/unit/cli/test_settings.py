"""`mobillm settings`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mobillm_flower.config import load_settings, setting_keys, to_yaml
from tests.support.cli import lines, parsed, refused


def values(*arguments: object) -> dict[str, tuple[object, str]]:
    return {row["key"]: (row["value"], row["source"]) for row in parsed("settings", *arguments)}


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """A folder with the settings of a run, as the strategy writes them: every key."""
    folder = tmp_path / "run"
    folder.mkdir()
    settings = load_settings({"preset": "mobillm", "trainer.epochs": 7, "data.partition": "dirichlet"})
    (folder / "settings.yaml").write_text(to_yaml(settings), "utf-8")
    return folder


def test_every_setting_has_a_line_with_default_type_and_meaning() -> None:
    found = lines("settings")
    assert [line.split()[0] for line in found] == setting_keys()
    (epochs,) = [line for line in found if line.startswith("trainer.epochs")]
    assert epochs.split(maxsplit=2)[1] == "20"
    assert "whole number, at least 1" in epochs
    assert epochs.endswith("Epochs from the cache when all data is held.")


def test_json_holds_what_the_lines_say() -> None:
    (epochs,) = parsed("settings", "trainer.epochs")
    assert epochs == {
        "key": "trainer.epochs",
        "type": "whole number",
        "allowed": "at least 1",
        "default": 20,
        "presets": {"upper-layers": 6},
        "meaning": "Epochs from the cache when all data is held.",
    }
    assert [row["key"] for row in parsed("settings")] == setting_keys()


def test_a_part_stands_for_its_settings_and_either_spelling_is_taken() -> None:
    keys = [row["key"] for row in parsed("settings", "side_network", "cache.quota_mib")]
    assert keys == [key for key in setting_keys() if key.startswith("side-network.")] + ["cache.quota-mib"]


def test_a_wrong_key_gives_the_nearest() -> None:
    assert refused("settings", "trainer.epoch") == "unknown setting 'trainer.epoch'; did you mean 'trainer.epochs'?"
    assert refused("settings", "-c", "loss.nam=square") == "unknown setting 'loss.nam'; did you mean 'loss.name'?"


def test_values_in_force_name_where_they_come_from(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("trainer:\n  epochs: 3\n  patience: 1\n", "utf-8")
    found = values(
        "--file", file, "--preset", "mobillm", "-c", "trainer.patience=2", "trainer", "activations", "preset"
    )
    assert found["trainer.epochs"] == (3, "file")
    assert found["trainer.patience"] == (2, "command line")
    assert found["activations.pivot"] == ("all", "preset mobillm")
    assert found["activations.codec"] == ("nf4", "default")
    assert found["preset"] == ("mobillm", "command line")


def test_a_runs_own_settings_are_those_that_differ_from_its_preset(run: Any) -> None:
    found = values("--run", run)
    assert {key: value for key, value in found.items() if value[1] != "default"} == {
        "preset": ("mobillm", "run"),
        "strategy": ("mobillm", "preset mobillm"),
        "activations.pivot": ("all", "preset mobillm"),
        "loss.objective": ("label", "preset mobillm"),
        "trainer.epochs": (7, "run"),
        "data.partition": ("dirichlet", "run"),
    }
    assert values("--run", run, "-c", "trainer.epochs=9", "trainer.epochs") == {"trainer.epochs": (9, "command line")}
    (line,) = lines("settings", "--run", run, "trainer.epochs")
    assert line.split()[:4] == ["trainer.epochs", "7", "run", "20"]


def test_what_cannot_be_shown_is_refused(run: Any, tmp_path: Path) -> None:
    assert "leave out --file and --preset" in refused("settings", "--run", run, "--preset", "pae")
    assert "is no folder; name a run's folder" in refused("settings", "--run", tmp_path / "absent")
    assert "holds no settings.yaml" in refused("settings", "--run", tmp_path)
    assert "absent.yaml cannot be read" in refused("settings", "--file", tmp_path / "absent.yaml")
    assert "choose one of mobillm, pae, fed" in refused("settings", "--preset", "fedavg")
    assert "trainer.epochs=0 must be at least 1" in refused("settings", "-c", "trainer.epochs=0")


def test_a_value_of_several_lines_stays_on_one() -> None:
    (line,) = lines("settings", "-c", "task.prompt={text}\nIt was", "task.prompt")
    assert "{text}\\nIt was" in line
