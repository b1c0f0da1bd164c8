"""`mobillm predict`: labels of texts from a trained side network; of a language model responses or next words."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from mobillm_flower.cli.options import AsJson
from mobillm_flower.cli.output import plain_line, print_rows
from mobillm_flower.cli.run_paths import run_settings, side_network
from mobillm_flower.cli.standard_input import piped_lines
from mobillm_flower.errors import DataError, SettingsError, UnsupportedError

if TYPE_CHECKING:
    from mobillm_flower.models.side_tuned import SideTunedModel
    from mobillm_flower.tasks import Text
    from mobillm_flower.wire.contract import TaskContract

_BATCH = 64  # texts whose activations are in memory at once
_WRITTEN = 8  # texts that are written at once


def predict(
    run: Annotated[Path, typer.Argument(help="A run's folder, or the folder of a side network itself.")],
    text: Annotated[list[str] | None, typer.Option("--text", "-t", help="A text; may be given several times.")] = None,
    pair: Annotated[
        list[str] | None, typer.Option("--pair", help="The second text to each --text, where the task is of pairs.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            help="A file of any form that training reads: .jsonl, .csv, .parquet and others, with the texts in "
            "columns, or .txt with one text a line (or two, with a tab between them). Without --text and --file, lines "
            "are read from standard input."
        ),
    ] = None,
    text_column: Annotated[
        str | None, typer.Option(help="Column of the text in --file; by default the run's data.text-column.")
    ] = None,
    pair_column: Annotated[
        str | None, typer.Option(help="Column of the second text in --file; by default the run's data.pair-column.")
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(help="Encoding of --file, by default data.encoding; of what is piped in, by default UTF-8."),
    ] = None,
    base: Annotated[
        bool, typer.Option("--base", help="Predict with the backbone alone, where it has a prediction of its own.")
    ] = False,
    generate: Annotated[
        bool,
        typer.Option("--generate", help="Of a language model: its response to each text, or how the text goes on."),
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a response, with --generate.")] = 64,
    suggest: Annotated[
        int,
        typer.Option(
            min=0,
            help="Of a language model: so many suggestions of the next word of each text, by the backbone alone and "
            "tuned.",
        ),
    ] = 0,
    task: Annotated[
        str | None,
        typer.Option(
            help="Of a run that has learned several tasks one after another: predict the classes of this one. By "
            "default the classes of all tasks are told apart."
        ),
    ] = None,
    backbone: Annotated[
        str, typer.Option(help="Where the backbone is: a folder or hub id; by default where the run had it.")
    ] = "",
    mixing_key: Annotated[
        str, typer.Option(help="The devices' secret rotation, where the run had one; by default the run's own file.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Predict labels of texts: label, score and text, one line each; for a regression the number and the text.

    Of a language model the text and its response (--generate), or its next words (--suggest).
    """
    from mobillm_flower.models.saved import saved_contract, saved_tasks
    from mobillm_flower.models.side_tuned import SideTunedModel

    folder = side_network(run)
    contract, tasks = saved_contract(folder), saved_tasks(folder)
    if task is not None and tasks is not None:
        contract = tasks.contract_of(task)
    elif base and tasks is not None:
        raise SettingsError(f"--base predicts the classes of one task; give --task, one of {', '.join(tasks.names)}")
    if contract.per_token is not (generate or suggest > 0) or (generate and suggest) or (suggest and base):
        raise SettingsError(
            "this run's model writes texts: give --generate, or --suggest without --base"
            if contract.per_token
            else "this run's model predicts no texts; leave out --generate and --suggest"
        )
    reading = _Reading.of(run, folder, contract)
    reading = replace(
        reading,
        text_column=text_column or reading.text_column,
        encoding=encoding or reading.encoding,
        piped_encoding=encoding or "",
        pair_column=pair_column or reading.pair_column or ("text_pair" if pair and reading.run is None else ""),
    )
    texts = _not_empty(reading.texts(text or [], pair or [], file))
    model = SideTunedModel.from_pretrained(
        folder,
        backbone=backbone,
        token_budget=reading.token_budget,
        public_text=reading.public_text,
        mixing_key=mixing_key or reading.mixing_key,
        task=task or ("" if tasks is not None else task),
    )
    if suggest:
        rows = _suggestions(model, texts, suggest)
    elif generate:
        rows = _responses(model.with_network(None) if base else model, texts, max_new_tokens)
    else:
        rows = _predictions(_base(model) if base else model, texts)
    if as_json:
        _print_json(rows)
    elif Console().is_terminal:
        _print_table(list(rows))
    else:
        for row in rows:
            typer.echo("\t".join(map(_cell, row.values())))


@dataclass(frozen=True)
class _Reading:
    """How texts are read: what the run's settings say of its data, or what holds for a side network alone."""

    run: Path | None
    text_column: str
    pair_column: str
    encoding: str
    delimiter: str
    token_budget: int
    public_text: str
    mixing_key: str
    piped_encoding: str = ""  # of standard input: the user's, and not that of the run's data

    @classmethod
    def of(cls, named: Path, folder: Path, contract: TaskContract) -> _Reading:
        from mobillm_flower.config import Settings, load_settings

        run = None if folder == named.expanduser() else named
        settings = Settings() if run is None else load_settings(file=run_settings(run))
        pair_column = settings.data.pair_column or ("text_pair" if contract.kind == "pairs" else "")
        pair_column = "" if contract.per_token else pair_column  # responses are what is wanted
        return cls(
            run,
            settings.data.text_column,
            pair_column,
            settings.data.encoding,
            settings.data.delimiter,
            settings.backbone.token_budget,
            settings.activations.public_text,
            settings.privacy.mixing_key,
        )

    def texts(self, texts: list[str], pairs: list[str], file: Path | None) -> Iterator[Text]:
        """Return texts from the options, a file, or standard input."""
        from mobillm_flower.tasks import read_texts, text_lines
        from mobillm_flower.tasks.readers import FileForm

        if file is not None and (texts or pairs):
            raise SettingsError("give --text or --file, not both")
        if file is not None:
            columns = (self.text_column, self.pair_column) if self.pair_column else (self.text_column,)
            delimiter = "" if file.suffix.lower() == ".tsv" else self.delimiter
            return read_texts(file.expanduser(), FileForm(columns, encoding=self.encoding, delimiter=delimiter))
        if texts or pairs:
            if pairs and not self.pair_column:
                raise SettingsError("this run's task has one text; leave out --pair")
            if self.pair_column and len(texts) != len(pairs):
                raise SettingsError(f"{len(texts)} --text and {len(pairs)} --pair: give one --pair to each --text")
            return itertools.zip_longest(texts, pairs)
        if sys.stdin.isatty():
            raise SettingsError("there is nothing to predict; give --text or --file, or pipe in one text a line")
        return text_lines(piped_lines(self.piped_encoding), pairs=bool(self.pair_column), keep_blank=True)


def _not_empty(texts: Iterator[Text]) -> Iterator[Text]:
    """Read the first text, so that what is wrong with the input is said before a backbone is loaded."""
    first = next(texts, None)
    if first is None:
        raise DataError("there is nothing to predict: the input holds no text")
    return itertools.chain([first], texts)


def _base(model: SideTunedModel) -> SideTunedModel:
    info = model.backbone.info
    if info.base_prediction == "constant":
        raise UnsupportedError(
            f"{info.name} has no prediction of its own: neither label words nor a trained head; leave out --base"
        )
    return model.with_network(None)


def _predictions(model: SideTunedModel, texts: Iterator[Text]) -> Iterator[dict[str, Any]]:
    names = model.contract.labels
    for batch in _batches(texts, _BATCH):
        firsts = [text for text, _ in batch]
        seconds = [pair for _, pair in batch if pair is not None]
        predictions = model.predict(firsts, seconds or None)
        for (text, pair), label, scores in zip(batch, predictions.labels, predictions.scores, strict=True):
            row = {"label": label, "score": scores[names.index(label)].item()} if names else {"value": label}
            yield row | {"text": text} | ({} if pair is None else {"pair": pair})


def _responses(model: SideTunedModel, texts: Iterator[Text], most: int) -> Iterator[dict[str, Any]]:
    for batch in _batches(texts, _WRITTEN):
        prompts = [text for text, _ in batch]
        for text, response in zip(prompts, model.generate(prompts, max_new_tokens=most), strict=True):
            yield {"text": text, "response": response}


def _suggestions(model: SideTunedModel, texts: Iterator[Text], num: int) -> Iterator[dict[str, Any]]:
    base = model.with_network(None)
    for batch in _batches(texts, 1):
        for text, _ in batch:
            both = {"base": base.suggest(text, num=num), "tuned": model.suggest(text, num=num)}
            yield {"text": text, **{name: [word for word, _ in words] for name, words in both.items()}}


def _batches(texts: Iterator[Text], size: int) -> Iterator[list[Text]]:
    from mobillm_flower.tasks import check_texts

    number = 0
    while batch := list(itertools.islice(texts, size)):
        check_texts([text for text, _ in batch], [pair for _, pair in batch if pair is not None], before=number)
        number += len(batch)
        yield batch


def _print_json(rows: Iterable[dict[str, Any]]) -> None:
    before = "["
    for row in rows:
        typer.echo(f"{before}{json.dumps(row)}", nl=False)
        before = ",\n"
    typer.echo("]")


def _print_table(rows: list[dict[str, Any]]) -> None:
    names = list(rows[0])
    if names[0] == "value":  # figures are in the second column
        names[:2] = ["text", "value"]
    print_rows("Predictions", names, [[_cell(row[name]) for name in names] for row in rows])


def _cell(value: str | float | list[str]) -> str:
    """Return a value on one line, without what would move a terminal's cursor."""
    if isinstance(value, float):
        return f"{value:.4f}"
    return plain_line(value if isinstance(value, str) else " | ".join(value))
