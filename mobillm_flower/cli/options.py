"""Arguments and options that several commands have, each said once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mobillm_flower.cli import completion

AppFolder = Annotated[Path, typer.Argument(help="Folder of a Flower app.")]
RunPath = Annotated[Path, typer.Argument(help="The run's folder.")]
NetworkPath = Annotated[Path, typer.Argument(help="A run's folder, or the folder of a side network itself.")]
BackbonePath = Annotated[
    str, typer.Option(help="Where the backbone is: a folder or hub id; by default where the run had it.")
]
Config = Annotated[
    list[str] | None,
    typer.Option(
        "--config",
        "-c",
        help="A setting, key=value; may be given several times.",
        autocompletion=completion.setting_words,
    ),
]
UpMbit = Annotated[float, typer.Option(min=1e-3, help="A device's uplink, modelled, in Mbit/s.")]
DownMbit = Annotated[float, typer.Option(min=1e-3, help="A device's downlink, modelled, in Mbit/s.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, nothing else.")]
