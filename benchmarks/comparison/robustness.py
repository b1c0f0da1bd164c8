"""What becomes of side-tuning and FedLoRA when devices vanish, when one is slow, and when they are not alike.

Which devices vanish, and when, is drawn from the run's seed alone: such a device answers a share u ~ U(0, 1) of the
messages of training that it would be sent, and nothing any more, to the end of the run. Those that vanish at 10 % are
among those that vanish at 30 %.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any, ClassVar

import numpy as np

from mobillm_flower.config import load_settings
from mobillm_flower.errors import UnsupportedError
from mobillm_flower.evaluation.compare.cells import SIDE_TUNING, Cell, Point
from mobillm_flower.evaluation.compare.cost_to_target import Link, wall_seconds
from mobillm_flower.evaluation.compare.costs import DeviceCost, device_costs
from mobillm_flower.evaluation.compare.curves import Method
from mobillm_flower.evaluation.compare.task import ComparedTask, partition_name
from mobillm_flower.models.fine_tuned import baseline_model
from mobillm_flower.models.side_tuned import SideTunedModel
from mobillm_flower.reports.comparison import Plot, Report, Table
from mobillm_flower.tasks import load_central_data, load_local_data

METHODS = ("pae", "fed", "fed-lora")
SHARES = (0.1, 0.3, 0.5)
"""Of the devices, how many vanish."""
SLOWER = 10.0
"""How much slower the straggler computes."""
_WINDOWS = 8  # of an average device, so that it can vanish between two of them
_VANISH = "MOBILLM_BENCH_VANISH"  # read by `vanishing_app`


@dataclass(frozen=True)
class HarmedCell(Cell):
    """A run some of whose devices vanish.

    Parameters
    ----------
    answers : mapping
        By partition-id, after how many answers a device vanishes.
    """

    answers: Mapping[str, int] = field(default_factory=dict)

    app: ClassVar[Path] = Path(__file__).parent / "vanishing_app"

    def launch(self, work: Path) -> Path:
        """Run it with the devices told who vanishes."""
        os.environ[_VANISH] = json.dumps(dict(self.answers))
        try:
            return super().launch(work)
        finally:
            del os.environ[_VANISH]


@dataclass(frozen=True)
class Fleets:
    """What is harmed.

    Parameters
    ----------
    task : ComparedTask
        Its data.
    methods : sequence of Method
        Of `METHODS`; of each the first trial's settings are taken.
    seeds : sequence of int
        Seeds.
    alpha : float
        Of the Dirichlet partition.
    num_devices : int
        Devices of the fleet.
    common : mapping
        Settings of all runs.
    shares : sequence of float
        Of the devices, how many vanish.
    choices : sequence of str
        Backbones of the mixed fleet, as NAME@LAYERS, in turns.
    turns : int
        Repetitions of what a device's work costs.
    work : Path
        As with `Cell.run`.
    """

    task: ComparedTask
    methods: Sequence[Method]
    seeds: Sequence[int]
    alpha: float
    num_devices: int
    common: Mapping[str, str]
    shares: Sequence[float]
    choices: Sequence[str]
    turns: int
    work: Path

    def cell(self, method: Method, seed: int, answers: Mapping[str, int]) -> Cell:
        """Return a run."""
        settings = {**self.common, **method.settings_for(self.task), **method.trials[0]}
        if method.name in SIDE_TUNING:
            window = -(-self.task.num_train // (self.num_devices * _WINDOWS))
            settings |= {"rounds.window": str(window), "arrivals.grow-windows": "false"}
        whole = (self.task, method.name, partition_name(self.alpha), seed, self.num_devices, "test", settings)
        return HarmedCell(*whole, answers) if answers else Cell(*whole)

    def messages(self, cell: Cell) -> list[int]:
        """Return how many messages of training each device is sent if none vanishes."""
        settings = load_settings(overrides=cell.words(self.work))
        if cell.method not in SIDE_TUNING:
            return [settings.rounds.num_rounds] * self.num_devices
        return [-(-size // settings.rounds.window) for size in self.sizes(cell)]

    def sizes(self, cell: Cell) -> list[int]:
        """Return each device's number of training samples."""
        settings = load_settings(overrides=cell.words(self.work))
        return [len(load_local_data(settings, i, self.num_devices).train) for i in range(self.num_devices)]


def vanishing(messages: Sequence[int], share: float, seed: int) -> dict[str, int]:
    """Return who vanishes, by partition-id, and after how many answers.

    Parameters
    ----------
    messages : sequence of int
        How many messages of training each device is sent if none vanishes.
    share : float
        Of the devices, how many vanish; one at least.
    seed : int
        What is drawn from.
    """
    draw = np.random.default_rng([seed, len(messages)])
    order, parts = draw.permutation(len(messages)), draw.random(len(messages))
    chosen = order[: max(1, round(share * len(messages)))]
    return {str(i): int(parts[i] * messages[i]) for i in sorted(chosen.tolist())}


def bench_robustness(fleets: Fleets, link: Link, *, say: Callable[[str], None]) -> Report:
    """Harm fleets in three ways and return metrics and modelled wall times.

    Returns
    -------
    Report
        `figures["vanishing"]`: by method and share, metrics by seed, and the share of samples that passed;
        `["straggler"]`: by method, metrics and modelled seconds of the whole fleet, with a straggler, and without it;
        `["mixed"]`: by backbone, metrics in the mixed fleet and in one of its own, and why FedLoRA has none.
    """

    def run(cell: Cell) -> Point:
        point = cell.run(fleets.work)[-1]
        say(f"{cell.title}, {_harm(cell)}: {point.metric:.4f}")
        return point

    costs = device_costs(
        {method.name: fleets.cell(method, fleets.seeds[0], {}) for method in fleets.methods},
        fleets.work,
        turns=fleets.turns,
    )
    vanish: dict[str, Any] = {}
    straggler: dict[str, Any] = {}
    for method in fleets.methods:
        whole, shares = [], {share: [] for share in fleets.shares}  # type: list[Point], dict[float, list[Point]]
        behind = []
        for seed in fleets.seeds:
            unharmed = fleets.cell(method, seed, {})
            whole.append(run(unharmed))
            messages, sizes = fleets.messages(unharmed), fleets.sizes(unharmed)
            for share, points in shares.items():
                points.append(run(fleets.cell(method, seed, vanishing(messages, share, seed))))
            behind.append(run(fleets.cell(method, seed, {str(int(np.argmax(sizes))): 0})))
        vanish[method.name] = {
            f"{share:.0%}": {
                "metrics": [point.metric for point in points],
                "samples": mean(p.samples / w.samples for p, w in zip(points, whole, strict=True)),
            }
            for share, points in {0.0: whole, **shares}.items()
        }
        straggler[method.name] = _straggler(whole, behind, costs[method.name], link)
    figures = {"vanishing": vanish, "straggler": straggler, "mixed": _mixed(fleets, say)}
    settings = {
        "task": fleets.task.name,
        "num_train": fleets.task.num_train,
        "methods": [asdict(method) for method in fleets.methods],
        "seeds": list(fleets.seeds),
        "alpha": fleets.alpha,
        "num_devices": fleets.num_devices,
        "common": dict(fleets.common),
        "link": asdict(link),
        "slower": SLOWER,
    }
    report = Report("robustness", settings, figures=figures)
    report.tables = _tables(figures, fleets)
    report.plots.append(_plot(vanish, fleets))
    return report


def _harm(cell: Cell) -> str:
    return f"{len(cell.answers)} vanish" if isinstance(cell, HarmedCell) else "none vanishes"


def _straggler(whole: Sequence[Point], behind: Sequence[Point], cost: DeviceCost, link: Link) -> dict[str, Any]:
    """Model a straggler: the device with most samples, which computes slower and for which everything waits."""
    slow = [replace(point, slowest_samples=[SLOWER * count for count in point.slowest_samples]) for point in whole]
    return {
        "metrics": [point.metric for point in whole],
        "metrics_without": [point.metric for point in behind],
        "wall_seconds": mean(wall_seconds(point, cost, link) for point in whole),
        "wall_seconds_with": mean(wall_seconds(point, cost, link) for point in slow),
        "wall_seconds_without": mean(wall_seconds(point, cost, link) for point in behind),
    }


def _mixed(fleets: Fleets, say: Callable[[str], None]) -> dict[str, Any]:
    """Run side-tuning without barrier on a fleet whose devices have the choices in turns, and on one of each alone."""
    fed = next((method for method in fleets.methods if method.name == "fed"), None)
    if fed is None:
        return {}
    result: dict[str, Any] = {choice: {"mixed": [], "alone": []} for choice in fleets.choices}
    for seed in fleets.seeds:
        cell = fleets.cell(fed, seed, {})
        mixed = {"backbone.name": "by-partition", "backbone.choices": ",".join(fleets.choices), "backbone.layers": "0"}
        for choice, metric in _by_type(replace(cell, settings={**cell.settings, **mixed}), fleets).items():
            result[choice]["mixed"].append(metric)
            say(f"{choice} in a mixed fleet, seed {seed}: {metric:.4f}")
        for choice in fleets.choices:
            alone = replace(cell, settings={**cell.settings, **_backbone(choice)})
            result[choice]["alone"].append(alone.run(fleets.work)[-1].metric)
            say(f"{choice} in a fleet of its own, seed {seed}: {result[choice]['alone'][-1]:.4f}")
    return {"fed": result, "fed-lora": _refusal(fleets)}


def _by_type(cell: Cell, fleets: Fleets) -> dict[str, float]:
    """Return the metric on the whole held-out split with each backbone of a mixed fleet."""
    kept = cell.folder(fleets.work) / "types.json"
    if not kept.exists():
        path = cell.launch(fleets.work)
        test = load_central_data(load_settings(overrides=cell.words(fleets.work))).test
        result = {
            choice: SideTunedModel.from_pretrained(path / "side_network", backbone=choice).evaluate(test)
            for choice in fleets.choices
        }
        kept.write_text(json.dumps(result), "utf-8")
        cell.tidy(fleets.work)
    metrics: dict[str, float] = json.loads(kept.read_text("utf-8"))
    return metrics


def _backbone(choice: str) -> dict[str, str]:
    name, layers = choice.split("@")
    return {"backbone.name": name, "backbone.layers": layers}


def _refusal(fleets: Fleets) -> str:
    """Give the parameters that LoRA trains on one backbone to another, and return why it does not take them."""
    method = Method("fed-lora", {"rounds.num-rounds": "1"}, [{}], {})
    state: Mapping[str, Any] = {}
    for choice in fleets.choices:
        cell = fleets.cell(method, fleets.seeds[0], {})
        words = replace(cell, settings={**cell.settings, **_backbone(choice)}).words(fleets.work)
        settings = load_settings(overrides=words)
        model = baseline_model(settings, load_central_data(settings).contract)
        if state:
            try:
                model.load_trained(state)
            except UnsupportedError as error:
                return f"refused: {error}"
        state = model.trained_state()
    return "not refused"


def _tables(figures: Mapping[str, Any], fleets: Fleets) -> list[Table]:
    where = f"{fleets.task.name}, {fleets.num_devices} devices, α = {fleets.alpha:g}"
    shares = list(next(iter(figures["vanishing"].values())))
    lost = [
        [
            name,
            *(_metric(result[share]["metrics"]) for share in shares),
            *(f"{result[s]['samples']:.0%}" for s in shares[1:]),
        ]
        for name, result in figures["vanishing"].items()
    ]
    slow = [
        [
            name,
            _metric(result["metrics"]),
            *(f"{result[key]:,.0f}" for key in ("wall_seconds", "wall_seconds_with")),
            _metric(result["metrics_without"]),
            f"{result['wall_seconds_without']:,.0f}",
        ]
        for name, result in figures["straggler"].items()
    ]
    tables = [
        Table(
            f"{where}: metric when devices vanish",
            ["method", *shares, *(f"samples passed, {share}" for share in shares[1:])],
            lost,
        ),
        Table(
            f"{where}: a straggler, {SLOWER:g} times slower (times are modelled)",
            ["method", "metric", "wall s", "wall s with it", "metric without it", "wall s without it"],
            slow,
        ),
    ]
    if figures["mixed"]:
        rows = [
            [f"fed, {choice}", _metric(result["mixed"]), _metric(result["alone"])]
            for choice, result in figures["mixed"]["fed"].items()
        ]
        rows.append(["fed-lora", figures["mixed"]["fed-lora"].split(":")[0], ""])
        tables.append(Table(f"{where}: backbones in turns", ["backbone", "mixed fleet", "fleet of its own"], rows))
    return tables


def _plot(vanish: Mapping[str, Any], fleets: Fleets) -> Plot:
    shares = (0.0, *fleets.shares)
    points = [
        (100 * share, mean(one["metrics"]), name if share == shares[-1] else "")
        for name, result in vanish.items()
        for share, one in zip(shares, result.values(), strict=True)
    ]
    return Plot(f"{fleets.task.name}: metric when devices vanish", "% of the devices", "metric", points)


def _metric(values: Sequence[float]) -> str:
    return f"{mean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")
