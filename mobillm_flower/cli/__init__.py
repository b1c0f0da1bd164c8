"""The command `mobillm`; one module a command."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import Annotated

import typer
from rich.console import Console

from mobillm_flower.cli.audit import audit
from mobillm_flower.cli.cache import app as cache
from mobillm_flower.cli.chat import chat
from mobillm_flower.cli.compare import compare
from mobillm_flower.cli.data import data
from mobillm_flower.cli.mixing_key import mixing_key
from mobillm_flower.cli.new import new
from mobillm_flower.cli.output import told
from mobillm_flower.cli.plan import plan
from mobillm_flower.cli.predict import predict
from mobillm_flower.cli.report import report
from mobillm_flower.cli.run import run
from mobillm_flower.cli.settings import settings
from mobillm_flower.cli.status import status
from mobillm_flower.errors import MobiLLMError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="Forward-only federated fine-tuning of language models for Flower.",
)
app.command()(new)
app.command()(data)
app.command()(run)
app.command()(status)
app.command()(plan)
app.command()(compare)
app.command()(predict)
app.command()(chat)
app.add_typer(cache, name="cache")
app.command()(settings)
app.command()(report)
app.command()(audit)
app.command()(mixing_key)
_state = {"debug": False}


def _say_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        from mobillm_flower import __version__

        parts = [f"mobillm {__version__}"]
        for name in ("flwr", "transformers", "torch"):
            with contextlib.suppress(PackageNotFoundError):
                parts.append(f"{name} {version(name)}")
        typer.echo(", ".join(parts))
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[  # noqa: ARG001 - said as it is read
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Show the version, and end.")
    ] = False,
) -> None:
    _state["debug"] = debug


def main(command: typer.Typer = app) -> None:
    """Run a command line; an error that is meant for the user is one paragraph, and the exit code is 1."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for number in (signal.SIGTERM, signal.SIGHUP):  # so that what was started is ended
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, lambda came, _: sys.exit(128 + came))
    try:
        command()
    except (MobiLLMError, OSError) as error:
        if _state["debug"] or (isinstance(error, OSError) and not error.filename):
            raise
        console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        console.print("error", style="bold red", end=" ")
        console.print(f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else told(error))
        sys.exit(1)
    except KeyboardInterrupt:
        Console(stderr=True).print("stopped")
        sys.exit(130)
