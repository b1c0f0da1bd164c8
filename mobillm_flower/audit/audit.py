"""The audit: every attack on every cell of the grid, over seeds, as one JSON-like result."""

from __future__ import annotations

import dataclasses
import secrets
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mobillm_flower import __version__
from mobillm_flower.audit.attacks.empirical_epsilon import (
    EpsilonCheck,
    check_gaussian,
    check_labelled_cap,
    check_randomized_response,
)
from mobillm_flower.audit.attacks.labels import argmax_of_draws
from mobillm_flower.audit.attacks.pivots import attack_pivots
from mobillm_flower.audit.attacks.texts import Attacker, Embed, read_public_texts
from mobillm_flower.audit.cell import Attacked, attack
from mobillm_flower.audit.draw import FULL, QUICK, draw, load_devices
from mobillm_flower.audit.finding import combine
from mobillm_flower.audit.grid import AS_SET, MIXING, UNPROTECTED, Cell, grid
from mobillm_flower.audit.plain_words import plain_words
from mobillm_flower.audit.run_uploads import run_side_network, run_uploads
from mobillm_flower.audit.sums import audit_sums
from mobillm_flower.audit.uploads import RememberingBackbone
from mobillm_flower.backbones import load_backbone
from mobillm_flower.clients.device import Device
from mobillm_flower.config import Settings
from mobillm_flower.config.compatibility import ANALYTIC
from mobillm_flower.errors import ArgumentError, SettingsError, UnsupportedError
from mobillm_flower.privacy.accounting import gaussian_sigma
from mobillm_flower.privacy.device_folder import DeviceFolder
from mobillm_flower.privacy.labelled_cap import LabelledCap
from mobillm_flower.privacy.mixing import MixingKey
from mobillm_flower.privacy.protect import Protection
from mobillm_flower.privacy.randomized_response import RandomizedResponse
from mobillm_flower.runs.folder import RunFolder
from mobillm_flower.tasks import LocalData
from mobillm_flower.tasks.extraction import release_guarantee
from mobillm_flower.wire.contract import TaskContract

FORMAT = 1
_CHECKED_EPSILONS = (1.0, 4.0)
_LABEL_EPSILONS = (1.0, 2.0, 3.0)
_DELTA = 1e-5
_MEANING = "minilm"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Subject:
    """What is audited.

    Parameters
    ----------
    settings : callable
        ``key=value`` words to the settings with them; none give those audited.
    run : RunFolder or None
        A run's folder, whose own uploads and side network are attacked.
    """

    settings: Callable[[Sequence[str]], Settings]
    run: RunFolder | None = None


def run_audit(subject: Subject, *, quick: bool = False, say: Say = lambda _text: None) -> dict[str, Any]:
    """Attack, and return the result; no text, label or secret is in it.

    Parameters
    ----------
    subject : Subject
        A run or settings.
    quick : bool
        Few samples, two seeds, few cells: to see that it works.
    say : callable
        Called with a line as each cell is done.

    Raises
    ------
    UnsupportedError
        The task is a regression, or there are too few samples.
    DataError
        The data is not on this machine.
    """
    started, size = time.perf_counter(), QUICK if quick else FULL
    settings = subject.settings([])
    devices = load_devices(settings, len(subject.run.device_folders()) if subject.run else 0)
    remarks: list[str] = []
    backbone = _backbone(settings, devices[0], remarks)
    if settings.strategy == ANALYTIC:
        result = audit_sums(settings, devices, backbone, size, run=subject.run is not None, say=say)
        return {**result, "remarks": remarks}
    embed = _embedding(backbone, remarks)
    draws = [draw(devices, size, seed=seed) for seed in range(size.seeds)]
    begun = time.perf_counter()
    sequences = [
        read_public_texts(settings, one, backbone=backbone, sentences=size.sentences, seed=seed)
        for seed, one in enumerate(draws)
    ]
    attackers = [Attacker(one, backbone, sequences[i], embed, size.victims, seed=i) for i, one in enumerate(draws)]
    say(f"sequence decoders, trained on {len(sequences[0].samples):,} texts ({time.perf_counter() - begun:.0f} s)")
    cells = []
    for cell in grid(settings, quick=quick):
        begun = time.perf_counter()
        made = _audit_cell(cell, subject, devices, attackers, remarks)
        cells.append(made)
        outcome = made["skipped"] or f"{made['quality']['value']:.3f} {devices[0].contract.metric}"
        say(f"{cell.name}: {outcome} ({time.perf_counter() - begun:.0f} s)")
    result = {
        "format": FORMAT,
        "version": __version__,
        "subject": "run" if subject.run else "settings",
        "metric": devices[0].contract.metric,
        "classes": devices[0].contract.num_outputs,
        "devices": len(devices),
        "samples": sum(len(device.train) for device in devices),
        "attacked": [sum(len(d.train) for d in one.fleet.values()) for one in draws],
        "attackers_texts": [len(one.public) for one in draws],
        "held_out": [len(one.test) for one in draws],
        "sizes": dataclasses.asdict(size),
        "cells": cells,
    }
    say("pivots")
    result["pivots"] = attack_pivots(draws[0], backbone, sequences[0])
    say(f"empirical ε of the mechanisms, {size.draws:,} draws each")
    result["epsilon_checks"] = [one.to_dict() for one in _epsilon_checks(devices[0].contract, size.draws)]
    say("labels under randomization, on draws of their own")
    result["label_checks"] = _label_checks(devices[0].contract, size.draws // 50)
    result["retention_days"] = settings.cache.retention_days
    result["remarks"] = remarks
    result["plain_words"] = [list(pair) for pair in plain_words(result)]
    result["seconds"] = round(time.perf_counter() - started, 1)
    return result


def _audit_cell(
    cell: Cell, subject: Subject, devices: Sequence[LocalData], attackers: Sequence[Attacker], remarks: list[str]
) -> dict[str, Any]:
    result: dict[str, Any] = {"name": cell.name, "kind": cell.kind, "settings": list(cell.words), "skipped": ""}
    attacked: list[Attacked] = []
    try:
        for attacker in attackers:
            with ExitStack() as stack:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mobillm-audit-")))
                key = _fresh_key(folder / "key") if cell.kind == MIXING else ()
                settings = subject.settings([*cell.words, *key])
                given = released = None
                if subject.run is not None and cell.kind == AS_SET:
                    drawn, backbone = attacker.drawn, attacker.backbone
                    given = stack.enter_context(
                        run_uploads(subject.run, settings, devices, drawn, backbone, folder / "run")
                    )
                    released = run_side_network(subject.run, settings, backbone) if given else None
                    if given is None and attacker is attackers[0]:
                        remarks.append(
                            "The rows of the run's cache could not be matched to the texts they are of (that takes the "
                            "devices' folders, one backbone type, and --app where devices load their own rows): "
                            "uploads were made anew under its settings."
                        )
                attacked.append(
                    attack(
                        attacker,
                        settings,
                        folder=folder,
                        each_layer=cell.kind in (AS_SET, UNPROTECTED),
                        given=given,
                        released=released,
                    )
                )
    except (ArgumentError, SettingsError, UnsupportedError) as error:
        return {**result, "skipped": str(error)}
    return {**result, **_summary(attacked, devices[0].contract, settings)}


def _fresh_key(file: Path) -> tuple[str, ...]:
    """Write a new mixing key, and return the settings that name it."""
    file.touch(mode=0o600)
    file.write_text(secrets.token_hex(32), "ascii")
    return f"privacy.mixing={MixingKey.read(file).name}", f"privacy.mixing-key={file}"


def _summary(attacked: Sequence[Attacked], contract: TaskContract, settings: Settings) -> dict[str, Any]:
    spec = attacked[0].spec
    claimed = release_guarantee(spec, contract, delta=settings.privacy.delta)
    names = [name for name in attacked[0].measured if all(name in one.measured for one in attacked)]
    layers = [
        {"layer": layer, **{key: combine([one.layers[i][key] for one in attacked]).to_dict() for key in measured}}
        for i, (layer, measured) in enumerate(zip(spec.layers, attacked[0].layers, strict=False))
    ]
    return {
        "epsilon": {"total": claimed.epsilon, "delta": claimed.delta, "reason": claimed.reason},
        "pivot": spec.pivot,
        "codec": spec.codec,
        "layers_sampled": list(spec.layers),
        "quality": combine([one.quality for one in attacked]).to_dict(),
        "bytes_a_sample": round(sum(one.bytes_a_sample for one in attacked) / len(attacked), 1),
        "device_seconds_a_sample": round(sum(one.device_seconds_a_sample for one in attacked) / len(attacked), 5),
        "attacks": {name: combine([one.measured[name] for one in attacked]).to_dict() for name in names},
        "layers": layers,
    }


def _backbone(settings: Settings, data: LocalData, remarks: list[str]) -> RememberingBackbone:
    with tempfile.TemporaryDirectory(prefix="mobillm-audit-") as folder:
        owned = DeviceFolder(Path(folder) / "device")
        try:
            backbone = Device(settings, data, owned).backbone
        finally:
            owned.close()
    if settings.backbone.choices:
        remarks.append(f"Devices choose among backbones; all attacks are on {backbone.info.name}'s uploads.")
    return RememberingBackbone(backbone)


def _embedding(own: RememberingBackbone, remarks: list[str]) -> Embed | None:
    """Return all-MiniLM-L6-v2's sentence embedding, or None where it is not installed."""
    try:
        loaded = load_backbone(_MEANING)
    except UnsupportedError:
        remarks.append("Similarity of meaning was left out: it needs the extra `demo` (all-MiniLM-L6-v2).")
        return None
    same = loaded.info.fingerprint == own.info.fingerprint
    model = own if same else RememberingBackbone(loaded)

    def embed(texts: Sequence[str]) -> Tensor:
        tokens = model.tokenize([text or " " for text in texts], None, 128)
        rows = model.extract(tokens, layers=[model.info.depth], pivot="mean").activations
        return torch.stack([row.flatten() for row in rows])

    return embed


def _epsilon_checks(contract: TaskContract, draws: int) -> list[EpsilonCheck]:
    classes, checks = contract.num_outputs, []
    for epsilon in _CHECKED_EPSILONS:
        checks.append(check_labelled_cap(LabelledCap(epsilon, classes), draws=draws))
        checks.append(check_randomized_response(RandomizedResponse(epsilon, classes), draws=draws))
        sigma = gaussian_sigma(epsilon, _DELTA, 2.0)
        checks.append(check_gaussian(sigma, 1.0, _DELTA, claimed=epsilon, draws=draws))
    return checks


def _label_checks(contract: TaskContract, draws: int) -> list[dict[str, Any]]:
    """Compare the argmax attack with theory on more labels than a data set has, through the devices' own code."""
    classes, checks = contract.num_outputs, []
    for epsilon in _LABEL_EPSILONS:
        for name, protection in (
            ("randomized response", Protection(classes, label_epsilon=epsilon)),
            ("labelled cap", Protection(classes, joint_epsilon=epsilon)),
        ):
            measured = combine([argmax_of_draws(protection, draws=draws)]).to_dict()
            checks.append({"mechanism": name, "epsilon": epsilon, **measured})
    return checks
