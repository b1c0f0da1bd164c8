"""Which of several backbones a device runs: the largest that its memory allows, by measurement.

`python -m mobillm_flower.backbones.choose` measures one: a request as JSON on its input, one line of JSON back.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from mobillm_flower.backbones.load import load_with
from mobillm_flower.backbones.memory import available_bytes, peak_memory_bytes
from mobillm_flower.backbones.options import LoadOptions, PredictedTask
from mobillm_flower.backbones.public import public_text
from mobillm_flower.backbones.sources import resolve_folder
from mobillm_flower.config import CHOOSERS, BackboneSettings
from mobillm_flower.errors import SettingsError, UnsupportedError

_MIB = 1 << 20


@dataclass(frozen=True)
class Choice:
    """A backbone to load.

    Parameters
    ----------
    options : LoadOptions
        What to load.
    reason : str
        Which it is and why it was chosen; empty where the settings name one.
    """

    options: LoadOptions
    reason: str = ""


@dataclass(frozen=True)
class Need:
    """What a fresh process took that loaded a backbone and ran one batch of the token budget forward.

    Parameters
    ----------
    bytes : float
        Its peak resident set (VmHWM), libraries included; on CUDA what torch allocated. Infinite where the system ended
        the process.
    parameters : int
        The backbone's numbers of parameters as they are held.
    """

    bytes: float
    parameters: int


def choose(
    settings: BackboneSettings,
    *,
    file: Path,
    partition: int = 0,
    max_length: int = 128,
    pivot: str = "auto",
    task: PredictedTask | None = None,
) -> Choice:
    """Return the backbone that a device runs.

    Parameters
    ----------
    settings : BackboneSettings
        Its own.
    file : Path
        Where needs and the decision are remembered, as JSON. Without it a device could change its backbone from one
        message to the next, since the available memory moves.
    partition : int
        For `by-partition`.
    max_length, pivot : int, str
        Tokens of the samples that are measured, and `all` where every token's activations are kept.
    task : PredictedTask, optional
        What the backbone is to predict by itself.

    Raises
    ------
    SettingsError
        The memory allows none of the choices; the least one is named with what was measured.
    UnsupportedError
        A choice cannot be loaded.
    """
    options = LoadOptions.of(settings)
    options = options.for_task(task) if task else options
    if settings.name not in CHOOSERS:
        return Choice(options)
    if settings.name == "by-partition":
        place = partition % len(settings.choices)
        return Choice(_chosen(options, settings.choices[place]), f"{_short(settings.choices[place])}: by partition")
    sample = {"max_length": max_length, "per_token": pivot == "all" or options.language_model}
    asked = {key: value for key, value in {**_as_json(options), **sample}.items() if key not in ("name", "layers")}
    choices = sorted(set(settings.choices))
    question = {"choices": choices, "layers": settings.layers, "memory_mib": settings.memory_mib, **asked}
    memory = _read(file)
    if memory["question"] != question:
        needs = {}
        for choice in choices:
            request = {**_as_json(_chosen(options, choice)), **sample}
            key = json.dumps(request, sort_keys=True)
            if key not in memory["needs"]:
                memory["needs"][key] = vars(measure_need(request))
                _write(file, memory)
            needs[choice] = Need(**memory["needs"][key])
        allowed = settings.memory_mib * _MIB or available_bytes()
        chosen, reason = decide(needs, allowed)
        memory |= {"question": question, "chosen": chosen, "reason": reason}
        _write(file, memory)
    return Choice(_chosen(options, memory["chosen"]), memory["reason"])


def decide(needs: Mapping[str, Need], allowed: float) -> tuple[str, str]:
    """Return the choice with the most parameters among those that fit, and why.

    Parameters
    ----------
    needs : mapping of str to Need
        By choice.
    allowed : float
        Bytes that may be taken.

    Raises
    ------
    SettingsError
        None fits.
    """
    by_size = sorted(needs, key=lambda choice: (needs[choice].parameters, needs[choice].bytes, choice))
    fitting = [choice for choice in by_size if needs[choice].bytes <= allowed]
    if not fitting:
        least = min(needs, key=lambda choice: (needs[choice].bytes, choice))
        measured = "; ".join(f"{_short(choice)} needs {_mib(needs[choice].bytes)}" for choice in by_size)
        raise SettingsError(
            f"backbone.choices: none fits into {_mib(allowed)}; {_short(least)} is the least, with "
            f"{_mib(needs[least].bytes)}. Measured: {measured}. Add a smaller choice, lower backbone.token-budget or "
            "backbone.precision, or raise backbone.memory-mib"
        )
    chosen = fitting[-1]
    too_large = [choice for choice in by_size if choice not in fitting]
    why = f"next would be {_short(too_large[0])} with {_mib(needs[too_large[0]].bytes)}" if too_large else "the largest"
    reason = f"{_short(chosen)}: {_mib(needs[chosen].bytes)} measured, {_mib(allowed)} allowed; {why}"
    return chosen, reason


def measure_need(request: Mapping[str, Any]) -> Need:
    """Measure, in a fresh process, what a backbone takes.

    Parameters
    ----------
    request : mapping
        `name`, `layers`, and what else `load_backbone` takes; `max_length` and `per_token`.

    Raises
    ------
    UnsupportedError
        The backbone cannot be loaded or run.
    """
    # a name that the app registered is not known in a fresh process; its folder is
    folder = str(resolve_folder(request["name"], request["revision"]))
    answer = subprocess.run(
        [sys.executable, "-m", "mobillm_flower.backbones.choose"],
        input=json.dumps({**request, "name": folder}),
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode < 0:  # ended by a signal: the system had not as much memory
        return Need(float("inf"), sys.maxsize)
    try:
        return Need(**json.loads(answer.stdout.strip().splitlines()[-1]))
    except (IndexError, ValueError, TypeError) as error:
        words = (answer.stderr.strip().splitlines() or ["nothing was said"])[-1][-300:]
        raise UnsupportedError(f"backbone.choices: {request['name']} cannot be measured: {words}") from error


def _measure(request: dict[str, Any]) -> Need:
    """Load a backbone and run one batch of the token budget forward, in this process."""
    with contextlib.suppress(OSError):  # where memory runs out, this process goes and not the device's own (Linux)
        Path("/proc/self/oom_score_adj").write_text("1000")
    max_length, per_token = request.pop("max_length"), request.pop("per_token")
    backbone = load_with(LoadOptions(**{**request, "label_words": tuple(request["label_words"])}))
    long = " ".join(public_text()) * (1 + max_length // 100)
    (sample,) = backbone.tokenize([long], None, max_length)
    samples = [sample] * max(1, backbone.token_budget // len(sample["input_ids"]))
    layers = range(1, backbone.info.depth + 1)
    backbone.extract(samples, layers=layers, pivot="all" if per_token else backbone.info.default_pivot)
    return Need(peak_memory_bytes(), sum(p.numel() for p in backbone.model.parameters()))


def _chosen(options: LoadOptions, choice: str) -> LoadOptions:
    """Return the options of a choice, NAME or NAME@LAYERS."""
    name, at, layers = choice.rpartition("@")
    return replace(options, name=name, layers=int(layers)) if at else replace(options, name=choice)


def _as_json(options: LoadOptions) -> dict[str, Any]:
    """Return what a need depends on, as JSON holds it: no names of classes, and there is no plan yet."""
    values = {item.name: getattr(options, item.name) for item in fields(options) if item.name not in ("plan", "labels")}
    return {**values, "label_words": list(options.label_words)}


def _short(choice: str) -> str:
    """Return a choice as the device tells it: of a folder its last part."""
    return Path(choice).name[-60:]


def _mib(size: float) -> str:
    return "more memory than there is" if size == float("inf") else f"{size / _MIB:,.0f} MiB"


def _read(file: Path) -> dict[str, Any]:
    """Return what is remembered; a file that cannot be read is as none, since all can be measured again."""
    empty: dict[str, Any] = {"needs": {}, "question": None}
    try:
        kept = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return empty
    return {**empty, **kept} if isinstance(kept, dict) else empty


def _write(file: Path, memory: Mapping[str, Any]) -> None:
    draft = file.with_name(f"{file.name}.{os.getpid()}")
    with os.fdopen(os.open(draft, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w", encoding="utf-8") as stream:
        json.dump(memory, stream, indent=1)
    draft.replace(file)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(vars(_measure(json.load(sys.stdin)))) + "\n")
