"""The methods of the comparison: settings of each, and trials of which one is chosen on validation rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mobillm_flower.core.side_networks.upper_layers import NAME as UPPER_LAYERS
from mobillm_flower.evaluation.compare.cells import CENTRAL_LORA
from mobillm_flower.evaluation.compare.curves import Method

METHODS = ("pae", UPPER_LAYERS, "fed-lora", "fed-bitfit", "fed-kseed", "split-fed", "upload-all", CENTRAL_LORA)
QUICK = ("pae", "fed-lora", CENTRAL_LORA)
"""What is compared for a look in minutes."""
PAE = {
    "rounds.window": "256",
    "loss.name": "logit",
    "trainer.batch-size": "32",
    "side-network.codec": "int8",
    "side-network.name": "low-rank",
}
"""Side-tuning's settings, beside its preset's."""
PAE_OF_PAIRS = {"activations.bi-encoder": "true", "activations.pivot": "mean"}
"""What it adds where samples are pairs of texts."""
_CENTRAL_EPOCHS = 10


def methods(rounds: int, names: Sequence[str], *, trials: bool = True) -> list[Method]:
    """Return methods by name.

    Parameters
    ----------
    rounds : int
        Of a peer; a trial has a third of them.
    names : sequence of str
        Of `METHODS`; also `fed`, side-tuning without barrier, with the settings of `pae`, and `mobillm`.
    trials : bool
        Whether to choose among three learning rates; else the middle one is taken.
    """
    peer, fewer = {"rounds.num-rounds": str(rounds)}, {"rounds.num-rounds": str(max(1, rounds // 3))}
    epochs = str(min(rounds, _CENTRAL_EPOCHS))
    rate, rates = "peer.learning-rate", _trials("trainer.learning-rate", "1e-3", "2e-3", "4e-3")
    made = [
        *(Method(name, PAE, rates, {}, PAE_OF_PAIRS) for name in ("pae", "fed")),
        Method("mobillm", {"rounds.window": "256"}, rates, {}),
        Method(UPPER_LAYERS, {"rounds.window": "256"}, rates, {}),  # the preset has the rest
        Method("fed-lora", peer, _trials(rate, "2e-3", "4e-3", "8e-3"), fewer),
        Method("fed-bitfit", peer, _trials(rate, "2e-3", "5e-3", "1e-2"), fewer),
        Method("fed-kseed", peer, _trials(rate, "1e-5", "1e-4", "1e-3"), fewer),
        Method("split-fed", peer, _trials(rate, "2e-3", "4e-3", "8e-3"), fewer),
        Method(
            "upload-all",
            {"rounds.num-rounds": "1", "peer.local-epochs": epochs},
            _trials(rate, "5e-4", "1e-3", "2e-3"),
            {},
        ),
        Method(CENTRAL_LORA, {"rounds.num-rounds": epochs}, _trials(rate, "5e-4", "1e-3", "2e-3"), {}),
    ]
    return [replace(one, trials=one.trials if trials else one.trials[1:2]) for one in made if one.name in names]


def _trials(setting: str, *values: str) -> list[dict[str, str]]:
    return [{setting: value} for value in values]
