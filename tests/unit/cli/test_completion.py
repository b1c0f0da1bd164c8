"""What the tab key offers, asked as bash asks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mobillm_flower.config import setting_keys

PROGRAM = Path(sys.executable).parent / "mobillm"


def offered(*words: object) -> list[str]:
    """Return what bash is told for a line whose last word is not finished."""
    line = " ".join(["mobillm", *map(str, words)])
    environment = {
        **os.environ,
        "_MOBILLM_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words)),
    }
    answer = subprocess.run([str(PROGRAM)], env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert answer.stderr == ""
    return answer.stdout.splitlines()


def test_a_script_for_bash_is_shown() -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    line = f"'{PROGRAM}' --show-completion; exit $?"  # in bash itself: the shell is told by the parent process
    answer = subprocess.run([bash, "-c", line], capture_output=True, text=True, timeout=120, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "_mobillm_completion()" in answer.stdout
    assert "complete -o default -F _mobillm_completion mobillm" in answer.stdout
    checked = subprocess.run([bash, "-n"], input=answer.stdout, text=True, capture_output=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_commands_settings_and_presets_are_offered() -> None:
    assert {"predict", "cache", "settings"} <= set(offered(""))
    assert offered("settings", "trainer.ep") == ["trainer.epochs"]
    assert offered("settings", "--preset", "m") == ["mobillm"]
    keys = [f"{key}=" for key in setting_keys() if key.startswith("loss.")]
    assert offered("run", "app", "-c", "loss.") == offered("settings", "-c", "loss.") == keys


def test_devices_of_the_run_are_offered_unless_forgotten(tmp_path) -> None:
    events = [("device", "aa1"), ("device", "ab2"), ("device", "cc3"), ("forgotten", "ab2")]
    lines = [json.dumps({"time": 1.0, "event": kind, "device": device}) for kind, device in events]
    (tmp_path / "events.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    assert offered("cache", "forget", tmp_path, "a") == ["aa1"]
    assert not any(offered("cache", "forget", tmp_path / "absent", "a"))
