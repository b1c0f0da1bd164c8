"""What the command line says where a file cannot be used."""

from __future__ import annotations

import signal
import sys

import pytest
import typer

from mobillm_flower.cli import main


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
