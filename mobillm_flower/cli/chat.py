"""`mobillm chat`: a language model responds to lines, word by word."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from mobillm_flower.cli.options import BackbonePath, NetworkPath
from mobillm_flower.cli.run_paths import side_network
from mobillm_flower.cli.standard_input import piped_lines
from mobillm_flower.errors import DataError, UnsupportedError
from mobillm_flower.runs.plain import plain_line

if TYPE_CHECKING:
    from mobillm_flower.models.side_tuned import SideTunedModel


def chat(
    run: NetworkPath,
    beside: Annotated[
        bool, typer.Option("--beside", help="Let the backbone alone respond first, then the tuned model.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a response.")] = 128,
    backbone: BackbonePath = "",
) -> None:
    """Respond to each line of standard input as it comes; of a run on plain texts, go on with the line.

    Each line is a prompt of its own, as in training: what was said before is not read again. Ctrl-C or the end of the
    input ends it.
    """
    from mobillm_flower.models.saved import saved_contract
    from mobillm_flower.models.side_tuned import SideTunedModel

    folder = side_network(run)
    if not saved_contract(folder).per_token:
        raise UnsupportedError("this run's model predicts labels or numbers and writes no texts; use mobillm predict")
    model = SideTunedModel.from_pretrained(folder, backbone=backbone)
    models = [("base: ", model.with_network(None)), ("tuned: ", model)] if beside else [("", model)]
    with contextlib.suppress(KeyboardInterrupt):
        for line in _lines():
            for name, one in models:
                typer.echo(name, nl=False)
                _respond(one, line, max_new_tokens)


def _lines() -> Iterator[str]:
    """Yield lines that hold something; a terminal shows that one is waited for."""
    if not sys.stdin.isatty():
        yield from (line.strip() for line in piped_lines() if line.strip())
        return
    with contextlib.suppress(EOFError):
        while True:
            if line := input("> ").strip():
                yield line


def _respond(model: SideTunedModel, text: str, most: int) -> None:
    """Print a response as it is made; on a terminal a prompt that cannot be read does not end the conversation."""
    from mobillm_flower.models.language import streamer

    try:
        model.generate(text, max_new_tokens=most, streamer=streamer(model.tokenizer, _say))
    except DataError as error:
        if not sys.stdin.isatty():
            raise
        typer.echo(f"error: {error}", err=True)


def _say(text: str, ended: bool) -> None:
    typer.echo("\n".join(map(plain_line, text.split("\n"))), nl=ended)
    sys.stdout.flush()
