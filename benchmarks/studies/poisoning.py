"""What one and three lying devices of ten change, with and without `trainer.judge-devices`, three seeds, two data sets.

    .venv/bin/python benchmarks/studies/poisoning.py --data FOLDER --json benchmarks/results/poisoning.json

all-MiniLM-L6-v2 reads each text once; `mean` of six layers, NF4. Every cell is a cache of ten devices that the server's
own trainer reads, with the closed form (linear) or, where validation samples are chosen, with the additive network.
Devices hold 100 samples, IID or Dirichlet α = 0.1; seeds draw samples and partition. A liar shifts each label by one.
"left out": the same fleet without the liars. Uneven fleets: 12 devices with 12 to 262 samples, as in
benchmarks/results/fleet.json, of which one cache is trained from, too. Accuracy is on the test split. What the file
holds already is not measured again; `--seeds` and `--cells` choose.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.studies.fleet import Tested, fill_cache, train
from mobillm_flower import __version__, load_settings
from mobillm_flower.backbones import load_backbone
from mobillm_flower.core.codecs import CODECS
from mobillm_flower.core.side_networks import ActivationBatch, AlignmentSpec, SideNetworkConfig
from mobillm_flower.core.sparse import encode_sample
from mobillm_flower.core.targets import automatic_scale, predict_square
from mobillm_flower.models.saved import saved_backbones
from mobillm_flower.privacy.ledger import Release
from mobillm_flower.server import ActivationCache, TrainerOptions
from mobillm_flower.server.plan import TrainingPlan, plan_what_is_held
from mobillm_flower.tasks import load_central_data, render
from mobillm_flower.wire.contract import ExtractionSpec, TaskContract
from mobillm_flower.wire.target_bytes import encode_targets

DEVICES = 10
SETS: dict[str, tuple[dict[str, str], int]] = {
    "sst2_sentences": ({"data.text-column": "sentence", "data.label-column": "label"}, 100),
    "clinc150": ({"data.text-column": "text", "data.label-column": "label"}, 100),
}
UNEVEN = (12, 27, 43, 55, 62, 66, 71, 98, 113, 170, 221, 262)
# liars, times as many samples, Δy at its bound
ATTACKS: dict[str, tuple[int, int, bool]] = {
    "one liar": (1, 1, False),
    "one liar, Δy at its bound": (1, 1, True),
    "one liar, 10 times the samples": (1, 10, False),
    "one liar, 100 times the samples": (1, 100, False),
    "three liars": (3, 1, False),
    "three liars, Δy at its bound": (3, 1, True),
    "three liars, 10 times the samples": (3, 10, False),
}
KEY = "5c" * 32
BOTH = ("undefended", "defended")
Rows = dict[str, Any]
_CODEC, _WIDTH = "nf4", 384


class Extracted:
    """A data set's texts, read once by the backbone."""

    def __init__(self, name: str, data: Path, work: Path) -> None:
        file = work / f"{name}.pt"
        if not file.exists():
            work.mkdir(parents=True, exist_ok=True)
            torch.save(self._extract(name, data), file)
        saved = torch.load(file, weights_only=True)
        self.train, self.train_labels, self.test, self.test_labels, fingerprint = saved
        self.num_classes = int(self.train_labels.max()) + 1
        blocks = self.train.shape[1]
        self.spec = ExtractionSpec(
            backbone=fingerprint,
            width=_WIDTH,
            num_vectors=1,
            layers=tuple(range(1, blocks + 1)),
            pivot="mean",
            codec=_CODEC,
            standardise="",
            clip_norm=0.0,
            sigma=0.0,
            keep=1.0,
            objective="difference",
            send_base=False,
        )
        self.contract = TaskContract(
            kind="classification",
            labels=tuple(map(str, range(self.num_classes))),
            prompt="",
            label_words=(),
            max_length=128,
            label_range=(),
            metric="accuracy",
        )

    @staticmethod
    def _extract(name: str, data: Path) -> tuple[Any, ...]:
        settings = load_settings({"data.source": str((data / name).resolve()), **SETS[name][0]})
        splits, backbone, found = load_central_data(settings), load_backbone("minilm"), []
        for part in (splits.train, splits.test):
            texts, _ = render(part, splits.contract)
            rows = []
            for start in range(0, len(texts), 512):
                tokens = backbone.tokenize(texts[start : start + 512], None, 128)
                layers = tuple(range(1, backbone.info.depth + 1))
                made = backbone.extract(tokens, layers=layers, pivot="mean").activations
                rows.append(torch.cat(made).flatten(2).half())  # [B, M, d]
            found += [torch.cat(rows), part.labels]
        return (*found, backbone.info.fingerprint)

    def sample(self, number: int, label: int, *, at_bound: bool = False, draw: torch.Generator | None = None) -> Any:
        """Return one sample's bytes, with noise of a hundredth where drawn (so that copies differ)."""
        row = self.train[number].float()
        if draw is not None:
            row = row + 0.01 * row.std() * torch.randn(row.shape, generator=draw)
        base = torch.full((1, self.num_classes), 1 / self.num_classes)
        if at_bound:  # as if the backbone had been certain of another class
            base = torch.eye(self.num_classes)[[int(self.train_labels[number])]]
        (target,) = encode_targets(torch.tensor([label]), base, self.spec, self.contract)
        blob = encode_sample(row[None, :, None], CODECS[_CODEC], 1.0)
        release = hashlib.sha256(blob + target + number.to_bytes(8, "big")).digest()[:16]
        return Release(release, 1, blob, target)

    def accuracy(self, network: torch.nn.Module) -> float:
        network.eval()
        with torch.inference_mode():
            parts = [
                network([ActivationBatch(self.spec.backbone, rows.float())]) for rows in torch.split(self.test, 256)
            ]
        return float((torch.cat(parts).argmax(1) == self.test_labels).float().mean())


def deal(labels: torch.Tensor, sizes: tuple[int, ...], alpha: float, seed: int) -> list[list[int]]:
    """Return the samples of each device; α = 0: IID."""
    draw = np.random.default_rng(seed)
    order = draw.permutation(len(labels))
    if not alpha:
        ends = np.cumsum(sizes)
        return [order[end - size : end].tolist() for end, size in zip(ends, sizes, strict=True)]
    classes = int(labels.max()) + 1
    pools = [order[labels.numpy()[order] == k].tolist() for k in range(classes)]
    devices = []
    for size in sizes:
        shares = draw.dirichlet(np.full(classes, alpha)) + 1e-9
        counts = draw.multinomial(size, shares / shares.sum())
        devices.append([pools[k].pop() for k in range(classes) for _ in range(min(counts[k], len(pools[k])))])
    return devices


def plan_of(data: Extracted, *, network: str, judge: bool, seed: int, key: str = KEY) -> TrainingPlan:
    side = SideNetworkConfig.of(
        {data.spec.backbone: AlignmentSpec(_WIDTH, 1)},
        name=network,
        num_blocks=data.train.shape[1],
        bottleneck=16,
        num_outputs=data.num_classes,
        seed=seed,
    )
    options = TrainerOptions.of(
        load_settings({}).trainer,
        batch_size=32,
        planned_steps=1,
        seed=seed,
        validation_key=key,
        overlap_steps=0,
        judge_devices=judge,
    )
    return TrainingPlan(
        contract=data.contract,
        specs={data.spec.backbone: data.spec},
        side_config=side,
        objective="difference",
        loss="square",
        scale=automatic_scale(data.num_classes),
        options=options,
        num_threads=1,
    )


def measure(data: Extracted, devices: list[list[Any]], *, judges: tuple[bool, ...], **of_plan: Any) -> list[Any]:
    """Return the test accuracy and the devices that were left out, without and with the defence."""
    with tempfile.TemporaryDirectory() as folder:
        cache = ActivationCache(Path(folder) / "cache.sqlite")
        for number, samples in enumerate(devices):
            cache.add(f"{number:032x}", samples, backbone=data.spec.backbone, round_=1)
        found: list[Any] = []
        for judge in judges:
            plan = plan_of(data, judge=judge, **of_plan)
            trainer = plan.trainer(cache, scores=partial(predict_square, scale=plan.scale), memory_bytes=1 << 29)
            plan_what_is_held(trainer)
            trainer.run_epochs()
            rows = trainer.heard(cache.rows())
            used = np.bincount(rows.column("device"), minlength=len(devices))
            left_out = [int(rows.names("device")[i], 16) for i in np.flatnonzero(used[: len(devices)] == 0)]
            found.append((round(data.accuracy(trainer.network), 4), sorted(left_out)))
        cache.close()
    return found


def attacked(data: Extracted, dealt: list[list[int]], attack: tuple[int, int, bool], seed: int) -> list[list[Any]]:
    """Return each device's samples, the liars first."""
    liars, times, at_bound = attack
    draw, devices = torch.Generator().manual_seed(seed), []
    for number, members in enumerate(dealt):
        if number >= liars:
            devices.append([data.sample(i, int(data.train_labels[i])) for i in members])
            continue
        wrong = [(int(data.train_labels[i]) + 1) % data.num_classes for i in members]
        devices.append(
            [
                data.sample(i, label, at_bound=at_bound, draw=draw if times > 1 else None)
                for i, label in zip(members, wrong, strict=True)
                for _ in range(times)
            ]
        )
    return devices


def ground(data: Extracted, members: list[int], key: bytes, share: float, seed: int) -> list[Any]:
    """Return lying samples that the key puts into the validation share."""
    draw, made = torch.Generator().manual_seed(seed), []
    for i in members:
        label = (int(data.train_labels[i]) + 1) % data.num_classes
        while True:
            sample = data.sample(i, label, draw=draw)
            text = b"%s:1:%d:%s%s" % (
                data.spec.backbone.encode(),
                len(sample.activations),
                sample.activations,
                sample.target,
            )
            digest = hashlib.sha256(text).digest()
            if int.from_bytes(hashlib.blake2b(digest, digest_size=8, key=key).digest(), "big") < share * 2**64:
                made.append(sample)
                break
    return made


def cells_of(
    texts: Callable[[str], Extracted], name: str, each: int, seed: int, alpha: float, *, done: Rows
) -> Iterator[tuple[str, Any]]:
    """Yield (accuracy, devices left out) of each kind of fleet that is not done, by defence."""
    data = texts(name)
    form: dict[str, Any] = {"network": "closed-form", "seed": seed}
    sizes = {"nobody lies": (each,) * DEVICES, "nobody lies, uneven": tuple(each * size // 100 for size in UNEVEN)}
    for kind in [kind for kind in sizes if kind not in done]:
        dealt = deal(data.train_labels, sizes[kind], alpha, seed)
        fleet = attacked(data, dealt, (0, 1, False), seed)
        yield kind, dict(zip(BOTH, measure(data, fleet, judges=(False, True), **form), strict=True))
    dealt = deal(data.train_labels, sizes["nobody lies"], alpha, seed)
    honest = attacked(data, dealt, (0, 1, False), seed)
    left_out: dict[int, Any] = {}
    for kind, attack in ATTACKS.items():
        if kind in done:
            continue
        liars = attack[0]
        if liars not in left_out:
            (left_out[liars],) = measure(data, honest[liars:], judges=(False,), **form)
        found = measure(data, attacked(data, dealt, attack, seed), judges=(False, True), **form)
        yield kind, {**dict(zip(BOTH, found, strict=True)), "left out": left_out[liars]}


def validation_cells(
    texts: Callable[[str], Extracted], name: str, each: int, seed: int, *, done: Rows
) -> Iterator[tuple[str, Any]]:
    """Yield figures of the additive network, whose best state the validation share chooses."""
    data = texts(name)
    dealt = deal(data.train_labels, (each,) * DEVICES, 0, seed)
    honest = attacked(data, dealt, (0, 1, False), seed)
    lying = ground(data, dealt[0], seed.to_bytes(8, "big", signed=True), 0.1, seed)
    fleet, form = [lying, *honest[1:]], {"network": "additive", "seed": seed}
    kinds: dict[str, tuple[list[Any], bool, str]] = {
        "nobody lies": (honest, False, KEY),
        "left out": (honest[1:], False, KEY),
        "split by the seed": (fleet, False, ""),
        "split by a secret": (fleet, False, KEY),
        "split by a secret, devices judged": (fleet, True, KEY),
    }
    for kind, (devices, judge, key) in kinds.items():
        if kind not in done:
            yield kind, measure(data, devices, judges=(judge,), key=key, **form)[0]


def example_fleet(data: Path, work: Path, seed: int, *, done: Rows) -> Iterator[tuple[str, Any]]:
    """Train from the cache of examples/fleet, in which nobody lies: three types of four devices, α = 0.1.

    Beside the accuracy: how many of the samples are not used.
    """
    if done:
        return
    run = fill_cache("phone-messages", data, work)
    infos = sorted(saved_backbones(run / "side_network"), key=lambda info: info.depth)
    tested = [Tested(run, info) for info in infos]
    cache = ActivationCache(run / "cache.sqlite")
    for name, judge in zip(BOTH, (False, True), strict=True):
        trainer, _ = train(cache, tested[0].rule, seed=seed, judge_devices=judge)
        accuracy = float(np.mean([one.accuracy(trainer.network) for one in tested]))
        yield name, (round(accuracy, 4), len(cache) - len(trainer.heard(cache.rows())))
    cache.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with sst2_sentences and clinc150")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/poisoning"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--cells", default="", help="only cells with these words in their names, separated by ;")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    wanted = arguments.cells.split(";")
    out: dict[str, Any] = {"versions": {"mobillm_flower": __version__, "torch": torch.__version__}, "cells": {}}
    if arguments.json.exists():
        out["cells"] = json.loads(arguments.json.read_text("utf-8"))["cells"]
    extracted: dict[str, Extracted] = {}

    def texts(name: str) -> Extracted:
        if name not in extracted:
            extracted[name] = Extracted(name, arguments.data, arguments.work)
        return extracted[name]

    for seed in map(int, arguments.seeds.split(",")):
        makers: dict[str, Callable[..., Iterator[tuple[str, Any]]]] = {}
        for name, (_, each) in SETS.items():
            for text, alpha in (("IID", 0.0), ("α = 0.1", 0.1)):
                makers[f"{name}, {text}"] = partial(cells_of, texts, name, each, seed, alpha)
            makers[f"{name}, chosen for validation"] = partial(validation_cells, texts, name, each, seed)
        makers["examples/fleet"] = partial(example_fleet, arguments.data, arguments.work, seed)
        for cell, make in makers.items():
            if not any(word in cell for word in wanted):
                continue
            rows = out["cells"].setdefault(cell, {}).setdefault(str(seed), {})
            for kind, row in make(done=rows):
                rows[kind] = row
                print(cell, seed, kind, row, flush=True)
                arguments.json.write_text(json.dumps(out, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
