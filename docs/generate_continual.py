"""Put the figures into `docs/explanation/continual.md`, from `benchmarks/results/continual.json`."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blocks import put, table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "continual.json"
PAGE = ROOT / "docs" / "explanation" / "continual.md"
FIGURE = ROOT / "docs" / "images" / "continual-sensitivity.svg"
COMMAND = ".venv/bin/python -m benchmarks.studies.continual --data FOLDER --json benchmarks/results/continual.json"
NAMES = {
    "joint": "`joint`: `replay` of all rows, by steps",
    "joint solution": "the same in closed form: one solution",
    "replay of a tenth": "`replay` of a tenth of the rows",
    "closed-form": "`closed-form`",
    "oa-adapter": "`oa-adapter`",
    "o-lora": "`o-lora`",
    "o-lora of rank 6": "`o-lora` of rank 6",
    "sequential": "`sequential`",
}
METHODS_THAT_KEEP = ("joint", "joint solution", "replay of a tenth", "closed-form")
SEQUENCES = ("five tasks", "ten domains", "five tasks, smollm2")


def load() -> dict[str, Any]:
    """Return the study's JSON."""
    found: dict[str, Any] = json.loads(RESULTS.read_text("utf-8"))
    return found


def cells(found: Mapping[str, Any], sequence: str, method: str) -> list[dict[str, Any]]:
    """Return the cells of a method in a sequence, all orders and seeds."""
    wanted = (key.split("|") for key in found["cells"])
    return [found["cells"]["|".join(key)] for key in wanted if key[0] == sequence and key[3] == method]


def average(cell: Mapping[str, Any], case: str) -> float:
    """AA in points."""
    last = cell[case][-1]
    return 100 * sum(last) / len(last)


def measured(found: Mapping[str, Any], sequence: str, method: str) -> dict[str, list[float]]:
    """Return AA, BWT and FWT in points, with the task known and unknown, of each cell; FWT where the task is known."""
    of_method = cells(found, sequence, method)
    made: dict[str, list[float]] = {"FWT": []}
    for case in ("known", "unknown"):
        made[f"{case} AA"] = [average(cell, case) for cell in of_method]
        made[f"{case} BWT"] = [
            100 * cell[f"{case}_measures"]["backward_transfer"] for cell in of_method if f"{case}_measures" in cell
        ]
    for key, cell in found["cells"].items():
        of, _, seed, name = key.split("|")
        alone = found.get("alone", {}).get(f"{of}|{seed}|{method}")
        if (of, name) == (sequence, method) and alone:
            gained = [cell["known"][i][i] - alone[task] for i, task in enumerate(cell["order"]) if i]
            made["FWT"].append(100 * statistics.mean(gained))
    return made


def shown(values: Sequence[float], digits: int = 1) -> str:
    """Mean and, of several, standard deviation."""
    if not values:
        return "–"
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def results(found: Mapping[str, Any], sequence: str) -> str:
    """Return the table of a sequence."""
    lines = []
    columns = ("known AA", "known BWT", "FWT", "unknown AA", "unknown BWT")
    for name, shown_as in NAMES.items():
        of_method = cells(found, sequence, name)
        if not of_method:
            continue
        of_cells, sizes = measured(found, sequence, name), [cell["sizes"][-1] for cell in of_method]
        first = statistics.mean(cell["sizes"][0]["parameters"] for cell in of_method)
        last = statistics.mean(size["parameters"] for size in sizes)
        adapters = [size["adapter_parameters"] for size in sizes if "adapter_parameters" in size]
        kept = statistics.mean(size["bytes_kept"] for size in sizes) / 1e6
        lines.append(
            [
                shown_as,
                *(shown(of_cells[column]) for column in columns),
                (f"{first / 1e6:.2f} → " if len(of_method[0]["sizes"]) > 1 else "")
                + f"{last / 1e6:.2f} M"
                + (f" ({statistics.mean(adapters) / 1e3:.0f} k)" if adapters else ""),
                f"{kept:.1f} MB" if name in METHODS_THAT_KEEP else "0",
                str(len(of_method)),
            ]
        )
    if not lines:
        return "Not measured yet."
    head = ["", "known: AA", "BWT", "FWT", "unknown: AA", "BWT", "parameters (of adapters that act)", "kept", "runs"]
    return table(head, lines)


def bars(found: Mapping[str, Any]) -> str:
    """Return which of the promises hold."""
    lines = []
    for sequence in SEQUENCES:
        of = {name: measured(found, sequence, name) for name in NAMES if cells(found, sequence, name)}
        if not {"oa-adapter", "o-lora", "closed-form", "joint"} <= of.keys():
            continue
        for other in ("o-lora", "o-lora of rank 6"):
            if other in of:
                lines += [[sequence, *line] for line in _beside(found, sequence, of, other)]
        transfer = statistics.mean(of["closed-form"]["known BWT"])
        lines.append([sequence, "`closed-form`, task known: BWT ≥ −0.5", f"{transfer:+.1f}", _said(transfer >= -0.5)])
        gap = statistics.mean(of["closed-form"]["known AA"]) - statistics.mean(of["joint"]["known AA"])
        lines.append(
            [sequence, "`closed-form`, task known: AA within 2 points of joint", f"{gap:+.1f}", _said(gap >= -2)]
        )
    return table(["", "promised", "measured", ""], lines) if lines else "Not measured yet."


def _beside(found: Mapping[str, Any], sequence: str, of: Mapping[str, Any], other: str) -> list[list[str]]:
    """Compare `oa-adapter` with another way, in accuracy and in parameters of adapters that act."""
    lines = []
    for case in ("known", "unknown"):
        ours, theirs = (statistics.mean(of[name][f"{case} AA"]) for name in ("oa-adapter", other))
        promised = f"`oa-adapter` ≥ {NAMES[other]} in AA, task {case}"
        lines.append([promised, f"{ours - theirs:+.1f}", _said(ours >= theirs)])
    budgets = [
        statistics.mean(c["sizes"][-1]["adapter_parameters"] for c in cells(found, sequence, name))
        for name in ("oa-adapter", other)
    ]
    fewer = f"{100 * (budgets[0] / budgets[1] - 1):+.0f} %"
    lines.append(["… at equal or fewer parameters of adapters", fewer, _said(budgets[0] <= budgets[1])])
    return lines


def _said(holds: bool) -> str:
    return "holds" if holds else "**missed**"


def sensitivity(found: Mapping[str, Any]) -> str:
    """Return accuracies of the trials, with the share of dimensions that are dead."""
    lines = []
    for key, cell in found["trials"].items():
        name, _, values = key.partition(" ")
        words = json.loads(values)
        chosen = {
            **{field: found["methods"][name][field] for field in ("orthogonality", "threshold", "learning_rate")},
            **words,
        }
        dead = cell["sizes"][-1].get("dead", 0.0)
        lines.append(
            [
                f"`{name}`",
                f"{chosen['orthogonality']:g}",
                f"{chosen['threshold']:g}" if name == "oa-adapter" else "–",
                f"{chosen['learning_rate']:g}",
                f"{average(cell, 'known'):.1f}",
                f"{average(cell, 'unknown'):.1f}",
                f"{100 * dead:.0f} %",
            ]
        )
    return table(["", "λ", "τ₀", "learning rate", "known: AA", "unknown: AA", "dead"], lines)


def draw(found: Mapping[str, Any]) -> None:
    """Draw how λ and τ₀ change accuracies and the share of dead dimensions, from the trials on validation rows."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "continual", "svg.fonttype": "none"}  # the same bytes again; text as text
    from matplotlib import pyplot

    trials = {key.partition(" ")[0]: [] for key in found["trials"]}  # type: ignore[var-annotated]
    for key, cell in found["trials"].items():
        name, _, words = key.partition(" ")
        values = {"learning_rate": 2e-3, **json.loads(words)}
        if values["learning_rate"] == 2e-3:
            trials[name].append((values["orthogonality"], values.get("threshold", 0.0), cell))
    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    middle_weight = 2.0
    lines = [
        (left, "λ", name, sorted((w, cell) for w, t, cell in of if t in (0.0, 1.5))) for name, of in trials.items()
    ]
    of_budgets = sorted((t, cell) for w, t, cell in trials["oa-adapter"] if w == middle_weight)
    lines.append((middle, "τ₀", "oa-adapter", of_budgets))
    for axis, what, name, points in lines:
        colour = "tab:blue" if name == "oa-adapter" else "tab:orange"
        for case, style in (("known", "-o"), ("unknown", "--o")):
            ys = [average(cell, case) for _, cell in points]
            axis.plot([x for x, _ in points], ys, style, color=colour, label=f"{name}, task {case}", markersize=4)
        axis.set_xlabel(what)
        axis.set_ylabel("AA, validation rows")
        axis.legend(fontsize=7)
    left.set_xscale("symlog", linthresh=0.01)
    right.plot([x for x, _ in of_budgets], [100 * cell["sizes"][-1]["dead"] for _, cell in of_budgets], "-o")
    right.set_xlabel("τ₀")
    right.set_ylabel("dead dimensions, %")
    figure.savefig(FIGURE, metadata={"Date": None})


def blocks(found: Mapping[str, Any]) -> dict[str, str]:
    """Return each block of figures by its name in the page."""
    rows, epochs = found["settings"]["rows"], found["settings"]["epochs"]
    return {
        "settings": "`mean` of the embeddings and the upper layers, NF4; all-MiniLM-L6-v2 unless it says otherwise. "
        f"Five tasks: AG News, SST-2, CLINC150, SMS spam, QNLI, {rows['five tasks']:,} rows each. Ten domains of "
        f"CLINC150, 15 intents and {rows['ten domains']:,} rows each. {epochs} epochs; adapters of rank "
        f"{found['settings']['rank']}. Mean ± standard deviation over three orders and seeds 0, 1, 2 (nine runs, or as "
        "many as the last column says; `joint` does not depend on the order), in points of accuracy on test rows. "
        "`closed-form` is linear. p_b is constant. Parameters are those of a prediction, after the first task and "
        f"after the last; at 8 bits each is a byte of a download. Made by\n\n    {COMMAND}\n\nwith "
        "`--sequence 'ten domains'`, for FWT with `--alone`, and for λ and τ₀ with `--choose`.",
        **{sequence: results(found, sequence) for sequence in SEQUENCES},
        "bars": bars(found),
        "sensitivity": sensitivity(found),
    }


def written(page: str, found: Mapping[str, Any]) -> str:
    """Return the page with its figures."""
    return put(page, blocks(found))


if __name__ == "__main__":
    draw(load())
    PAGE.write_text(written(PAGE.read_text("utf-8"), load()), "utf-8")
