"""The command line in this process: what it prints in a pipe, and how it ends."""

from __future__ import annotations

import json
from typing import Any

from click.testing import Result
from typer.testing import CliRunner

from mobillm_flower.cli import app
from mobillm_flower.errors import MobiLLMError


def mobillm(*arguments: object, stdin: str | bytes = "") -> Result:
    """Run a command; an exception other than an exit code is the caller's to expect, see `refused`."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def lines(*arguments: object, stdin: str | bytes = "") -> list[str]:
    """Return what a command that goes well prints."""
    result = mobillm(*arguments, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


def parsed(*arguments: object, stdin: str | bytes = "") -> Any:
    """Return what a command that goes well prints with --json; nothing else is printed."""
    result = mobillm(*arguments, "--json", stdin=stdin)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return json.loads(result.stdout)


def refused(*arguments: object, stdin: str | bytes = "") -> str:
    """Return the message of a command that ends with one of the package's errors, one paragraph; it prints nothing."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
    assert isinstance(result.exception, MobiLLMError), (result.exception, result.output)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "\n" not in str(result.exception)
    return str(result.exception)
