"""The server's work as the fleet grows: taking windows in, training beside it, an epoch; a fresh process a fleet.

`python -m benchmarks.overhead.fleet_scale DEVICES SAMPLES FOLDER THREADS` measures one fleet and prints a JSON line.
Devices are synthetic: their packets, the checks, the cache on disk and the trainer are those of a run. Flower's
transport and the devices' own forward pass are not part of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import BenchReport, Threshold
from benchmarks.overhead.synthetic import BATCH, synthetic_plan, synthetic_spec
from mobillm_flower.config import ArrivalSettings, RoundSettings, TrainerSettings
from mobillm_flower.core.backbone_info import BackboneInfo
from mobillm_flower.core.codecs import CODECS
from mobillm_flower.core.sparse import encode_sample
from mobillm_flower.core.targets import predict_square
from mobillm_flower.errors import SettingsError
from mobillm_flower.evaluation.fresh_process import run_fresh, status_bytes
from mobillm_flower.privacy.ledger import Release
from mobillm_flower.runs import events
from mobillm_flower.runs.folder import RunFolder
from mobillm_flower.server import ActivationCache, TrainerOptions
from mobillm_flower.server.plan import TrainingPlan, note_round
from mobillm_flower.server.schedule import planned_steps
from mobillm_flower.strategies.device_state import DeviceState
from mobillm_flower.wire.contract import ExtractionSpec
from mobillm_flower.wire.messages import (
    DeviceDescription,
    WindowRequest,
    open_description,
    open_request,
    pack_description,
    pack_request,
)
from mobillm_flower.wire.target_bytes import encode_targets
from mobillm_flower.wire.window import Window, open_window, pack_window

SAMPLE_BAR, DEVICE_BAR, MEMORY_BAR = 1.5, 1.5, 16_384
REFERENCE = 100
"""Devices of the fleet that larger ones are compared with."""
_WIDTHS, _BLOCKS, _CLASSES = (64, 128, 192), 4, 12
_BUFFER = 20  # devices whose windows are followed by overlapping steps
_DISTINCT = 256  # samples that are encoded a type; each device's differ from them in three bytes
_SERVER = ("ingest", "overlap", "epoch")  # what the server's time is made of; "commit" is part of "ingest"
_DECODED = 64 << 20  # budget of the decoded tier: reached by the larger fleets, as in a long run

Say = Callable[[str], None]


def bench_fleet_scale(
    *,
    devices: Sequence[int] = (10, 100, 1000, 10_000),
    samples_per_device: int = 8,
    num_threads: int = 1,
    folder: Path | None = None,
    say: Say = lambda _text: None,
) -> BenchReport:
    """Measure fleets of growing size, each in a fresh process.

    Parameters
    ----------
    devices : sequence of int
        Sizes; the figures of the largest are held against those of 100 devices, or of the smallest there is.
    samples_per_device : int
        Samples that each sends, in one window.
    folder : Path, optional
        Where the caches are put, about 1 kB a sample, deleted afterwards; by default with temporary files.

    Returns
    -------
    BenchReport
        `figures["fleets"]` has a row a size, the last is the reference again. Bars: `time_per_sample`, seconds of all
        that the server did (taking in, overlapping steps, an epoch) a sample, over those of the faster reference;
        `ingest_per_device`, the same of taking in alone, a device; `memory_per_device`, bytes of anonymous memory that
        a device more adds, decoded samples apart, whose budget is a setting.

    Raises
    ------
    SettingsError
        A size is below 1, or a device's samples do not fit one window.
    """
    sizes, window = sorted(set(devices)), RoundSettings().window
    if not sizes or sizes[0] < 1:
        raise SettingsError(f"devices={list(devices)}: give sizes of at least 1, e.g. 10,100")
    if not 1 <= samples_per_device <= window:
        raise SettingsError(f"samples-per-device={samples_per_device}: give 1 to {window}, one window of a device")
    report = BenchReport(
        "fleet-scale",
        {
            "devices": sizes,
            "samples_per_device": samples_per_device,
            "types": [f"{_BLOCKS} blocks of width {width}" for width in _WIDTHS],
            "pivot": "first+mean",
            "codec": "nf4",
            "classes": _CLASSES,
            "devices_a_buffer": _BUFFER,
            "steps_a_buffer": ArrivalSettings().steps,
            "batch": BATCH,
            "epochs": 1,
            "decoded_tier_bytes": _DECODED,
            "threads": num_threads,
        },
    )
    reference = next((size for size in sizes if size >= REFERENCE), sizes[0])
    again = [reference] if reference != sizes[-1] else []
    found = []
    for size in sizes + again:  # a shared machine changes: twice, and the faster counts
        say(f"{size:,} devices, {size * samples_per_device:,} samples")
        with tempfile.TemporaryDirectory(dir=folder) as name:
            found.append(run_fresh("benchmarks.overhead.fleet_scale", size, samples_per_device, name, num_threads))
    report.figures["fleets"] = found
    if again:
        _hold_to_bars(report, found[len(sizes) - 1], [row for row in found if row["devices"] == reference])
    else:
        report.skipped["bars"] = f"they compare a larger fleet with one of {REFERENCE} devices; measure both"
    return report


def _hold_to_bars(report: BenchReport, largest: dict[str, Any], references: Sequence[dict[str, Any]]) -> None:
    def growth(name: str) -> float:
        return float(largest[name] / min(row[name] for row in references))

    def undecoded(row: dict[str, Any]) -> float:
        return float(row["anonymous_bytes"] - row["decoded_bytes"])

    more = undecoded(largest) - statistics.mean(map(undecoded, references))
    values = {
        "time_per_sample_growth": growth("seconds_a_sample"),
        "time_per_sample_growth_cpu": growth("cpu_seconds_a_sample"),
        "ingest_per_device_growth": growth("ingest_s_a_device"),
        "ingest_per_device_growth_cpu": growth("ingest_cpu_s_a_device"),
        "memory_bytes_a_device": more / (largest["devices"] - references[0]["devices"]),
    }
    report.settings["reference_devices"] = references[0]["devices"]
    report.figures |= values
    report.bars["time_per_sample"] = Threshold(values["time_per_sample_growth"], SAMPLE_BAR, at_most=True)
    report.bars["ingest_per_device"] = Threshold(values["ingest_per_device_growth"], DEVICE_BAR, at_most=True)
    report.bars["memory_per_device"] = Threshold(values["memory_bytes_a_device"], MEMORY_BAR, at_most=True)


class _Devices:
    """Devices of three types in turns, one after another; they answer as a device does, without a model."""

    def __init__(self, plan: TrainingPlan, count: int, samples: int) -> None:
        self.plan, self.count, self.samples = plan, count, samples
        generator = torch.Generator().manual_seed(0)
        self._blobs = {name: _blobs(spec, generator) for name, spec in plan.specs.items()}
        labels = torch.arange(_CLASSES)
        base = torch.full((_CLASSES, _CLASSES), 1 / _CLASSES)
        spec = next(iter(plan.specs.values()))
        self._targets = encode_targets(labels, base, spec, plan.contract)

    def descriptions(self) -> Iterator[Any]:
        """Yield the records in which each says what it is."""
        types = list(self.plan.specs.values())
        for number in range(self.count):
            pseudonym, spec = hashlib.sha256(f"device {number}".encode()).hexdigest()[:32], types[number % len(types)]
            info = BackboneInfo(
                f"width {spec.width}", "bert", False, _BLOCKS, spec.width, "fp32", spec.backbone, "constant"
            )
            yield pack_description(DeviceDescription(pseudonym, info, self.plan.contract, self.samples, 0))

    def answer(self, request: Any, device: DeviceState) -> Any:
        """Return the records of a device's window."""
        asked, pseudonym = open_request(request), device.description.pseudonym
        samples = []
        for number in range(min(asked.window, self.samples)):
            release = hashlib.sha256(f"{pseudonym}:{number}".encode()).digest()[:16]
            blobs = self._blobs[asked.spec.backbone]
            # three bytes of codes of its own: no two samples have one digest
            blob = release[:3] + blobs[int.from_bytes(release[3:5], "big") % len(blobs)][3:]
            samples.append(Release(release, 1, blob, self._targets[release[5] % len(self._targets)]))
        window = Window(
            pseudonym=pseudonym,
            data_fingerprint=pseudonym,
            samples=samples,
            total=self.samples,
            remaining=self.samples - len(samples),
            refused=0,
            forward_seconds=0.0,
            peak_memory_bytes=0.0,
        )
        return pack_window(window, spec=asked.spec, contract=asked.contract)


def _measure(count: int, samples: int, folder: Path, num_threads: int) -> dict[str, Any]:
    """Run one fleet through the server and return what it took."""
    torch.set_num_threads(num_threads)
    plan = _plan(count, samples, num_threads)
    devices = _Devices(plan, count, samples)
    run = RunFolder(folder, run_id="bench")
    cache = ActivationCache(run.cache)
    plan.store(cache)
    trainer = plan.trainer(
        cache,
        scores=lambda side, base: predict_square(side, base, plan.scale),
        memory_bytes=_DECODED,
        checkpoint=run.checkpoint,
        on_epoch=run.append,
    )
    before, clock = status_bytes("RssAnon"), _Clock()
    fleet: list[DeviceState] = []
    for number, content in enumerate(devices.descriptions()):
        with clock("ingest"):
            description = open_description(content)
            fleet.append(DeviceState(number, description, done=len(cache.held(description.pseudonym)) >= samples))
    highest = before
    for buffer in range(1, 1 + math.ceil(count / _BUFFER)):
        for device in fleet[(buffer - 1) * _BUFFER : buffer * _BUFFER]:
            _ingest(cache, run, devices, clock, device=device, round_=buffer)
        with clock("ingest"):
            note_round(cache, buffer + 1)
        with clock("overlap"):
            while trainer.overlap_step(buffer + 1):
                pass
        highest = max(highest, status_bytes("RssAnon"))
    overlap_steps = trainer.position.steps
    with clock("epoch"):
        trainer.run_epochs()
    highest = max(highest, status_bytes("RssAnon"))
    epoch_steps, decoded = trainer.position.steps - overlap_steps, trainer.loader.used_bytes
    held, payload = len(cache), cache.num_bytes
    cache.close()
    wall, cpu = (sum(seconds[name] for name in _SERVER) for seconds in (clock.wall, clock.cpu))
    return {
        "devices": count,
        "samples": held,
        "ingest_s": clock.wall["ingest"],
        "samples_ingested_a_s": held / clock.wall["ingest"],
        "ingest_s_a_device": clock.wall["ingest"] / count,
        "ingest_cpu_s_a_device": clock.cpu["ingest"] / count,
        "commit_s_a_device": clock.wall["commit"] / count,
        "overlap_steps": overlap_steps,
        "overlap_s": clock.wall["overlap"],
        "overlap_steps_a_s": overlap_steps / clock.wall["overlap"],
        "epoch_steps": epoch_steps,
        "epoch_s": clock.wall["epoch"],
        "epoch_steps_a_s": epoch_steps / clock.wall["epoch"],
        "seconds_a_sample": wall / held,
        "seconds_a_device": wall / count,
        "cpu_seconds_a_sample": cpu / held,
        "devices_s": clock.wall["devices"],
        "disk_bytes": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        "payload_bytes": payload,
        "anonymous_bytes": highest,
        "before_bytes": before,
        "decoded_bytes": decoded,
    }


def _ingest(
    cache: ActivationCache, run: RunFolder, devices: _Devices, clock: _Clock, *, device: DeviceState, round_: int
) -> None:
    """Ask a device for its window, check and commit it, as `SideTuningStrategy` does."""
    plan, rounds, who = devices.plan, RoundSettings(), device.description
    spec, max_bytes = plan.specs[who.backbone.fingerprint], rounds.max_window_mib << 20
    with clock("ingest"):
        held = cache.held(who.pseudonym)
        request = pack_request(WindowRequest(plan.contract, spec, round_, rounds.window, max_bytes, held))
    with clock("devices"):
        reply = devices.answer(request, device)
    with clock("ingest"):
        window = open_window(
            reply, spec=spec, contract=plan.contract, max_samples=rounds.window, max_bytes=max_bytes + (1 << 20)
        )
        with clock("commit"):
            added = cache.add(window.pseudonym, window.samples, backbone=spec.backbone, round_=round_)
        run.append(device.take_window(window, new=added, round_=round_))
        run.append(events.Round(round_, added, len(cache), 0, cache.num_bytes))  # as in the metrics of each reply


class _Clock:
    """Seconds by name, on the wall's clock and on the processor's; used as `with clock(name): …`."""

    def __init__(self) -> None:
        self.wall: defaultdict[str, float] = defaultdict(float)
        self.cpu: defaultdict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall[name] += time.perf_counter() - wall
        self.cpu[name] += time.process_time() - cpu


def _blobs(spec: ExtractionSpec, generator: torch.Generator) -> list[bytes]:
    shape = (_DISTINCT, 1, len(spec.layers), spec.num_vectors, spec.width)
    return [encode_sample(sample, CODECS[spec.codec], spec.keep) for sample in torch.randn(shape, generator=generator)]


def _plan(count: int, samples: int, num_threads: int) -> TrainingPlan:
    """Return what a run of strategy `fed` would fix, for one epoch."""
    specs = [synthetic_spec(f"bench {width}", pivot="first+mean", blocks=_BLOCKS, width=width) for width in _WIDTHS]
    settings, arrivals = TrainerSettings(epochs=1, batch_size=BATCH, patience=0), ArrivalSettings(buffer=_BUFFER)
    steps = planned_steps(
        count * samples,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        validation_share=settings.validation_share,
        rounds=1 + math.ceil(count / _BUFFER),
        overlap_steps=arrivals.steps,
    )
    options = TrainerOptions.of(
        settings, overlap_steps=arrivals.steps, planned_steps=steps, seed=0, fresh_share=1 - arrivals.replay
    )
    return synthetic_plan(specs, options, num_classes=_CLASSES, num_threads=num_threads)


def _main(count: int, samples: int, folder: Path, num_threads: int) -> int:
    sys.stdout.write(json.dumps(_measure(count, samples, folder, num_threads)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(_main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])))
