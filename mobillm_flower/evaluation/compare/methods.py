"""The methods of the comparison: settings of each, and trials of which one is chosen on validation rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mobillm_flower.config.compatibility import ANALYTIC
from mobillm_flower.core.side_networks.upper_layers import NAME as UPPER_LAYERS
from mobillm_flower.evaluation.compare.cells import ADDITIVE, CENTRAL_LORA
from mobillm_flower.evaluation.compare.curves import Method

BY_STEPS = {
    "rounds.window": "256",
    "loss.name": "logit",
    "trainer.batch-size": "32",
    "side-network.codec": "int8",
    "side-network.name": "low-rank",
}
"""Settings of side-tuning that trains by steps, beside its preset's."""
OF_PAIRS = {"activations.bi-encoder": "true", "activations.pivot": "mean"}
"""What side-tuning adds where samples are pairs of texts."""
_CENTRAL_EPOCHS = 10


def methods(rounds: int, names: Sequence[str], *, trials: bool = True) -> list[Method]:
    """Return methods by name.

    Parameters
    ----------
    rounds : int
        Of a peer; a trial has a third of them.
    names : sequence of str
        Of `COMPARED`, see `of_app`.
    trials : bool
        Whether to choose among three learning rates; else the middle one is taken. `pae` and `fed` have none: their
        side network is the default one, a closed form.
    """
    peer, fewer = {"rounds.num-rounds": str(rounds)}, {"rounds.num-rounds": str(max(1, rounds // 3))}
    epochs = str(min(rounds, _CENTRAL_EPOCHS))
    rate, rates = "peer.learning-rate", _trials("trainer.learning-rate", "1e-3", "2e-3", "4e-3")
    made = [
        *(Method(name, {"rounds.window": "256"}, [{}], {}, OF_PAIRS) for name in ("pae", "fed")),
        Method(ADDITIVE, BY_STEPS, rates, {}, OF_PAIRS),
        Method(ANALYTIC, {}, [{}], {}),  # solved: no learning rate
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
    asked = [one for one in made if one.name in names]
    return asked if trials else [replace(one, trials=[one.trials[len(one.trials) // 2]]) for one in asked]


def _trials(setting: str, *values: str) -> list[dict[str, str]]:
    return [{setting: value} for value in values]
