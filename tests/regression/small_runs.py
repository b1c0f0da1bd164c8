"""Small whole runs in this process, one of each kind, on backbones of a few thousand weights that are kept as files.

Names in a run's settings are relative to its workplace, so that what it saves says nothing of the machine.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

from mobillm_flower.privacy.ledger_file import make_ledger
from tests.support.runs import NUM_DEVICES, run, tiny_config
from tests.support.tiny_models import WORDS

SAVED = Path(__file__).parent / "saved"
INTENTS = ("eat", "play", "rest")

_TOKENS = {
    "backbone__name": "backbones/opt",
    "task__kind": "language-modelling",
    "task__prompt": "{text} and then",
    "data__pair_column": "answer",
    "data__label_column": "label",
    "activations__codec": "fp16",
}
_PRIVATE = {
    "activations__projection": 8,
    "activations__pivot": "mean",
    "activations__codec": "fp16",
    "loss__name": "logit",
    "side_network__name": "discriminant",
    "side_network__bottleneck": 64,  # the default: it has none
    "privacy__joint_epsilon": 8,
}
_FLEET = {"preset": "fed", "backbone__name": "by-partition", "backbone__choices": "backbones/bert,backbones/opt"}

RUNS: dict[str, dict[str, Any]] = {
    "pae": {"preset": "pae"},
    "mobillm": {"preset": "mobillm"},
    "fed": {"preset": "fed", "arrivals__ingest_first": True},
    "upper-layers": {"preset": "upper-layers", "side_network__bottleneck": 4},
    "language-label": {"preset": "mobillm", **_TOKENS},
    "language-difference": {"preset": "pae", "loss__name": "logit", **_TOKENS},
    "discriminant": _PRIVATE,
    "two-types": {**_FLEET, "arrivals__ingest_first": True},
    "low-rank": {"preset": "pae", "side_network__name": "low-rank"},
    "fixed-gates": {"preset": "pae", "side_network__name": "fixed-gates"},
    "causal": {"preset": "mobillm", "side_network__name": "causal", **_TOKENS},
}
"""What each run's settings have beyond those of `tiny_config`, in its notation."""


def make_workplace(folder: Path) -> Path:
    """Make a folder with the data, and with a copy of the backbones."""
    shutil.copytree(SAVED / "backbones", folder / "backbones")
    folder.joinpath("data").mkdir()
    for split, seed in (("train", 1), ("test", 2)):
        drawn = random.Random(seed)
        rows = [_row(drawn) for _ in range(60)]
        folder.joinpath("data", f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return folder


def _row(drawn: random.Random) -> dict[str, str]:
    """A text, its label, and an answer; both follow from the words."""
    words = drawn.choices(WORDS, k=drawn.randint(3, 9))
    place = WORDS.index(words[0])
    return {"text": " ".join(words), "intent": INTENTS[place % len(INTENTS)], "answer": WORDS[place % 5]}


def small_run(name: str, workplace: Path, **changes: Any) -> Path:
    """Run one of `RUNS`; returns its folder, NAME in the workplace.

    Devices get fixed secrets, from which they draw noise.
    """
    values = {"data__source": "data", "trainer__batch_size": 8, "side_network__bottleneck": 4, **RUNS[name], **changes}
    with contextlib.chdir(workplace):
        for number in range(NUM_DEVICES):
            owned = Path(name) / "devices" / f"partition-{number}"
            owned.mkdir(parents=True)
            make_ledger(owned / "ledger.sqlite")
            owned.joinpath("secret").write_bytes(bytes([number]) * 32)
        strategy = run(tiny_config(Path(name), Path("backbones/bert"), **values))
        assert (Path(name) / "side_network" / "config.json").is_file(), strategy.result
    return workplace / name
