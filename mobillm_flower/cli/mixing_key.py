"""`mobillm mixing-key`: make a fleet's secret rotation, or say its name."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Annotated

import typer

from mobillm_flower.cli.options import AsJson
from mobillm_flower.cli.output import say_json


def mixing_key(
    file: Annotated[Path, typer.Argument(help="Where the key is, or shall be; it is made where it is missing.")],
    as_json: AsJson = False,
) -> None:
    """Make a mixing key, the same for all devices of a fleet, or print the name of one that is there.

    The name goes into privacy.mixing, the file to each device, in privacy.mixing-key. Never to the server.
    """
    from mobillm_flower.privacy.mixing import MixingKey

    file = file.expanduser()
    made = not file.exists()
    if made:
        file.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as out:
            out.write(secrets.token_hex(32) + "\n")
    name = MixingKey.read(file).name
    if as_json:
        say_json({"name": name, "file": str(file), "made": made})
    else:
        typer.echo(name)
