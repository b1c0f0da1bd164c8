"""What the command line says where a file cannot be used, and where it is stopped."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from mobillm_flower.cli import app as commands
from mobillm_flower.cli import main
from tests.support.pages import ROOT
from tests.support.run_folders import write_run


def failing(error: OSError) -> typer.Typer:
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def fail() -> None:
        raise error

    return app


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["mobillm"])


def test_a_file_that_cannot_be_written_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="1"):
        main(failing(PermissionError(13, "Permission denied", "/srv/report.html")))
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "error /srv/report.html: Permission denied\n")


def test_what_is_no_files_fault_is_not_hidden() -> None:
    with pytest.raises(ConnectionResetError, match="reset"):
        main(failing(ConnectionResetError(104, "reset")))


def test_the_status_of_a_run_is_shown_without_loading_torch(tmp_path: Path) -> None:
    code = f"""
import sys
from mobillm_flower.cli import main
sys.argv = ["mobillm", "status", {str(write_run(tmp_path / "run"))!r}]
try:
    main()
except SystemExit as ended:
    print(ended.code or 0, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "0 False", done.stderr


def test_a_run_that_the_keyboard_stops_says_how_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any, run_path: Path, **__: Any) -> None:
        write_run(run_path)
        raise KeyboardInterrupt

    monkeypatch.setattr("mobillm_flower.launch.run_app", stopped)
    monkeypatch.chdir(tmp_path)
    quickstart = str(ROOT / "examples" / "quickstart")
    answer = CliRunner().invoke(commands, ["run", quickstart, "--out", "mine"])
    assert answer.exit_code == 130
    assert "stopped; the same command with --out mine goes on" in answer.stderr.splitlines()
