"""Draw accuracy against samples held, from `benchmarks/results/samples_held.json`."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blocks import put, table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "samples_held.json"
PAGE = ROOT / "docs" / "explanation" / "method.md"
FIGURE = ROOT / "docs" / "images" / "samples-held.svg"


def load() -> dict[str, Any]:
    """Return the study's JSON."""
    found: dict[str, Any] = json.loads(RESULTS.read_text("utf-8"))
    return found


def means(of_way: Mapping[str, list[float]]) -> list[float]:
    """Return the mean over seeds after each count of samples."""
    return [statistics.mean(values) for values in zip(*of_way.values(), strict=True)]


def blocks(found: Mapping[str, Any]) -> dict[str, str]:
    """Return the tables by their names in the page, one a data set."""
    made = {}
    for name, held in found["held"].items():
        rows = []
        for partition in ("IID", "α = 0.1"):
            for way, of_way in found["curves"][f"{name}, {partition}"].items():
                rows.append([f"{way}, {partition}", *(f"{value:.3f}" for value in means(of_way))])
        made[f"held {name}"] = table([name, *(f"{count:,}" for count in held)], rows)
    return made


def draw(found: Mapping[str, Any]) -> None:
    """Draw the means with the range over seeds."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "samples held", "svg.fonttype": "none"}
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(found["held"]), figsize=(9, 3.4), layout="constrained")
    for axis, (name, held) in zip(axes, found["held"].items(), strict=True):
        for partition, style in (("IID", "-o"), ("α = 0.1", "--o")):
            for way, colour in (("closed form", "tab:blue"), ("by steps", "tab:orange")):
                of_way = found["curves"][f"{name}, {partition}"][way]
                seeds = list(zip(*of_way.values(), strict=True))
                axis.plot(held, means(of_way), style, color=colour, label=f"{way}, {partition}", markersize=4)
                axis.fill_between(held, *zip(*((min(s), max(s)) for s in seeds), strict=True), color=colour, alpha=0.12)
        axis.set_title(name)
        axis.set_xlabel("samples held")
        axis.set_ylabel("accuracy, test rows")
        axis.legend(fontsize=7)
    figure.savefig(FIGURE, metadata={"Date": None})


def written(page: str, found: Mapping[str, Any]) -> str:
    """Return the page with its tables."""
    return put(page, blocks(found))


if __name__ == "__main__":
    draw(load())
    PAGE.write_text(written(PAGE.read_text("utf-8"), load()), "utf-8")
