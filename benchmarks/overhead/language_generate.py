"""What the side network costs in generation, beside transformers' own, in turns; random weights of OPT-125M's shape.

    .venv/bin/python benchmarks/overhead/language_generate.py --json benchmarks/results/language_generate.json

Batch 1, greedy, key-value cache, float32, one thread; every layer is sampled, the bottleneck is the default. A turn
continues a prompt by `NEW` tokens with the bare model and with each side network.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer, models
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from mobillm_flower import SideTunedModel, load_settings
from mobillm_flower.backbones import load_backbone
from mobillm_flower.core.prediction import PredictionRule
from mobillm_flower.core.side_networks import SideNetworkConfig
from mobillm_flower.evaluation.turns import Report, Threshold, compare_seconds, take_turns, timed
from mobillm_flower.tasks.extraction import extraction_spec
from mobillm_flower.wire.contract import TaskContract

PROMPT, NEW, BAR = 32, 24, 1.10


def tuned(folder: str, name: str) -> SideTunedModel:
    """Return the model with a side network whose weights are random, so that nothing is zero."""
    backbone = load_backbone(folder, device="cpu", language_model=True)
    settings = load_settings({"backbone.name": folder, "loss.objective": "label"})
    spec = extraction_spec(backbone.info, settings, num_blocks=backbone.info.depth, num_outputs=1)
    config = SideNetworkConfig.of(
        {spec.backbone: spec.alignment},
        name=name,
        num_blocks=len(spec.layers),
        bottleneck=settings.side_network.bottleneck,
        num_outputs=spec.width,
    )
    network = config.build()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    contract = TaskContract("language-modelling", (), "{text}", (), 256, (), "cross-entropy", per_token=True)
    return SideTunedModel(backbone, network, spec=spec, contract=contract, rule=PredictionRule("square", 1.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    report = Report("language_generate", {"shape": "OPT-125M", "prompt": PROMPT, "new_tokens": NEW, "threads": 1})
    ids = torch.randint(10, 50_000, (1, PROMPT))
    with tempfile.TemporaryDirectory() as folder:
        OPTForCausalLM(OPTConfig()).save_pretrained(folder)
        words = Tokenizer(models.WordLevel({"<pad>": 1, "</s>": 2}, unk_token="</s>"))
        PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>").save_pretrained(folder)
        additive = tuned(folder, "additive")
        sides = {
            "bare": additive.backbone.language_model,
            "additive": additive.language_model,
            "causal": tuned(folder, "causal").language_model,
        }

        def of(model: OPTForCausalLM) -> None:
            with torch.inference_mode():
                made = model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=NEW,
                    min_new_tokens=NEW,
                    do_sample=False,
                    use_cache=True,
                )
            assert made.shape[1] == PROMPT + NEW

        for model in sides.values():
            of(model)
        found = take_turns({name: timed(partial(of, model)) for name, model in sides.items()}, arguments.pairs)
    for name in ("additive", "causal"):
        for ending, comparison in compare_seconds(found[name], found["bare"], "transformers").items():
            report.comparisons[f"{name}{ending}"] = comparison
            print(name + ending, f"{comparison.ratio:.3f}", [f"{r:.3f}" for r in sorted(comparison.pair_ratios)])
        report.bars[name] = Threshold(report.comparisons[name].ratio, BAR, at_most=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(report.to_dict(), indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
