"""A GPU beside the CPU, and beside what it could do: `make bench-gpu`, in under eight minutes.

Parts in order of worth, each in a process of its own with a time limit; the JSON is written after each, so that a run
that is cut off still counts. Nothing is downloaded: models have real shapes and random weights, texts are the package's
own. What must be carried to a machine without network: this repository, and the packages `flwr`, `omegaconf`,
`bitsandbytes` and `datasets` where they are missing; `peft` for LoRA, `pytest`, `pytest-timeout` and `hypothesis` for
the tests, `flwr[simulation]` for the simulation. A part whose package is missing is skipped, with the reason.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.measuring import BenchReport
from benchmarks.overhead.gpu_clock import FULL, TINY, Scale, clocked, device, in_turns, peak
from benchmarks.overhead.random_models import random_opt
from benchmarks.overhead.synthetic import synthetic_spec
from benchmarks.overhead.trainer import fill_cache, train_epoch, training_plan
from mobillm_flower.backbones import Backbone, load_backbone
from mobillm_flower.backbones.cut import Cut, UpperLayers
from mobillm_flower.core.language import cross_entropy
from mobillm_flower.core.side_networks import ActivationBatch, AlignmentSpec, SideNetworkConfig
from mobillm_flower.core.side_networks.ridge import Ridge
from mobillm_flower.core.targets import predict_square
from mobillm_flower.errors import RunFailed
from mobillm_flower.evaluation.fresh_process import run_fresh
from mobillm_flower.server import ActivationCache

FORWARD_BAR = 1.05
_ROOT = Path(__file__).parents[2]
_BESIDE = {"PYTHONPATH": str(_ROOT)}
Figures = dict[str, Any]


# ---- the parts ----------------------------------------------------------------------------------------------------
def correctness(_scale: Scale) -> Figures:
    """Run the tests that compare the GPU with the CPU, but the simulation."""
    return _tests("not simulation")


def simulation(_scale: Scale) -> Figures:
    """Run the test of a simulation whose devices share a GPU."""
    return _tests("simulation")


def forward(scale: Scale) -> Figures:
    """A device's forward pass with pivots beside the bare truncated model, and a LoRA step, in time and peak memory."""
    backbone = _backbone(scale)
    samples = [{"input_ids": [4 + (i * 7 + j) % 200 for j in range(scale.length)]} for i in range(scale.batch)]
    depth = backbone.info.depth
    layers = tuple(sorted({max(1, depth * part // 4) for part in (1, 2, 3, 4)}))
    inputs = backbone.pad(samples)

    def bare() -> None:
        with torch.inference_mode():
            backbone.model(**inputs)

    sides: dict[str, Callable[[], object]] = {
        "ours": lambda: backbone.extract(samples, layers=layers, pivot="mean"),
        "bare": bare,
    }
    figures: Figures = {"shape": scale.shape, "batch": scale.batch, "length": scale.length, "dtype": str(scale.dtype)}
    figures["peak_bytes"] = {name: peak(work) for name, work in sides.items()}
    figures["seconds"] = in_turns(sides, scale.repeats)
    figures["forward_ratio"] = median(figures["seconds"]["ours"]) / median(figures["seconds"]["bare"])
    figures["forward_ratio_bar"] = FORWARD_BAR
    if importlib.util.find_spec("peft") is None:
        return figures | {"lora": "skipped: peft is not installed"}
    step = _lora_step(backbone, inputs)
    figures["peak_bytes"]["lora"] = peak(step)
    figures["seconds"]["lora"] = in_turns({"lora": step}, scale.repeats)["lora"]
    return figures


def server(scale: Scale) -> Figures:
    """The server's work: an epoch of the additive network, a step of upper layers, a head's losses of tokens."""
    figures: Figures = {}
    figures["additive_epoch_s"] = _epoch(scale)
    figures |= _upper_layers(scale) | _token_losses(scale)
    return figures


def closed_form(scale: Scale) -> Figures:
    """The closed form from sums on the GPU, and on the CPU."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(scale.rows, scale.width, generator=generator)
    targets = functional.one_hot(torch.randint(20, (scale.rows,), generator=generator), 20).float() - 0.05

    def solve(place: torch.device) -> Tensor:
        ridge = Ridge(scale.width, 20)
        for start in range(0, scale.rows, 4096):
            part = slice(start, start + 4096)
            size = len(rows[part])
            ridge.add(rows[part].to(place), targets[part].to(place), torch.ones(size, device=place))
        return ridge.solve().weight.cpu()

    figures: Figures = {"rows": scale.rows, "width": scale.width}
    found = solve(device())
    figures["seconds"] = clocked(lambda: solve(device()))
    figures["peak_bytes"] = peak(lambda: solve(device()))
    began = time.perf_counter()
    reference = solve(torch.device("cpu"))
    figures["cpu_seconds"] = time.perf_counter() - began
    figures["largest_difference"] = float((found - reference).abs().max())
    return figures


def roofline(scale: Scale) -> Figures:
    """Shares of what the card can do, compilation and CUDA graphs, and the attention that transformers chose."""
    backbone = _backbone(scale)
    place, dtype, size = device(), scale.dtype, 4096 if scale is FULL else 64
    left = torch.randn(size, size, device=place, dtype=dtype)
    source = torch.empty((1 << 30) if scale is FULL else (1 << 16), dtype=torch.uint8, device=place)
    target = torch.empty_like(source)
    ids = torch.randint(4, 200, (scale.batch, scale.length), device=place)
    model = backbone.model
    compiled = torch.compile(model, mode="reduce-overhead") if torch.cuda.is_available() else model

    def run(module: Any) -> Callable[[], object]:
        def work() -> None:
            with torch.inference_mode():
                module(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)

        return work

    parameters = sum(p.numel() for name, p in model.named_parameters() if "embed" not in name)
    flops = 2 * parameters * ids.numel()
    sides = {
        "product": lambda: left @ left,
        "copy": lambda: target.copy_(source),
        "forward": run(model),
        "compiled": run(compiled),
    }
    seconds = in_turns(sides, scale.repeats)
    at = {name: median(values) for name, values in seconds.items()}
    peak_flops, bandwidth = 2 * size**3 / at["product"], 2 * source.numel() / at["copy"]
    bound = max(flops / peak_flops, 2 * parameters / bandwidth)
    return {
        "seconds": seconds,
        "tflop_s": peak_flops / 1e12,
        "gb_s": bandwidth / 1e9,
        "forward_share_of_bound": bound / at["forward"],
        "compiled_share_of_bound": bound / at["compiled"],
        "attention": str(getattr(model.config, "_attn_implementation", "")),
    }


def copies(scale: Scale) -> Figures:
    """Whether batches that are copied from pinned memory really overlap with what is computed."""
    if not torch.cuda.is_available():
        return {"skipped": "there is no GPU to copy to"}
    from mobillm_flower.core.placement import moved

    place, weight = device(), torch.randn(4096, 4096, device="cuda")
    host = [torch.randn(4096, 4096) for _ in range(8)]

    def run(copy: bool, compute: bool) -> Callable[[], object]:
        def work() -> None:
            stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            for rows in host:
                if copy:
                    with torch.cuda.stream(stream):
                        moved(rows, place)
                if compute:
                    weight @ weight
            stream.synchronize()

        return work

    sides = {"copy": run(True, False), "compute": run(False, True), "both": run(True, True)}
    seconds = in_turns(sides, scale.repeats)
    at = {name: median(values) for name, values in seconds.items()}
    hidden = (at["copy"] + at["compute"] - at["both"]) / min(at["copy"], at["compute"])
    return {"seconds": seconds, "share_of_the_shorter_that_is_hidden": hidden}


PARTS: Mapping[str, tuple[Callable[[Scale], Figures], int]] = {
    "correctness": (correctness, 110),
    "forward": (forward, 80),
    "closed-form": (closed_form, 80),
    "server": (server, 50),
    "roofline": (roofline, 60),
    "simulation": (simulation, 60),
    "copies": (copies, 20),
}
"""Parts by name, with the seconds that each may take: 460 in all, of which a GPU needs few."""


# ---- what the parts are made of -----------------------------------------------------------------------------------
def _tests(which: str) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.xml"
        words = [sys.executable, "-m", "pytest", "-m", "gpu", "-k", which, "tests/gpu", f"--junitxml={results}"]
        ended = subprocess.run(words, capture_output=True, text=True, check=False, cwd=_ROOT)
        if not results.exists():
            return {"skipped": (ended.stdout + ended.stderr)[-1000:]}
        suite = next(ET.parse(results).iter("testsuite"))
        failed = [case.get("name") for case in suite.iter("testcase") if case.find("failure") is not None]
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    return counts | {"failed": failed} | ({"output": ended.stdout[-6000:]} if failed else {})


def _backbone(scale: Scale) -> Backbone:
    precision = "bf16" if scale.dtype == torch.bfloat16 else "fp32"
    with tempfile.TemporaryDirectory() as folder:
        path = random_opt(Path(folder), scale.shape, dtype=scale.dtype)
        return load_backbone(
            str(path),
            layers=scale.layers,
            precision=precision,
            device=str(device()),
            token_budget=scale.batch * scale.length,
        )


def _lora_step(backbone: Backbone, inputs: Mapping[str, Tensor]) -> Callable[[], object]:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=8, target_modules=["q_proj", "v_proj"])
    model: Any = get_peft_model(backbone.model, config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step() -> None:
        model(**inputs).last_hidden_state.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _epoch(scale: Scale) -> list[float]:
    spec = synthetic_spec("gpu", pivot="mean", blocks=6, width=384)
    plan = training_plan(spec, 12, scale.samples, epochs=scale.repeats + 1, num_threads=1)
    with tempfile.TemporaryDirectory() as folder:
        cache = ActivationCache(Path(folder) / "cache.sqlite")
        fill_cache(cache, spec, plan.contract, scale.samples)
        trainer = plan.trainer(
            cache, scores=lambda side, base: predict_square(side, base, 1.0), memory_bytes=1 << 40, device=device()
        )
        seconds = in_turns({"epoch": lambda: train_epoch(trainer)}, scale.repeats)["epoch"]
        cache.close()
    return seconds


def _upper_layers(scale: Scale) -> Figures:
    backbone = _backbone(scale)
    depth, width = backbone.info.depth, backbone.info.width
    cut = max(1, depth // 2) if depth > 1 else 0
    if not cut:
        return {"upper_layers_step_s": "skipped: one layer has none above it"}
    types = {backbone.info.fingerprint: AlignmentSpec(width, 1, depth - cut)}
    network: Any = SideNetworkConfig.of(types, name="upper-layers", num_blocks=1, bottleneck=64, num_outputs=2).build()
    network.to(device())
    network.attach(UpperLayers(Cut(backbone, cut, setting="activations.layers")))
    rows = torch.randn(scale.batch * scale.length, 1, width, device=device())
    batch = ActivationBatch(backbone.info.fingerprint, rows, torch.full((scale.batch,), scale.length, device=device()))
    optimizer = torch.optim.AdamW(network.parameters(), fused=torch.cuda.is_available())

    def step() -> None:
        network([batch]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    memory = peak(step)
    return {
        "upper_layers_step_s": in_turns({"step": step}, scale.repeats)["step"],
        "upper_layers_peak_bytes": memory,
    }


def _token_losses(scale: Scale) -> Figures:
    """A forward and backward pass of cross-entropy through a head of a large vocabulary, in chunks."""
    width = 2048 if scale is FULL else 32

    class Head:
        vocabulary = scale.vocabulary
        weight = nn.Parameter(torch.randn(vocabulary, width, device=device(), dtype=scale.dtype), requires_grad=False)

        def inputs(self, hidden: Tensor) -> Tensor:
            return hidden

        def logits(self, inputs: Tensor) -> Tensor:
            return (inputs.to(self.weight.dtype) @ self.weight.T).float()

    head = Head()
    inputs = torch.randn(scale.tokens, width, device=device(), requires_grad=True)
    labels = torch.randint(scale.vocabulary, (scale.tokens,), device=device())

    def step() -> None:
        cross_entropy(inputs, labels, head).backward()  # type: ignore[no-untyped-call]

    return {
        "head_tokens": scale.tokens,
        "head_peak_bytes": peak(step),
        "head_step_s": in_turns({"step": step}, scale.repeats)["step"],
    }


def _limit(name: str, *, tiny: bool) -> int:
    """Return a part's limit in seconds: a trial on a busy CPU is not to be cut short."""
    return 600 if tiny else PARTS[name][1]


def _measured(name: str, *, tiny: bool) -> Figures:
    try:
        size = "tiny" if tiny else "full"
        return run_fresh("benchmarks.overhead.gpu", name, size, seconds=_limit(name, tiny=tiny), environment=_BESIDE)
    except RunFailed as error:
        return {"skipped": str(error)}


# ---- running them -------------------------------------------------------------------------------------------------
def bench_gpu(
    *,
    tiny: bool = False,
    parts: tuple[str, ...] = (),
    json_file: Path | None = None,
    say: Callable[[str], None] = print,
) -> BenchReport:
    """Measure the parts, each in a fresh process within its time, and write the file after each.

    Parameters
    ----------
    tiny : bool
        Small shapes, to try the script on a CPU.
    parts : tuple of str
        Names in `PARTS`; empty: all.
    json_file : Path or None
        Written anew after each part.
    """
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "none: all of this ran on the CPU"
    report = BenchReport("gpu", {"card": card, "tiny": tiny, "cuda": torch.version.cuda or "none"})
    for name in parts or tuple(PARTS):
        say(f"{name}, at most {_limit(name, tiny=tiny)} s")
        began = time.perf_counter()
        figures = _measured(name, tiny=tiny)
        if "skipped" in figures and len(figures) == 1:
            report.skipped[name] = figures["skipped"]
        else:
            report.figures[name.replace("-", "_")] = figures | {"part_s": time.perf_counter() - began}
        if json_file is not None:
            json_file.parent.mkdir(parents=True, exist_ok=True)
            json_file.write_text(json.dumps(report.to_dict(), indent=1) + "\n", "utf-8")
    return report


if __name__ == "__main__":
    print(json.dumps(PARTS[sys.argv[1]][0](TINY if sys.argv[2] == "tiny" else FULL)))
