"""What a device's work costs, peak memory and seconds, beside plain inference and training: each in a fresh process.

`python -m mobillm_flower.evaluation.device_cost FOLDER SIDE SAMPLES` prints a JSON line; FOLDER holds a run's settings.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch

from mobillm_flower.backbones import Backbone, plan_memory
from mobillm_flower.clients.device import Device
from mobillm_flower.clients.releases import make_window
from mobillm_flower.clients.summing import make_sums
from mobillm_flower.config import Settings, load_settings
from mobillm_flower.config.compatibility import ANALYTIC
from mobillm_flower.core.zeroth_order import move, projected_gradient
from mobillm_flower.evaluation.fresh_process import run_fresh, status_bytes
from mobillm_flower.models.fine_tuned import MAX_NORM, fine_tuned
from mobillm_flower.models.split import SplitModel, token_rows
from mobillm_flower.privacy.device_folder import DeviceFolder
from mobillm_flower.runs.folder import RunFolder
from mobillm_flower.tasks import LocalData, load_local_data, tokenize
from mobillm_flower.tasks.extraction import extraction_spec, fitted_transform
from mobillm_flower.tasks.sums import room_for, sums_spec
from mobillm_flower.wire.contract import ExtractionSpec

# The allocator gives freed blocks of 128 KiB and more back at once: the figure is what a side needs, and not what
# the allocator happens to keep, which differs by a fifth from one process to the next.
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
Side = Callable[[Device, Settings], Callable[[], object]]


def measure_memory(run_path: Path, *, num_samples: int = 64) -> dict[str, Any] | None:
    """Return peak bytes above the loaded, idle model for a device's window and for plain inference.

    Plain inference is the bare backbone without LM head on the same length-sorted batches. None where the system
    cannot reset the peak (not Linux).
    """
    if not can_measure():
        return None
    peaks = {side: peak_bytes(run_path, side, num_samples=num_samples) for side in ("ours", "plain")}
    return {
        "ours_bytes": peaks["ours"],
        "plain_bytes": peaks["plain"],
        "ratio": peaks["ours"] / peaks["plain"],
        "num_samples": num_samples,
    }


def can_measure() -> bool:
    """Whether the system can reset the peak of a process (Linux)."""
    return Path("/proc/self/clear_refs").exists()


def peak_bytes(run_path: Path, side: str, *, num_samples: int, num_threads: int = 0) -> int:
    """Return one side's peak bytes above the loaded, idle model, in a fresh process.

    Peak resident set (VmHWM), or on CUDA torch's peak. Before, every weight is read and one sample runs forward, so
    that neither the model file's pages nor the libraries' code count as the side's.

    Parameters
    ----------
    run_path : Path
        Folder with a run's settings.
    side : str
        A name in `SIDES`: "ours", a device's window, or its sums; "streamed", the same with layers on disk, which the
        loaded model then lacks; "plain", the bare backbone; "hidden-states", the same with
        `output_hidden_states=True`; "lora", "lora-checkpointed" (activations computed anew in the backward pass),
        "bitfit" and "full", a training step a batch with AdamW; "kseed", two forward passes a batch (FedKSeed);
        "split", a step of the layers up to `peer.cut` (SplitFed). All on the same length-sorted batches of
        `backbone.token-budget`.
    num_samples : int
        First samples of the train split.
    num_threads : int
        OpenMP's threads; 0: as it chooses.

    Raises
    ------
    RunFailed
        The process ended without a figure.
    """
    return int(_measured(run_path, side, num_samples, num_threads, _ALLOCATOR)["peak_bytes"])


def work_seconds(run_path: Path, side: str, *, num_samples: int, num_threads: int = 0) -> float:
    """Return the seconds that one side's work takes, the model being loaded, in a fresh process; see `peak_bytes`.

    On a CPU the processor's seconds of all threads, which other processes disturb less than the wall's.
    """
    return float(_measured(run_path, side, num_samples, num_threads, {})["seconds"])


def _measured(
    run_path: Path, side: str, num_samples: int, num_threads: int, environment: dict[str, str]
) -> dict[str, Any]:
    threads = {"OMP_NUM_THREADS": str(num_threads)} if num_threads else {}
    return run_fresh(
        "mobillm_flower.evaluation.device_cost", run_path, side, num_samples, environment=environment | threads
    )


def _main(run_path: Path, side: str, num_samples: int) -> int:
    settings = load_settings(file=RunFolder(run_path).settings)
    if side == "streamed":
        settings.backbone.memory_budget_mib = _below_whole(settings)
    whole = load_local_data(settings, 0, 1)
    data = LocalData(whole.contract, whole.train.take(range(min(num_samples, len(whole.train)))), whole.test.take([]))
    with tempfile.TemporaryDirectory() as folder:
        device = Device(settings, data, DeviceFolder(folder))
        run = SIDES[side](device, settings)
        _settle(device.backbone)
        clock = time.process_time if device.backbone.device.type == "cpu" else time.perf_counter
        idle, started = _reset_peak(), clock()
        run()
        seconds = clock() - started
        peak = _peak() - idle
    sys.stdout.write(json.dumps({"peak_bytes": peak, "seconds": seconds}) + "\n")
    return 0


def _spec(device: Device, settings: Settings) -> ExtractionSpec:
    blocks, outputs = settings.activations.num_blocks, device.data.contract.num_outputs
    return extraction_spec(device.backbone.info, settings, num_blocks=blocks, num_outputs=outputs)


def fit_on_public_text(device: Device, settings: Settings) -> None:
    """Fit what a device fits on public text before its first upload, if it does."""
    spec, length = _spec(device, settings), device.data.contract.max_length
    fitted_transform(spec, device.backbone, max_length=length, file=settings.activations.public_text)


def own_work(device: Device, settings: Settings) -> Callable[[], object]:
    """Return what makes all that a device of side-tuning uploads: a window of its samples, or their sums."""
    spec, rows = _spec(device, settings), len(device.data.train)
    if settings.strategy == ANALYTIC:
        sums = sums_spec(settings, device.data.contract, spec, capacity=room_for(rows))
        return lambda: make_sums(device, spec, sums, held=frozenset())
    return lambda: make_window(device, spec, held=frozenset(), size=rows, max_bytes=1 << 40)


def _below_whole(settings: Settings) -> int:
    """Return a memory budget, in MiB, that the backbone as a whole does not fit into."""
    named = settings.backbone
    plan = plan_memory(
        named.name,
        budget_mib=1 << 20,
        layers=named.layers,
        precision=named.precision.value,
        token_budget=named.token_budget,
        max_length=settings.task.max_length,
    )
    return (plan.whole >> 20) - 16


def _plain(device: Device, _settings: Settings) -> Callable[[], object]:
    return lambda: _forward(device.backbone, tokens(device.backbone, device.data))


def _hidden_states(device: Device, _settings: Settings) -> Callable[[], object]:
    return lambda: _forward(device.backbone, tokens(device.backbone, device.data), output_hidden_states=True)


def _training(method: str, *, checkpointed: bool = False) -> Side:
    """Return a side that takes a training step a batch."""

    def side(device: Device, settings: Settings) -> Callable[[], object]:
        backbone = device.backbone
        if checkpointed:
            backbone.model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        model = fine_tuned(backbone, device.data.contract, method=method, rank=settings.peer.rank)
        optimizer = model.optimizer(settings.peer.learning_rate)

        def run() -> None:
            model.train()
            for inputs, labels in model.by_length(device.data.train):
                model.step(inputs, labels, optimizer)

        return run

    return side


def _kseed(device: Device, settings: Settings) -> Callable[[], object]:
    """Return two forward passes a batch, along a random direction of all layers' weights."""
    backbone = device.backbone
    model = fine_tuned(backbone, device.data.contract, method="full")
    parameters = list(model.trained().values())

    def run() -> None:
        for number, (inputs, labels) in enumerate(model.by_length(device.data.train)):
            with torch.no_grad():
                result = projected_gradient(
                    partial(model.batch_loss, inputs, labels), parameters, number, epsilon=settings.peer.perturbation
                )
            move(parameters, number, -settings.peer.learning_rate * result)

    return run


def _split(device: Device, settings: Settings) -> Callable[[], object]:
    """Return a step a batch of the layers up to the cut, on gradients at the cut: which ones costs nothing."""
    backbone = device.backbone
    model = fine_tuned(backbone, device.data.contract, rank=settings.peer.rank)
    split = SplitModel(model, settings.peer.cut)
    optimizer = torch.optim.AdamW(split.device_part.values(), lr=settings.peer.learning_rate, weight_decay=0.0)

    def run() -> None:
        for number, inputs in enumerate(backbone.padded_batches(tokens(backbone, device.data))):
            rows = token_rows(split.below(inputs, seed=number), inputs["attention_mask"])
            optimizer.zero_grad(set_to_none=True)
            rows.backward(torch.ones_like(rows))  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(split.device_part.values(), MAX_NORM)
            optimizer.step()

    return run


SIDES: Mapping[str, Side] = {
    "ours": own_work,
    "streamed": own_work,
    "plain": _plain,
    "hidden-states": _hidden_states,
    "lora": _training("lora"),
    "lora-checkpointed": _training("lora", checkpointed=True),
    "bitfit": _training("bitfit"),
    "full": _training("full"),
    "kseed": _kseed,
    "split": _split,
}
"""Work by name: of a device and its settings it makes what is measured."""


def tokens(backbone: Backbone, data: LocalData) -> list[dict[str, list[int]]]:
    """Return a device's training texts as tokens."""
    return tokenize(backbone, data.train, data.contract)


@torch.inference_mode()
def _forward(backbone: Backbone, samples: list[dict[str, list[int]]], **options: bool) -> None:
    """Run the bare backbone over samples in the batches that `extract` makes."""
    for inputs in backbone.padded_batches(samples):
        backbone.model(**inputs, **options)


def _settle(backbone: Backbone) -> None:
    """Bring the process to rest with the model loaded: weights and code resident, freed memory given back."""
    for parameter in backbone.model.parameters():
        parameter.detach().sum()
    backbone.extract(backbone.tokenize(["one"], None, 4), layers=[backbone.info.depth], pivot="mean")
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc
    if trim is not None:
        trim(0)


def _reset_peak() -> int:
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    Path("/proc/self/clear_refs").write_text("5")
    return int(psutil.Process().memory_info().rss)


def _peak() -> int:
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return int(torch.cuda.max_memory_allocated())
    return status_bytes("VmHWM")


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
