"""`mobillm data`: what is understood of an app's data, before a run."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mobillm_flower.cli.options import AppFolder, AsJson, Config
from mobillm_flower.cli.output import print_rows, say_json


def data(
    folder: AppFolder,
    config: Config = None,
    backbone: Annotated[
        bool, typer.Option(help="Load the backbone, for lengths in tokens and its own prediction of a few rows.")
    ] = True,
    show_texts: Annotated[bool, typer.Option("--show-texts", help="Show three shortened texts.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a run would understand of an app's data: splits, columns, classes, devices, lengths in tokens."""
    from mobillm_flower.evaluation.first_look import first_look
    from mobillm_flower.launch import gathered, read_app

    app = read_app(folder)
    words = list(config or [])
    with gathered(app, words) as own:
        settings = app.settings([*words, *own])
        found = first_look(settings, backbone=backbone, texts=show_texts)
    source = "load_data" if own else settings.data.source
    if as_json:
        say_json({"source": source, "loads_its_own": bool(own), **found})
        return
    if own:
        typer.echo("The devices load their own rows; below is what load_data gives to devices of a simulation.")
    print_rows("Data", ("what", "figure", "remark"), _rows(source, found))


def _rows(source: str, found: dict[str, Any]) -> list[tuple[str, str, str]]:
    rows = [("source", source, "")]
    for name, split in found["splits"].items():
        columns = ", ".join(f"{column} ({kind})" for column, kind in split["columns"].items())
        rows.append((f"{name} rows", f"{split['rows']:,}", columns))
    for name, counts in found["classes"].items():
        train, test = counts
        rows.append(
            (f"class {name}", f"{train:,}", f"{test:,} in the test split" + ("" if train else "; never in train"))
        )
    rows += [("note", "", note) for note in found["notes"]]
    if found["left_out"]:
        rows.append(("rows left out", "", found["left_out"]))
    for value, count in found["unmatched"].items():
        rows.append((f"no class: {value}", f"{count:,}", "a value of the label column"))
    sizes = sorted(train for train, _ in found["devices"])
    looked_at, devices = len(sizes) + len(found["refused"]), found["num_devices"]
    without = sum(not test for _, test in found["devices"])
    rows.append(
        (
            "devices",
            f"{devices:,}",
            (f"of the first {looked_at}: " if looked_at < devices else "")
            + f"{sizes[0]:,} to {sizes[-1]:,} train samples; {without} without test samples",
        )
    )
    if found["refused"]:
        rows.append(("devices refused", str(len(found["refused"])), next(iter(found["refused"].values()))))
    if found.get("on_no_device"):
        rows.append(("test rows on no device", f"{found['on_no_device']:,}", "data.partition-column has other values"))
    if tokens := found.get("tokens"):
        lengths = f"median {tokens['median']:g} of {tokens['rows']:,} texts"
        rows.append(("tokens, at most", f"{tokens['most']:,}", lengths))
        rows.append(("texts cut", f"{tokens['cut']:,}", "longer than task.max-length; of a prompt nothing is cut"))
        rows.append(("unknown tokens", f"{tokens['unknown']:.1%}", "words that the tokenizer does not know"))
        for word, count in tokens["label_words"].items():
            rows.append(
                (
                    f"label word {word}",
                    f"{count}",
                    "tokens; the first stands for the word, or all with task.whole-label-words",
                )
            )
    if base := found.get("base"):
        names = list(found["classes"]) or [""] * len(base["mean"])
        means = ", ".join(
            f"{name} {value:.2f}".strip() for name, value in list(zip(names, base["mean"], strict=True))[:10]
        )
        right = f"; right on {base['right']}" if "right" in base else ""
        rows.append(("backbone's own prediction", base["kind"], f"mean of {base['rows']} texts: {means}{right}"))
    rows += [("text", "", text) for text in found.get("texts", [])]
    return rows
