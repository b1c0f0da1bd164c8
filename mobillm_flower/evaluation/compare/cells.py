"""One cell of a comparison: a method on a task, partition and seed, run in Flower's simulation.

A cell's folder below the work folder is named by the hash of its settings, so that a benchmark that was interrupted
goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from torch.utils.flop_counter import FlopCounterMode

from mobillm_flower.clients.device import Device
from mobillm_flower.config import Settings, load_settings
from mobillm_flower.config.compatibility import ANALYTIC
from mobillm_flower.core.side_networks.upper_layers import NAME as UPPER_LAYERS
from mobillm_flower.evaluation.compare.task import ComparedTask, partition_words
from mobillm_flower.evaluation.device_cost import fit_on_public_text, own_work
from mobillm_flower.launch import read_app, run_app
from mobillm_flower.models.fine_tuned import FineTunedModel, baseline_model
from mobillm_flower.models.side_tuned import SideTunedModel
from mobillm_flower.privacy.device_folder import DeviceFolder
from mobillm_flower.runs.device_events import DeviceSummary, Window
from mobillm_flower.runs.events import Ingested, ServerWork, Trained, Work
from mobillm_flower.runs.folder import RunFolder
from mobillm_flower.runs.record import read_run
from mobillm_flower.tasks import load_central_data, load_local_data
from mobillm_flower.tasks.metrics import SMALLER_IS_BETTER

APP = Path(__file__).parent / "app"
CHECKED_ROUNDS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15)
"""Rounds after which a peer's model is measured, beside its last and every fifth."""
ADDITIVE = "additive"
"""Side-tuning as `pae`, with a side network of adapters that the server trains by steps."""
SIDE_TUNING = ("pae", ADDITIVE, "mobillm", "fed", ANALYTIC, UPPER_LAYERS)
"""Methods that are named as their presets, and `ADDITIVE`."""
_PATIENCE_S = "7200"  # what a method reaches must not depend on how busy the machine is
CENTRAL_LORA = "central-lora"
"""LoRA on all rows in one place: no Flower, no device."""


@dataclass(frozen=True)
class Point:
    """Where a method stands after so much work.

    Parameters
    ----------
    metric : float
        On the whole held-out split; larger is better: of language modelling it is negated.
    rounds, passes : int, float
        Rounds, and how often a device's samples passed, on average.
    samples, flops, bytes_up, bytes_down : float
        Of a device, on average, since the start: samples that passed, floating-point operations, bytes. Evaluation is
        left out; the last download, of what is predicted with, is in.
    slowest_samples, slowest_bytes : sequence
        Of each round, the most samples of a device, and the most bytes (up, down): what a barrier waits for.
    server_seconds : float
        The server's training.
    """

    metric: float
    rounds: int
    passes: float
    samples: float = 0.0
    flops: float = 0.0
    bytes_up: float = 0.0
    bytes_down: float = 0.0
    slowest_samples: Sequence[float] = ()
    slowest_bytes: Sequence[Sequence[float]] = ()
    server_seconds: float = 0.0


@dataclass(frozen=True)
class Cell:
    """One run of the comparison.

    Parameters
    ----------
    task : ComparedTask
        Its data.
    method : str
        A strategy, or `central-lora`.
    partition : str
        "iid", "natural", or "alpha=0.1".
    seed : int
        Of weights, order, dropout and partition.
    num_devices : int
        Devices of the fleet.
    held_out : {"validation", "test"}
        What is measured on.
    settings : mapping
        The method's own.
    """

    task: ComparedTask
    method: str
    partition: str
    seed: int
    num_devices: int
    held_out: str
    settings: Mapping[str, str] = field(default_factory=dict)

    app: ClassVar[Path] = APP
    """The Flower app that is run."""

    @property
    def title(self) -> str:
        """What it is, for people."""
        changed = ", ".join(f"{key}={value}" for key, value in self.settings.items())
        return f"{self.task.name}, {self.method}, {self.partition}, seed {self.seed}, {self.held_out} ({changed})"

    def key(self) -> str:
        """Return the hash of everything that shapes the cell."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def words(self, work: Path) -> list[str]:
        """Return its settings as ``key=value`` words."""
        peer = {"strategy": "fed-lora" if self.method == CENTRAL_LORA else self.method, "peer.keep-rounds": "true"}
        preset = {"preset": "pae" if self.method == ADDITIVE else self.method}
        words = {
            "rounds.timeout-s": _PATIENCE_S,
            **self.task.settings,
            "data.source": str(self.task.write(work, held_out=self.held_out).resolve()),
            "data.num-devices": str(self.num_devices),
            **partition_words(self.partition),
            "data.seed": str(self.seed),
            "run.seed": str(self.seed),
            **(preset if self.method in SIDE_TUNING else peer),
            **self.settings,
        }
        return [f"{key}={value}" for key, value in words.items()]

    def run(self, work: Path) -> list[Point]:
        """Run it, unless its points are there, and return them."""
        kept = self.folder(work) / "points.json"
        if kept.exists():
            return [Point(**point) for point in json.loads(kept.read_text("utf-8"))["points"]]
        settings = load_settings(overrides=self.words(work))
        if self.method == CENTRAL_LORA:
            self.folder(work).mkdir(parents=True, exist_ok=True)
            points = _central(settings)
        else:
            path = self.launch(work)
            points = _side_tuned(path, settings) if self.method in SIDE_TUNING else _peer(path, settings)
        kept.write_text(json.dumps({"cell": asdict(self), "points": [asdict(point) for point in points]}), "utf-8")
        self.tidy(work)
        return points

    def folder(self, work: Path) -> Path:
        """Return where its run is kept."""
        return work / "cells" / self.key()

    def launch(self, work: Path) -> Path:
        """Run it in Flower's simulation, in an empty folder of its own, and return the folder."""
        path = self.folder(work)
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        run_app(read_app(self.app), self.words(work), run_path=path, on_event=lambda _event: None)
        return path

    def tidy(self, work: Path) -> None:
        """Delete what is large of a run whose points are known."""
        RunFolder(self.folder(work)).delete_bulk()


def _central(settings: Settings) -> list[Point]:
    """Train LoRA on all rows, a point an epoch."""
    data = load_central_data(settings)
    model, peer = baseline_model(settings, data.contract), settings.peer
    points = []
    for epoch in range(settings.rounds.num_rounds):
        work = model.fit(data.train, epochs=1, batch_size=peer.batch_size, learning_rate=peer.learning_rate, seed=epoch)
        metric = larger_is_better(data.contract.metric, model.evaluate(data.test))
        points.append(Point(metric, epoch + 1, epoch + 1.0, server_seconds=work.seconds))
    return points


def _peer(path: Path, settings: Settings) -> list[Point]:
    """Return a point a round, each round's kept weights measured on the whole held-out split."""
    data = load_central_data(settings)
    model = baseline_model(settings, data.contract)
    run = read_run(path)
    rounds: dict[int, list[Work]] = defaultdict(list)
    for work in run.all(Work):
        rounds[work.round].append(work)
    at_the_server = {work.round: work.seconds for work in run.all(ServerWork)}
    points = []
    samples = flops = up = down = server = 0.0
    slowest_samples, slowest_bytes = [], []
    devices, rows = settings.data.num_devices, len(data.train)
    for number, works in sorted(rounds.items()):
        samples += sum(work.samples for work in works) / devices
        flops += sum(work.flops for work in works) / devices
        up += sum(work.bytes_up for work in works) / devices
        down += sum(work.bytes_down for work in works) / devices
        server += sum(work.server_seconds for work in works) + at_the_server.get(number, 0.0)
        slowest_samples.append(max(work.samples for work in works))
        slowest_bytes.append([max(work.bytes_up for work in works), max(work.bytes_down for work in works)])
        if number not in CHECKED_ROUNDS and number % 5 and number != max(rounds):
            continue
        state = torch.load(run.folder.round_weights(number))
        _load(model, state, settings)
        last = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
        points.append(
            Point(
                larger_is_better(data.contract.metric, model.evaluate(data.test)),
                number,
                samples * devices / rows,
                samples,
                flops,
                up,
                down + last,
                list(slowest_samples),
                [*slowest_bytes, [0, last]],
                server,
            )
        )
    return points


def larger_is_better(metric: str, value: float) -> float:
    """Return a metric's value such that larger is better, or such a value as the metric has it."""
    return -value if metric in SMALLER_IS_BETTER else value


def _load(model: FineTunedModel, state: Mapping[str, torch.Tensor], settings: Settings) -> None:
    if settings.strategy == "fed-kseed":
        model.replay(dict(enumerate(state["sums"].tolist())), learning_rate=settings.peer.learning_rate)
    else:
        model.load_trained(state)


def _side_tuned(path: Path, settings: Settings) -> list[Point]:
    """Return the one point of a run of side-tuning: each sample has passed once, the side network went down once."""
    data = load_central_data(settings)
    run = read_run(path)
    model = SideTunedModel.from_pretrained(run.folder.side_network)
    windows = run.all(Window)
    devices = settings.data.num_devices
    of_devices: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for event in windows:
        of_devices[event.device][0] += event.new
        of_devices[event.device][1] += event.bytes
    samples, up = (sum(values) / devices for values in zip(*of_devices.values(), strict=True))
    down = sum(device.bytes_down for device in run.all(DeviceSummary)) / devices  # the side network once
    trained, ingested = run.last(Trained), run.last(Ingested)
    assert trained is not None
    assert ingested is not None
    point = Point(
        metric=larger_is_better(data.contract.metric, model.evaluate(data.test)),
        rounds=max(event.round for event in windows),
        passes=samples * devices / len(data.train),
        samples=samples,
        flops=forward_flops(settings) / devices,
        bytes_up=up,
        bytes_down=down,
        slowest_samples=[max(count for count, _ in of_devices.values())],
        slowest_bytes=[[max(size for _, size in of_devices.values()), down]],
        server_seconds=trained.time - ingested.time,
    )
    return [point]


def forward_flops(settings: Settings) -> int:
    """Return the floating-point operations of all that devices upload, each in a folder that is thrown away.

    What is fitted on public text is fitted once in this process, and counted for each device.
    """
    total = num_devices = of_public_text = 0
    for number in range(settings.data.num_devices):
        data = load_local_data(settings, number, settings.data.num_devices)
        if not len(data.train):
            continue
        with tempfile.TemporaryDirectory() as folder:
            device = Device(settings, data, DeviceFolder(folder))
            with FlopCounterMode(display=False) as counter:
                fit_on_public_text(device, settings)
            of_public_text += int(counter.get_total_flops())  # 0 from the second device on
            with FlopCounterMode(display=False) as counter:
                own_work(device, settings)()
            total, num_devices = total + int(counter.get_total_flops()), num_devices + 1
    return total + num_devices * of_public_text
