"""What the tab key offers, asked as bash asks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mobillm_flower.config import setting_keys
from mobillm_flower.runs.device_events import DeviceMet, Forgotten
from mobillm_flower.runs.folder import RunFolder

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


def test_devices_of_the_run_are_offered_unless_forgotten(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for device in ("aa1", "ab2", "cc3"):
        run.append(DeviceMet(device, "tiny", layers=2, num_train=10, num_test=0))
    run.append(Forgotten("ab2", 10))
    assert offered("cache", "forget", tmp_path, "a") == ["aa1"]
    assert not any(offered("cache", "forget", tmp_path / "absent", "a"))
