"""Settings of other types and damaged files of settings: they load, or a SettingsError names the key or the file."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobillm_flower.config import load_settings, setting_keys, to_yaml
from mobillm_flower.errors import SettingsError
from tests.support.damage import ODD, damaged

WHOLE = to_yaml(load_settings()).encode()
TEXTS = ["nan", "1e999", "[1, 2]", "'", "a,,b", "\x00", "${a}", "???", "0x10", "1_000", "1" * 400]


@given(key=st.sampled_from(setting_keys()), value=st.sampled_from([*ODD, *TEXTS, float("nan"), float("inf"), b"x"]))
@settings(max_examples=60, deadline=None)
def test_a_value_of_another_type_is_taken_or_named(key: str, value: object) -> None:
    with contextlib.suppress(SettingsError):
        load_settings({key: value})
    with contextlib.suppress(SettingsError):
        load_settings(overrides=[f"{key}={value}"])


@given(draw=st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_a_damaged_file_is_read_or_named(draw: Random) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "settings.yaml")
        file.write_bytes(damaged(file.name, WHOLE, draw))
        with contextlib.suppress(SettingsError):
            load_settings(file=file)


@pytest.mark.parametrize(
    "content", ["? [a]\n: 1", "1: 2", "null: 3", "trainer: 5", "a: &a [*a]", "--- a\n--- b", "[a]"]
)
def test_what_is_no_mapping_of_settings_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(content, "utf-8")
    with pytest.raises(SettingsError, match=r"settings file|unknown setting|is no value|must be|holds|is a part of"):
        load_settings(file=file)
