"""`mobillm predict`: labels of texts from a trained side network; of a language model responses or next words."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from mobillm_flower.cli.options import AsJson, BackbonePath, NetworkPath
from mobillm_flower.cli.output import print_rows
from mobillm_flower.cli.run_paths import run_settings, side_network
from mobillm_flower.cli.standard_input import piped_lines
from mobillm_flower.errors import DataError, SettingsError, UnsupportedError
from mobillm_flower.runs.plain import plain_line

if TYPE_CHECKING:
    from mobillm_flower.config import DataSettings, Settings
    from mobillm_flower.models.side_tuned import SideTunedModel
    from mobillm_flower.tasks import Text
    from mobillm_flower.wire.contract import TaskContract

TextFile = Annotated[
    Path | None,
    typer.Option(
        help="A file of any form that training reads: .jsonl, .csv, .parquet and others, with the texts in columns, or "
        ".txt with one text a line (or two, with a tab between them). Without --text and --file, lines are read from "
        "standard input."
    ),
]
_BATCH = 64  # texts whose activations are in memory at once
_WRITTEN = 8  # texts that are written at once


def predict(
    run: NetworkPath,
    text: Annotated[list[str] | None, typer.Option("--text", "-t", help="A text; may be given several times.")] = None,
    pair: Annotated[
        list[str] | None, typer.Option("--pair", help="The second text to each --text, where the task is of pairs.")
    ] = None,
    file: TextFile = None,
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
    backbone: BackbonePath = "",
    mixing_key: Annotated[
        str, typer.Option(help="The devices' secret rotation, where the run had one; by default the run's own file.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Predict labels of texts: label, score and text, one line each; for a regression the number and the text.

    Of a language model the text and its response (--generate), or its next words (--suggest).
    """
    from mobillm_flower.models.side_tuned import SideTunedModel

    folder = side_network(run)
    contract, task = _of_task(folder, task, base=base)
    _check_output(contract, generate=generate, suggest=suggest, base=base)
    settings = _settings_of(run, folder, contract, with_pairs=bool(pair))
    data = settings.data
    data.text_column, data.encoding = text_column or data.text_column, encoding or data.encoding
    data.pair_column = pair_column or data.pair_column
    texts = _not_empty(_read(text or [], pair or [], file, data, piped_encoding=encoding or ""))
    model = SideTunedModel.from_pretrained(
        folder,
        backbone=backbone,
        token_budget=settings.backbone.token_budget,
        public_text=settings.activations.public_text,
        mixing_key=mixing_key or settings.privacy.mixing_key,
        task=task,
    )
    if suggest:
        _print(_suggestions(model, texts, suggest), as_json=as_json)
    elif generate:
        _print(_responses(model.with_network(None) if base else model, texts, max_new_tokens), as_json=as_json)
    else:
        _print(_predictions(_base(model) if base else model, texts), as_json=as_json)


def _of_task(folder: Path, task: str | None, *, base: bool) -> tuple[TaskContract, str | None]:
    """Return what is predicted, and the task's name as `SideTunedModel.from_pretrained` takes it."""
    from mobillm_flower.models.saved import saved_contract, saved_tasks

    tasks = saved_tasks(folder)
    if tasks is None:
        return saved_contract(folder), task
    if task is not None:
        return tasks.contract_of(task), task
    if base:
        raise SettingsError(f"--base predicts the classes of one task; give --task, one of {', '.join(tasks.names)}")
    return saved_contract(folder), ""


def _check_output(contract: TaskContract, *, generate: bool, suggest: int, base: bool) -> None:
    if contract.per_token is not (generate or suggest > 0) or (generate and suggest) or (suggest and base):
        raise SettingsError(
            "this run's model writes texts: give --generate, or --suggest without --base"
            if contract.per_token
            else "this run's model predicts no texts; leave out --generate and --suggest"
        )


def _settings_of(named: Path, folder: Path, contract: TaskContract, *, with_pairs: bool) -> Settings:
    """Return the run's settings, for a side network alone the defaults, with the column of what is read as a pair."""
    from mobillm_flower.config import Settings, load_settings

    alone = folder == named.expanduser()
    settings = Settings() if alone else load_settings(file=run_settings(named))
    column = settings.data.pair_column or ("text_pair" if contract.kind == "pairs" else "")
    column = "" if contract.per_token else column  # responses are what is wanted
    settings.data.pair_column = column or ("text_pair" if alone and with_pairs else "")
    return settings


def _read(
    texts: list[str], pairs: list[str], file: Path | None, data: DataSettings, *, piped_encoding: str
) -> Iterator[Text]:
    """Return texts from the options, a file, or standard input, whose encoding is not that of the run's data."""
    from mobillm_flower.tasks import read_texts, text_lines
    from mobillm_flower.tasks.readers import FileForm

    if file is not None and (texts or pairs):
        raise SettingsError("give --text or --file, not both")
    if file is not None:
        columns = (data.text_column, data.pair_column) if data.pair_column else (data.text_column,)
        delimiter = "" if file.suffix.lower() == ".tsv" else data.delimiter
        return read_texts(file.expanduser(), FileForm(columns, encoding=data.encoding, delimiter=delimiter))
    if texts or pairs:
        if pairs and not data.pair_column:
            raise SettingsError("this run's task has one text; leave out --pair")
        if data.pair_column and len(texts) != len(pairs):
            raise SettingsError(f"{len(texts)} --text and {len(pairs)} --pair: give one --pair to each --text")
        return itertools.zip_longest(texts, pairs)
    if sys.stdin.isatty():
        raise SettingsError("there is nothing to predict; give --text or --file, or pipe in one text a line")
    return text_lines(piped_lines(piped_encoding), pairs=bool(data.pair_column), keep_blank=True)


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


def _print(rows: Iterator[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        before = "["
        for row in rows:
            typer.echo(f"{before}{json.dumps(row)}", nl=False)
            before = ",\n"
        typer.echo("]")
    elif Console().is_terminal:
        every = list(rows)
        names = list(every[0])
        if names[0] == "value":  # figures are in the second column
            names[:2] = ["text", "value"]
        print_rows("Predictions", names, [[_cell(row[name]) for name in names] for row in every])
    else:
        for row in rows:
            typer.echo("\t".join(map(_cell, row.values())))


def _cell(value: str | float | list[str]) -> str:
    """Return a value on one line, without what would move a terminal's cursor."""
    if isinstance(value, float):
        return f"{value:.4f}"
    return plain_line(value if isinstance(value, str) else " | ".join(value))
