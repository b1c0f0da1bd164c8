"""The two parts of report.html that are made from a run's settings: the list of them, and what is not protected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.html_page import page_of
from tests.support.run_folders import write_run


def test_settings_that_differ_from_the_defaults_are_marked(tmp_path: Path) -> None:
    overrides = ("preset=mobillm", "trainer.epochs=7", "task.labels=alarm,music,weather")
    path = write_run(tmp_path / "run", overrides=overrides)
    with (path / "settings.yaml").open("a") as stream:
        stream.write("future:\n  thing: 1\n")
    settings = page_of(path).sections["settings"]
    changed, all_of_them = settings.split("All ", 1)
    assert "trainer.epochs\n7\n20\n" in changed
    assert "loss.objective\nlabel\ndifference (preset mobillm)\n" in changed
    assert "task.labels\nalarm,music,weather\nempty\n" in changed
    assert "future.thing\n1\nnot known to this version\n" in changed
    assert "rounds.window" not in changed
    assert "rounds.window\n64\n64\nMost samples a device is asked for at once.\n" in all_of_them


@pytest.mark.parametrize(
    ("overrides", "labels", "said", "not_said"),
    [
        ((), ("a", "b", "c"), ["argmax(Δy) is the label", "loss, square", "Off: activations"], ["as it is."]),
        (("loss.name=logit",), ("a", "b", "c"), ["loss, logit, reads both back"], ["loss, square"]),
        (
            ("preset=mobillm",),
            ("a", "b", "c"),
            ["sends every sample's label as it is", "vector for every token", "It sends the backbone's own"],
            ["argmax(Δy)", "few vectors"],
        ),
        (("preset=mobillm", "loss.send-base=false"), ("a", "b", "c"), ["label as it is"], ["It sends the backbone's"]),
        (("task.kind=regression",), (), ["Δy = y − ŷ_b", "is the target itself"], ["argmax(Δy)"]),
        (("activations.clip-norm=2",), ("a", "b", "c"), ["Clipping only", "at most 2 a sample"], ["Off:", "noise of"]),
        (
            ("activations.clip-norm=2", "activations.noise-sigma=0.5", "privacy.max-releases=3"),
            ("a", "b", "c"),
            ["norm of 2, and noise of standard deviation 0.5", "at most 3 times"],
            ["Off:", "Clipping only"],
        ),
        (("cache.retention-days=30",), ("a", "b", "c"), ["older than 30 days are deleted"], ["for ever"]),
        (("activations.keep=0.1", "activations.codec=int8"), ("a", "b", "c"), ["codec (int8)", "kept (0.1)"], ["nf4"]),
    ],
)
def test_what_is_not_protected_is_true_to_the_settings(
    tmp_path: Path, overrides: Any, labels: Any, said: Any, not_said: Any
) -> None:
    text = page_of(write_run(tmp_path / "run", overrides=overrides, labels=labels)).sections["protection"]
    for words in [*said, "No ε can be named for a sample", "30 samples, 4.10 kB"]:
        assert words in text
    for words in not_said:
        assert words not in text


def test_a_regression_with_a_prediction_of_its_own_does_not_send_the_target_itself(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", labels=(), base_prediction="classifier", overrides=("task.kind=regression",))
    assert "Where a backbone has no prediction of its own" in page_of(path).sections["protection"]


def test_a_simulation_says_that_the_devices_secrets_are_in_the_folder(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    assert "secrets" not in page_of(path).sections["protection"]
    (path / "devices").mkdir()
    assert "secrets" in page_of(path).sections["protection"]
