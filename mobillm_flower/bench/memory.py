"""Peak memory of a device's window beside plain inference with the same backbone, each in a fresh process.

`python -m mobillm_flower.bench.memory FOLDER SIDE SAMPLES` prints one JSON line; FOLDER holds settings.yaml.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from mobillm_flower.backbones.backbone import Backbone
from mobillm_flower.bench.pairs import run_fresh, status_bytes
from mobillm_flower.clients.device import Device
from mobillm_flower.config import Settings, load_settings
from mobillm_flower.errors import UnsupportedError
from mobillm_flower.privacy.device_folder import DeviceFolder
from mobillm_flower.tasks import LocalData, load_local_data, render
from mobillm_flower.wire.contract import extraction_spec

# The allocator gives freed blocks of 128 KiB and more back at once: the figure is what a side needs, and not what
# the allocator happens to keep, which differs by a fifth from one process to the next.
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
_QUERY_VALUE = (("query", "value"), ("q_proj", "v_proj"), ("q_lin", "v_lin"))


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
        Folder with settings.yaml.
    side : {"ours", "plain", "hidden-states", "lora-step"}
        A device's window; the bare backbone; the same with `output_hidden_states=True`; one training step a batch of
        LoRA (r = 8, query and value) with AdamW. All on the same length-sorted batches.
    num_samples : int
        First samples of the train split.
    num_threads : int
        OpenMP's threads; 0: as it chooses.

    Raises
    ------
    RunFailed
        The process ended without a figure.
    """
    environment = _ALLOCATOR | ({"OMP_NUM_THREADS": str(num_threads)} if num_threads else {})
    found = run_fresh("mobillm_flower.bench.memory", run_path, side, num_samples, environment=environment)
    return int(found["peak_bytes"])


def _main(run_path: Path, side: str, num_samples: int) -> int:
    settings = load_settings(file=run_path / "settings.yaml")
    whole = load_local_data(settings, 0, 1)
    data = LocalData(whole.contract, whole.train.take(range(min(num_samples, len(whole.train)))), whole.test.take([]))
    with tempfile.TemporaryDirectory() as folder:
        device = Device(settings, data, DeviceFolder(folder))
        run = _SIDES[side](device, settings)
        _settle(device.backbone)
        idle = _reset_peak()
        run()
        peak = _peak() - idle
    sys.stdout.write(json.dumps({"peak_bytes": peak}) + "\n")
    return 0


def _ours(device: Device, settings: Settings) -> Callable[[], object]:
    blocks = settings.activations.num_blocks
    spec = extraction_spec(device.backbone.info, settings, num_blocks=blocks)
    return lambda: device.window(spec, held=frozenset(), size=len(device.data.train), max_bytes=1 << 40)


def _plain(device: Device, _settings: Settings) -> Callable[[], object]:
    return lambda: _forward(device.backbone, tokens(device.backbone, device.data))


def _hidden_states(device: Device, _settings: Settings) -> Callable[[], object]:
    return lambda: _forward(device.backbone, tokens(device.backbone, device.data), output_hidden_states=True)


def _lora_step(device: Device, _settings: Settings) -> Callable[[], object]:
    """Return a training step a batch: LoRA on query and value, mean over tokens, a linear head, AdamW."""
    from peft import LoraConfig, get_peft_model

    backbone, contract = device.backbone, device.data.contract
    names = {name.rsplit(".", 1)[-1] for name, _ in backbone.model.named_modules()}
    targets = next((pair for pair in _QUERY_VALUE if names.issuperset(pair)), None)
    if targets is None:
        raise UnsupportedError(f"{backbone.info.family}: looked for {_QUERY_VALUE} among its modules and found none")
    model = get_peft_model(backbone.model, LoraConfig(r=8, lora_alpha=16, target_modules=list(targets)))
    head = nn.Linear(backbone.info.width, contract.num_outputs, device=backbone.device)
    learned = [p for p in [*model.parameters(), *head.parameters()] if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-4)

    def run() -> None:
        model.train()
        for inputs in backbone.padded_batches(tokens(backbone, device.data)):
            mask = inputs["attention_mask"].unsqueeze(2)
            hidden = model(**inputs).last_hidden_state
            logits = head((hidden * mask).sum(1) / mask.sum(1))
            classes = torch.zeros(len(logits), dtype=torch.long, device=backbone.device)  # which ones costs no memory
            loss = nn.functional.cross_entropy(logits, classes)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    return run


_SIDES: dict[str, Callable[[Device, Settings], Callable[[], object]]] = {
    "ours": _ours,
    "plain": _plain,
    "hidden-states": _hidden_states,
    "lora-step": _lora_step,
}


def tokens(backbone: Backbone, data: LocalData) -> list[dict[str, list[int]]]:
    """Return a device's training texts as tokens."""
    texts, pairs = render(data.train, data.contract)
    return backbone.tokenize(texts, pairs, data.contract.max_length)


@torch.inference_mode()
def _forward(backbone: Backbone, samples: list[dict[str, list[int]]], **options: bool) -> None:
    """Run the bare backbone over samples in the batches that `extract` makes."""
    for inputs in backbone.padded_batches(samples):
        backbone.model(**inputs, **options)


def _settle(backbone: Backbone) -> None:
    """Bring the process to rest with the model loaded: weights and code resident, freed memory given back."""
    for parameter in backbone.model.parameters():
        parameter.detach().sum()
    _forward(backbone, backbone.tokenize(["one"], None, 4))
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc
    if trim is not None:
        trim(0)


def _reset_peak() -> int:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    Path("/proc/self/clear_refs").write_text("5")
    return int(psutil.Process().memory_info().rss)


def _peak() -> int:
    return int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else status_bytes("VmHWM")


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
